// This file holds the wire form of what is revoked.

package wire

import (
	"fmt"
	"time"

	"github.com/aval-id/aval/identity"
)

// FromDenials gives denials their wire form.
func FromDenials(d *identity.Denials) *Denials {
	out := &Denials{Serials: d.Serials(), Issuers: d.Issuers()}
	for _, id := range d.IDs() {
		entry := &DeniedID{SpiffeId: id.String()}
		if before, _ := d.Before(id); !before.IsZero() {
			entry.Before = before.UnixMilli()
		}
		out.Ids = append(out.Ids, entry)
	}
	return out
}

// ToDenials parses denials. One that cannot be read spoils them all: to pass
// it over would take what is revoked.
func ToDenials(d *Denials) (*identity.Denials, error) {
	ids := map[identity.ID]time.Time{}
	for _, e := range d.GetIds() {
		id, err := identity.ParseID(e.GetSpiffeId())
		if err != nil {
			return nil, fmt.Errorf("denials: %w", err)
		}
		if e.GetBefore() < 0 {
			return nil, fmt.Errorf("denials: the time %d of %s is negative", e.GetBefore(), id)
		}
		ids[id] = time.Time{}
		if e.GetBefore() > 0 {
			ids[id] = time.UnixMilli(e.GetBefore())
		}
	}
	return identity.NewDenials(d.GetSerials(), ids, d.GetIssuers()), nil
}
