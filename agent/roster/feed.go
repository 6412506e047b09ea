// This file holds Feed, the roster of the moment and the news of its change.

package roster

import "sync"

// Feed holds the roster of the moment. The zero value holds none. It is safe
// for concurrent use.
type Feed struct {
	mu      sync.Mutex
	current *Roster
	changed chan struct{}
}

// Current returns the roster, or nil while there is none, and a channel that
// is closed when another takes its place.
func (f *Feed) Current() (*Roster, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.current, f.changed
}

// Set puts r in the place of the roster. Nil takes it away.
func (f *Feed) Set(r *Roster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = r
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}
