// Package directory is a node's part in the registry of endpoints: what its
// proxies announce, on its way to the server, and what the server tells of
// others, on its way to proxies that ask.
//
// It owns both states and the news of their changes. It leaves the stream to
// upstream, who may announce to endpoint, and the meaning of deltas to
// identity/directory. It stands on the second floor, inside the agent's room.
package directory

import (
	"fmt"
	"sync"
	"time"

	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/wire"
)

// Gathering is how long after the agent's start proxies may take to come back.
// Until then a report is not complete, so that the restart of an agent takes
// nothing away.
const Gathering = 5 * time.Second

// Directory is safe for concurrent use.
type Directory struct {
	born time.Time

	mu        sync.Mutex
	announced map[*Announcement][]*wire.Endpoint // guarded by mu
	count     int                                // guarded by mu: endpoints announced
	wanted    bool                               // guarded by mu
	report    news                               // guarded by mu: of announced and wanted

	replica directory.Replica // guarded by mu
	set     *directory.Set    // guarded by mu: nil while nothing complete is there
	shown   news              // guarded by mu: of set
}

// news is a channel that is closed at the next change.
type news struct{ changed chan struct{} }

func (n *news) wait() <-chan struct{} {
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	return n.changed
}

func (n *news) tell() {
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}

// New returns a directory of an agent that starts now.
func New(now time.Time) *Directory {
	return &Directory{born: now, announced: map[*Announcement][]*wire.Endpoint{}}
}

// Announcement is what one proxy announces, until it is closed.
type Announcement struct{ d *Directory }

// Announce opens an empty announcement.
func (d *Directory) Announce() *Announcement { return &Announcement{d} }

// Set replaces what is announced. The endpoints are not to be changed then.
func (a *Announcement) Set(endpoints []*wire.Endpoint) error {
	d := a.d
	if len(endpoints) > directory.MaxPerProxy {
		return fmt.Errorf("%d endpoints, more than %d", len(endpoints), directory.MaxPerProxy)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	total := d.count - len(d.announced[a]) + len(endpoints)
	if total > directory.MaxPerNode {
		return fmt.Errorf("the proxies of this node announce %d endpoints, more than %d", total, directory.MaxPerNode)
	}
	d.announced[a], d.count = endpoints, total
	d.report.tell()
	return nil
}

// Close takes the announcement back.
func (a *Announcement) Close() {
	d := a.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.announced[a]; ok {
		d.count -= len(d.announced[a])
		delete(d.announced, a)
		d.report.tell()
	}
}

// Want says that a proxy asks for the registry. It is held from then on, also
// for a proxy that comes while the server is away.
func (d *Directory) Want() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.wanted {
		d.wanted = true
		d.report.tell()
	}
}

// Report is all that the server is to be told, and a channel that is closed
// when there is more. Again says when the same report says more, zero for
// never.
func (d *Directory) Report(now time.Time) (r *wire.EndpointReport, changed <-chan struct{}, again time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r = &wire.EndpointReport{Subscribe: d.wanted, Complete: now.Sub(d.born) >= Gathering}
	for _, list := range d.announced {
		r.Endpoints = append(r.Endpoints, list...)
	}
	if !r.Complete {
		again = d.born.Add(Gathering).Sub(now)
	}
	return r, d.report.wait(), again
}

// Begin says that a stream to a server has begun, which may keep no registry.
func (d *Directory) Begin(kept bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.replica.Begin()
	if !kept && d.set == nil {
		d.set = directory.NewSet(nil)
		d.shown.tell()
	}
}

// Apply takes a delta of the stream. The fault is a part that was left out.
func (d *Directory) Apply(delta *directory.Delta) (fault error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed, fault := d.replica.Apply(delta)
	if changed {
		d.set, _ = d.replica.Set()
		d.shown.tell()
	}
	return fault
}

// Set returns the registry, nil while it is not known, with its revision and
// a channel that is closed when another takes its place.
func (d *Directory) Set() (set *directory.Set, revision uint64, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set, d.replica.Revision(), d.shown.wait()
}

// Announced and Held are the numbers of endpoints.
func (d *Directory) Announced() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}

// Held is the number of endpoints of the registry that are held.
func (d *Directory) Held() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set.Len()
}
