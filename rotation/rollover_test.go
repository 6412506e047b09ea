// This file holds the tests of the rollover's state machine: every phase with
// every occurrence, what no walk may ever do, and the page that describes it.

package rotation

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(p Phase) Rollover { return Rollover{Phase: p, Since: began, Settle: 30 * time.Second} }

// TestEveryPhaseWithEveryOccurrence holds each pair against a table that is
// written out: what is not in it is refused and changes nothing.
func TestEveryPhaseWithEveryOccurrence(t *testing.T) {
	want := map[string]string{ // clean and settled
		"idle start": "prepared make", "removed start": "prepared make", "aborted start": "prepared make",
		"idle taint": "prepared make", "removed taint": "prepared make", "aborted taint": "prepared make",
		"removed look": "removed retire", "aborted look": "aborted discard",
		"prepared made": "published publish", "prepared look": "prepared make", "prepared abort": "aborted discard", "prepared taint": "prepared make",
		"published look": "active activate", "published advance": "active activate", "published force": "active activate",
		"published abort": "aborted discard", "published taint": "active activate",
		"active look": "retiring ", "active advance": "retiring ", "active force": "retiring ", "active taint": "active activate",
		"retiring look": "removed withdraw retire", "retiring advance": "removed withdraw retire",
		"retiring force": "removed withdraw retire", "retiring taint": "retiring ",
	}
	for _, p := range Phases() {
		for _, o := range Occurrences() {
			name := fmt.Sprintf("%s %s", p, o)
			r := at(p).looked(true, began)
			next, actions, err := r.Next(Event{o, true}, began.Add(time.Minute))
			if expected, legal := want[name]; !legal {
				if _, ok := errors.AsType[*Illegal](err); !ok || next != r || actions != nil {
					t.Errorf("%s: %v %v %v", name, next, actions, err)
				}
			} else if got := strings.TrimSpace(fmt.Sprintf("%s %s", next.Phase, join(actions))); err != nil || got != strings.TrimSpace(expected) {
				t.Errorf("%s: %s (%v), want %s", name, got, err, expected)
			}
			if len(exits[p]) == 0 {
				t.Errorf("no way out of %s", p)
			}
		}
	}
}

func join(actions []Action) string {
	var out []string
	for _, a := range actions {
		out = append(out, string(a))
	}
	return strings.Join(out, " ")
}

func TestAHeldGateMovesNothing(t *testing.T) {
	for _, p := range []Phase{Published, Active, Retiring} {
		r, actions, err := at(p).Next(Event{Look, false}, began.Add(time.Hour))
		if err != nil || r.Phase != p || actions != nil {
			t.Errorf("%s: a look moved it to %s: %v %v", p, r.Phase, actions, err)
		}
		if r, actions, err = at(p).Next(Event{Advance, false}, began.Add(time.Hour)); err == nil || r.Phase != p || actions != nil {
			t.Errorf("%s: advance moved it to %s: %v", p, r.Phase, actions)
		}
	}
}

func TestRemovalWaitsForTheSettleTimeWithoutABreak(t *testing.T) {
	r, now := at(Retiring), began
	look := func(clean bool, after time.Duration, want Phase) {
		t.Helper()
		now = now.Add(after)
		if r, _, _ = r.Next(Event{Look, clean}, now); r.Phase != want {
			t.Fatalf("at %v: %s, want %s", now.Sub(began), r.Phase, want)
		}
	}
	look(true, 0, Retiring)
	look(true, 29*time.Second, Retiring)
	look(false, time.Second, Retiring) // someone came back with an old leaf
	look(true, time.Second, Retiring)
	if wake := r.Wake(); !wake.Equal(now.Add(30 * time.Second)) {
		t.Fatalf("wakes at %v", wake)
	}
	look(true, 29*time.Second, Retiring)
	look(true, -time.Hour, Retiring) // the clock was set back: the wait begins anew
	look(true, 29*time.Second, Retiring)
	text, _ := json.Marshal(r) // a restart as well
	r = Rollover{}
	if err := json.Unmarshal(text, &r); err != nil || !r.Wake().IsZero() {
		t.Fatal(err, r)
	}
	look(true, time.Second, Retiring)
	look(true, 30*time.Second, Removed)
}

func TestAManualRolloverStepsOnRequestAlone(t *testing.T) {
	r := at(Published)
	r.Manual = true
	if next, _, err := r.Next(Event{Look, true}, began); err != nil || next.Phase != Published || !next.Wake().IsZero() {
		t.Fatal(next, err)
	}
	if next, _, err := r.Next(Event{Advance, true}, began); err != nil || next.Phase != Active {
		t.Fatal(next, err)
	}
}

func TestAnEmergencyWaitsForNobodyToIssueAnew(t *testing.T) {
	r, _, err := at(Idle).Next(Event{Taint, false}, began)
	if err != nil || !r.Emergency {
		t.Fatal(r, err)
	}
	r, actions, err := r.Next(Event{Made, false}, began)
	if err != nil || r.Phase != Active || !slices.Equal(actions, []Action{Publish, Activate}) {
		t.Fatal(r, actions, err)
	}
	// The next rollover is an ordinary one again.
	r.Phase = Removed
	if r, _, _ = r.Next(Event{Start, false}, began); r.Emergency || r.Phase != Prepared {
		t.Fatal(r)
	}
}

// world is what the actions of a walk did.
type world struct {
	r                Rollover
	oldTrusted       bool
	newTrusted       bool
	newIssues, ended bool
}

// TestNoWalkBreaksTheInvariants takes every walk of some length and holds the
// world that its actions make against what must never happen.
func TestNoWalkBreaksTheInvariants(t *testing.T) {
	seen := map[string]bool{}
	var walk func(w world, depth int, path string)
	walk = func(w world, depth int, path string) {
		state := fmt.Sprintf("%d %+v", depth, w)
		if depth == 0 || seen[state] {
			return
		}
		seen[state] = true
		for _, o := range Occurrences() {
			for _, clean := range []bool{false, true} {
				for _, pause := range []time.Duration{time.Second, time.Minute} {
					now := began.Add(time.Duration(20-depth) * time.Minute).Add(pause)
					next, path := w, fmt.Sprintf("%s %s/%v", path, o, clean)
					var actions []Action
					next.r, actions, _ = w.r.Next(Event{o, clean}, now)
					for _, a := range actions {
						next.do(t, a, path)
					}
					next.check(t, w, Event{o, clean}, path)
					walk(next, depth-1, path)
				}
			}
		}
	}
	walk(world{r: Rollover{Settle: 30 * time.Second}, oldTrusted: true}, 7, "")
}

func (w *world) do(t *testing.T, a Action, path string) {
	switch a {
	case Make, Retire:
	case Publish:
		w.newTrusted = true
	case Activate:
		w.newIssues = true
	case Withdraw:
		w.oldTrusted, w.ended = false, true
	case Discard:
		w.newTrusted = false
	default:
		t.Fatalf("%s: the action %s is none that is known", path, a)
	}
}

func (w *world) check(t *testing.T, before world, e Event, path string) {
	t.Helper()
	if w.r.Phase == Prepared && before.r.Phase == Removed { // a new rollover: new became old
		*w = world{r: w.r, oldTrusted: true}
		return
	}
	switch {
	case w.r.Phase != Removed && w.r.BothTrusted() != (w.oldTrusted && w.newTrusted):
		t.Fatalf("%s: in %s old is trusted: %v, new: %v", path, w.r.Phase, w.oldTrusted, w.newTrusted)
	case w.newIssues && !w.newTrusted:
		t.Fatalf("%s: a root issues that nobody trusts", path)
	case w.r.NewIssues() != w.newIssues:
		t.Fatalf("%s: in %s the new root issues: %v", path, w.r.Phase, w.newIssues)
	case before.oldTrusted && !w.oldTrusted && !e.Clean && e.Occurrence != Force:
		t.Fatalf("%s: the old root was removed while someone live needs it", path)
	case before.oldTrusted && !w.oldTrusted && !before.newIssues:
		t.Fatalf("%s: the old root was removed while it issues", path)
	case w.r.Phase == Aborted && (w.newTrusted || w.newIssues || !w.oldTrusted):
		t.Fatalf("%s: an aborted rollover left something: %+v", path, w)
	case before.newIssues && w.r.Phase == Aborted:
		t.Fatalf("%s: aborted after the new root issued", path)
	}
}

// TestThePageListsEveryExit compares the page's table with the machine's.
func TestThePageListsEveryExit(t *testing.T) {
	text, err := os.ReadFile("../deploy/docs/rollover.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, exist []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 {
			continue
		}
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		if slices.Contains(Occurrences(), Occurrence(cells[1])) {
			listed = append(listed, strings.Join(cells, "|"))
		}
	}
	for _, x := range Exits() {
		gate := string(x.Gate)
		if x.Gate == Open {
			gate = "none"
		}
		exist = append(exist, fmt.Sprintf("%s|%s|%s|%s|%s", x.From, x.Occurrence, x.To, gate, strings.ReplaceAll(join(x.Actions), " ", ", ")))
	}
	slices.Sort(listed)
	slices.Sort(exist)
	if !slices.Equal(listed, exist) {
		t.Fatalf("the page lists\n%s\nthe machine has\n%s", strings.Join(listed, "\n"), strings.Join(exist, "\n"))
	}
	for _, p := range Phases() {
		if !strings.Contains(string(text), "| `"+p.String()+"` |") {
			t.Errorf("the page doesn't say what is on disk in %s", p)
		}
	}
}
