// This file holds Denials: which certificates count for nothing although they
// have not ended.

package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Denials say which certificates are revoked: by serial, by SPIFFE ID (all of
// it, or what began before a time), and by the subject key identifier of an
// issuer. They are immutable; the zero value, and nil, deny nothing.
type Denials struct {
	serials map[string]bool
	ids     map[ID]time.Time // zero: whatever it began
	issuers map[string]bool  // hex
	hash    [sha256.Size]byte
}

// NewDenials makes Denials. Serials are as Serial prints them, issuers subject
// key identifiers in hex; an ID's time spares certificates whose NotBefore is
// not before it, and zero spares none.
func NewDenials(serials []string, ids map[ID]time.Time, issuers []string) *Denials {
	d := &Denials{serials: map[string]bool{}, ids: maps.Clone(ids), issuers: map[string]bool{}}
	h := sha256.New()
	for _, s := range slices.Sorted(slices.Values(serials)) {
		d.serials[s] = true
		fmt.Fprintf(h, "serial %q\n", s)
	}
	for _, id := range d.IDs() {
		fmt.Fprintf(h, "id %q %d\n", id, d.before(id))
	}
	for _, ski := range slices.Sorted(slices.Values(issuers)) {
		d.issuers[ski] = true
		fmt.Fprintf(h, "issuer %q\n", ski)
	}
	if !d.Empty() {
		h.Sum(d.hash[:0])
	}
	return d
}

func (d *Denials) before(id ID) int64 {
	if t := d.ids[id]; !t.IsZero() {
		return t.UnixMilli()
	}
	return 0
}

// Empty reports whether nothing is denied.
func (d *Denials) Empty() bool {
	return d == nil || len(d.serials)+len(d.ids)+len(d.issuers) == 0
}

// Hash tells contents apart. It is zero where nothing is denied.
func (d *Denials) Hash() [sha256.Size]byte {
	if d == nil {
		return [sha256.Size]byte{}
	}
	return d.hash
}

// Serials returns the denied serials, in order.
func (d *Denials) Serials() []string {
	if d == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(d.serials))
}

// Issuers returns the subject key identifiers of denied issuers, in order.
func (d *Denials) Issuers() []string {
	if d == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(d.issuers))
}

// IDs returns the IDs of which something is denied, in order.
func (d *Denials) IDs() []ID {
	if d == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(d.ids), func(a, b ID) int { return strings.Compare(a.String(), b.String()) })
}

// Before returns from which NotBefore on certificates of an ID are spared,
// zero where none are, and whether anything of it is denied.
func (d *Denials) Before(id ID) (time.Time, bool) {
	if d == nil {
		return time.Time{}, false
	}
	t, ok := d.ids[id]
	return t, ok
}

// Bars reports whether an ID is denied whatever certificate proves it.
func (d *Denials) Bars(id ID) bool {
	t, ok := d.Before(id)
	return ok && t.IsZero()
}

// Denies says why a certificate is denied, with "" where it is not. Issuers
// are the hex key identifiers of all that may have signed in its chain, parted
// by spaces.
func (d *Denials) Denies(id ID, serial string, notBefore time.Time, issuers string) string {
	if d.Empty() {
		return ""
	}
	if d.serials[serial] {
		return "serial " + serial + " is revoked"
	}
	if before, ok := d.ids[id]; ok {
		if before.IsZero() {
			return id.String() + " is revoked"
		}
		if notBefore.Before(before) {
			return fmt.Sprintf("certificates of %s from before %s are revoked", id, before.UTC().Format(time.RFC3339))
		}
	}
	if len(d.issuers) > 0 {
		for ski := range strings.FieldsSeq(issuers) {
			if d.issuers[ski] {
				return "its issuer " + ski + " is revoked"
			}
		}
	}
	return ""
}

// DeniesSVID is Denies for an SVID that is held.
func (d *Denials) DeniesSVID(s SVID) string {
	if d.Empty() || s.IsZero() {
		return ""
	}
	return d.Denies(s.ID, s.Serial(), s.Leaf().NotBefore, Signers(s.Chain))
}

// Signers returns the hex key identifiers of all that may have signed in a
// chain, leaf first: what each certificate names as its issuer, and what the
// authorities are themselves. They are parted by spaces, each once.
func Signers(chain []*x509.Certificate) string {
	var skis []string
	add := func(ski []byte) {
		if text := hex.EncodeToString(ski); text != "" && !slices.Contains(skis, text) {
			skis = append(skis, text)
		}
	}
	for i, c := range chain {
		add(c.AuthorityKeyId)
		if i > 0 {
			add(c.SubjectKeyId)
		}
	}
	return strings.Join(skis, " ")
}
