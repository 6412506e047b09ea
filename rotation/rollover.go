// This file holds Rollover, the state machine by which one root takes the
// place of another.

package rotation

import (
	"fmt"
	"time"
)

// Phase is how far a rollover is.
type Phase string

// The phases, in their order. Idle is the zero value: there is no rollover.
const (
	Idle      Phase = ""
	Prepared  Phase = "prepared"  // the new root is being made; nobody has heard of it
	Published Phase = "published" // both roots are in the bundles; the old one issues
	Active    Phase = "active"    // both roots are in the bundles; the new one issues
	Retiring  Phase = "retiring"  // nobody live serves the old one's leaves; the last clients settle
	Removed   Phase = "removed"   // the old root has left the bundles
	Aborted   Phase = "aborted"   // the new root was given up before it issued anything
)

// Phases returns the closed list of phases in their order.
func Phases() []Phase {
	return []Phase{Idle, Prepared, Published, Active, Retiring, Removed, Aborted}
}

// String prints the phase; Idle prints as "idle".
func (p Phase) String() string {
	if p == Idle {
		return "idle"
	}
	return string(p)
}

// Rests reports whether no rollover is under way.
func (p Phase) Rests() bool { return p == Idle || p == Removed || p == Aborted }

// Occurrence is what can happen to a rollover.
type Occurrence string

// The occurrences.
const (
	Start   Occurrence = "start"   // an operator or the clock asks for a rollover
	Made    Occurrence = "made"    // key and certificates of the new root are there
	Look    Occurrence = "look"    // the gate was looked at
	Advance Occurrence = "advance" // an operator asks for the next step
	Force   Occurrence = "force"   // an operator takes the next step past its gate
	Abort   Occurrence = "abort"   // an operator gives the new root up
	Taint   Occurrence = "taint"   // the old root can't be trusted any more
)

// Occurrences returns the closed list of occurrences in a fixed order.
func Occurrences() []Occurrence {
	return []Occurrence{Start, Made, Look, Advance, Force, Abort, Taint}
}

// Action is what the caller does once the next state is durable. Each may be
// done twice with the effect of once. There is no action that has the new
// root sign the old one.
type Action string

// The actions.
const (
	Make     Action = "make"     // make the new root's key, its certificate, and its cross-certificate by the old root
	Publish  Action = "publish"  // put both roots into the bundles
	Activate Action = "activate" // issue under the new root, and have every leaf issued anew at once
	Withdraw Action = "withdraw" // take the old root out of the bundles
	Retire   Action = "retire"   // destroy the old root's key
	Discard  Action = "discard"  // take the new root out of the bundles, and destroy its key
)

// Event is an occurrence with the gate as it was found.
type Event struct {
	Occurrence Occurrence
	// Clean says that nobody live stands in the way of the step out of the
	// present phase: out of Published, every live node and proxy holds both
	// roots; out of Active and Retiring, none serves a leaf of the old root.
	Clean bool
}

// Rollover is the state of one rollover. It is a value; Next returns the one
// after it. What its JSON holds is durable; how long the gate has been clean
// is not, so that a restart waits anew.
type Rollover struct {
	Phase     Phase     `json:"phase,omitempty"`
	Emergency bool      `json:"emergency,omitempty"`
	Manual    bool      `json:"manual,omitempty"` // takes no step by itself
	Since     time.Time `json:"since,omitzero"`   // when the phase began
	// Settle is how long the gate out of Retiring must have been clean, for
	// clients that acknowledge nothing.
	Settle time.Duration `json:"settle,omitempty"`

	clean time.Time // since when the gate is clean; zero while it is held
}

// Illegal says that an occurrence has no exit in a phase, or that the gate
// holds the step that was asked for.
type Illegal struct {
	Phase      Phase
	Occurrence Occurrence
	Why        string
}

// Error says what cannot be done, and why.
func (e *Illegal) Error() string {
	return fmt.Sprintf("%s in the phase %s: %s", e.Occurrence, e.Phase, e.Why)
}

// Exit is one legal way out of a phase.
type Exit struct {
	From       Phase
	Occurrence Occurrence
	To         Phase
	Gate       Gate
	Actions    []Action
}

// Gate is what must hold before an exit is taken.
type Gate string

// The gates.
const (
	Open    Gate = ""        // none
	Clean   Gate = "clean"   // nobody live stands in the way
	Settled Gate = "settled" // the same, for the settle time
)

// Exits returns every legal exit, in the order of phases and occurrences.
func Exits() []Exit {
	var all []Exit
	for _, p := range []Phase{Idle, Removed, Aborted} {
		all = append(all, Exit{p, Start, Prepared, Open, []Action{Make}}, Exit{p, Taint, Prepared, Open, []Action{Make}})
	}
	return append(all,
		Exit{Removed, Look, Removed, Open, []Action{Retire}},
		Exit{Aborted, Look, Aborted, Open, []Action{Discard}},
		Exit{Prepared, Made, Published, Open, []Action{Publish}},
		Exit{Prepared, Look, Prepared, Open, []Action{Make}},
		Exit{Prepared, Abort, Aborted, Open, []Action{Discard}},
		Exit{Prepared, Taint, Prepared, Open, []Action{Make}},
		Exit{Published, Look, Active, Clean, []Action{Activate}},
		Exit{Published, Advance, Active, Clean, []Action{Activate}},
		Exit{Published, Force, Active, Open, []Action{Activate}},
		Exit{Published, Abort, Aborted, Open, []Action{Discard}},
		Exit{Published, Taint, Active, Open, []Action{Activate}},
		Exit{Active, Look, Retiring, Clean, nil},
		Exit{Active, Advance, Retiring, Clean, nil},
		Exit{Active, Force, Retiring, Open, nil},
		Exit{Active, Taint, Active, Open, []Action{Activate}},
		Exit{Retiring, Look, Removed, Settled, []Action{Withdraw, Retire}},
		Exit{Retiring, Advance, Removed, Settled, []Action{Withdraw, Retire}},
		Exit{Retiring, Force, Removed, Open, []Action{Withdraw, Retire}},
		Exit{Retiring, Taint, Retiring, Open, nil},
	)
}

// exits are the legal exits by phase and occurrence.
var exits = func() map[Phase]map[Occurrence]Exit {
	m := map[Phase]map[Occurrence]Exit{}
	for _, x := range Exits() {
		if m[x.From] == nil {
			m[x.From] = map[Occurrence]Exit{}
		}
		m[x.From][x.Occurrence] = x
	}
	return m
}()

// Next returns the state after an event at now, and what is to be done once
// that state is durable. The error is an *Illegal, and the state then stays
// as it was but for what it knows of its gate. A Look whose gate is held, or
// that would step in manual mode, is no error and moves nothing.
func (r Rollover) Next(e Event, now time.Time) (Rollover, []Action, error) {
	x, legal := exits[r.Phase][e.Occurrence]
	if !legal {
		return r, nil, &Illegal{r.Phase, e.Occurrence, whyNot(r.Phase, e.Occurrence)}
	}
	if e.Occurrence == Look || e.Occurrence == Advance {
		r = r.looked(e.Clean, now)
	}
	if why := r.held(x.Gate, e, now); why != "" {
		if e.Occurrence == Look {
			return r, nil, nil
		}
		return r, nil, &Illegal{r.Phase, e.Occurrence, why}
	}
	if e.Occurrence == Look && r.Manual && x.Gate != Open {
		return r, nil, nil
	}
	next := r
	switch e.Occurrence {
	case Start:
		next = Rollover{Settle: r.Settle, Manual: r.Manual}
	case Taint:
		if r.Phase.Rests() {
			next = Rollover{Settle: r.Settle}
		}
		next.Emergency, next.Manual = true, false
	case Made:
		if r.Emergency {
			x.To, x.Actions = Active, []Action{Publish, Activate}
		}
	}
	if next.Phase != x.To || e.Occurrence == Start {
		next.Phase, next.Since, next.clean = x.To, now.Round(0), time.Time{}
	}
	if x.From == Active && x.To == Retiring && e.Clean {
		next.clean = now // the same gate: it goes on being clean
	}
	return next, x.Actions, nil
}

// looked takes in what was found of the gate. A clock that was set back
// begins the wait anew.
func (r Rollover) looked(clean bool, now time.Time) Rollover {
	switch {
	case !clean:
		r.clean = time.Time{}
	case r.clean.IsZero() || now.Before(r.clean):
		r.clean = now
	}
	return r
}

// held says why a gate keeps an event from its exit, "" where it doesn't.
func (r Rollover) held(g Gate, e Event, now time.Time) string {
	switch {
	case g == Open:
		return ""
	case !e.Clean:
		return "the gate is held: see who lacks, or force it"
	case g == Settled && now.Sub(r.clean) < r.Settle:
		return fmt.Sprintf("clients that acknowledge nothing settle for %s more", (r.Settle - now.Sub(r.clean)).Round(time.Second))
	}
	return ""
}

// Wake returns when a look may move what none moves now, and zero where only
// news can.
func (r Rollover) Wake() time.Time {
	if r.Phase != Retiring || r.clean.IsZero() || r.Manual {
		return time.Time{}
	}
	return r.clean.Add(r.Settle)
}

// CleanSince returns since when the gate has been clean, zero while it is
// held.
func (r Rollover) CleanSince() time.Time { return r.clean }

// BothTrusted reports whether both roots belong into bundles.
func (r Rollover) BothTrusted() bool {
	return r.Phase == Published || r.Phase == Active || r.Phase == Retiring
}

// NewIssues reports whether the new root is the one that issues.
func (r Rollover) NewIssues() bool {
	return r.Phase == Active || r.Phase == Retiring || r.Phase == Removed
}

// whyNot words why a phase has no exit for an occurrence.
func whyNot(p Phase, o Occurrence) string {
	switch {
	case o == Start:
		return "a rollover is under way already"
	case p.Rests():
		return "no rollover is under way"
	case o == Abort:
		return "the new root issues already: leaves of it are served, so it can't be taken back; let it finish, and start another"
	case o == Made:
		return "the new root was made before"
	}
	return "the new root is still being made"
}
