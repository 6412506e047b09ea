// This file holds how a rotation is shown: as JSON with the time of each
// phase, and for a person.

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/wire"
)

// rotationView is a rotation in JSON and YAML.
type rotationView struct {
	Target    string           `json:"target"`
	Name      string           `json:"name,omitempty"`
	ID        string           `json:"id,omitempty"`
	Phase     string           `json:"phase"`
	Emergency bool             `json:"emergency,omitempty"`
	Manual    bool             `json:"manual,omitempty"`
	Since     time.Time        `json:"since,omitzero"`
	Settle    float64          `json:"settle_seconds,omitempty"`
	StartedBy string           `json:"started_by,omitempty"`
	Reason    string           `json:"reason,omitempty"`
	OldRoot   string           `json:"old_root,omitempty"`
	NewRoot   string           `json:"new_root,omitempty"`
	Acked     uint32           `json:"acked"`
	Live      uint32           `json:"live"`
	Next      string           `json:"next,omitempty"`
	Gate      string           `json:"gate,omitempty"`
	Earliest  time.Time        `json:"earliest,omitzero"`
	HighWater time.Time        `json:"high_water,omitzero"`
	Holders   []rotationHolder `json:"holders,omitempty"`
	Breaks    []string         `json:"breaks,omitempty"`
	Phases    []rotationPhase  `json:"phases,omitempty"`
	Seconds   float64          `json:"seconds,omitempty"` // of all phases together
	Fault     string           `json:"fault,omitempty"`
}

type rotationHolder struct {
	Node        string    `json:"node"`
	Connected   bool      `json:"connected"`
	Lacks       string    `json:"lacks"`
	Since       time.Time `json:"since,omitzero"`
	LastContact time.Time `json:"last_contact,omitzero"`
	Until       time.Time `json:"until,omitzero"` // when all it was issued has ended
	Proxies     []string  `json:"proxies,omitempty"`
}

// rotationPhase is one phase with how long it took, and how many of the live
// nodes had followed when it ended.
type rotationPhase struct {
	Phase   string    `json:"phase"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Acked   uint32    `json:"acked"`
	Live    uint32    `json:"live"`
	Forced  bool      `json:"forced,omitempty"` // it was ended by force
	Actor   string    `json:"actor,omitempty"`  // who ended it, where a person did
}

func toRotationView(s *wire.RotationState) rotationView {
	v := rotationView{
		Target: s.GetTarget(), Name: s.GetName(), ID: s.GetId(), Phase: s.GetPhase(), Emergency: s.GetEmergency(), Manual: s.GetManual(),
		Since: stamp(s.GetSince()), Settle: float64(s.GetSettle()) / 1000, StartedBy: s.GetStartedBy(), Reason: s.GetReason(),
		OldRoot: s.GetOldHash(), NewRoot: s.GetNewHash(), Acked: s.GetAcked(), Live: s.GetLive(), Next: s.GetNext(), Gate: s.GetGate(),
		Earliest: stamp(s.GetEarliest()), HighWater: stamp(s.GetHighWater()), Breaks: s.GetBreaks(), Fault: s.GetFault(),
	}
	for _, h := range s.GetHolders() {
		v.Holders = append(v.Holders, rotationHolder{Node: h.GetNode(), Connected: h.GetConnected(), Lacks: h.GetLacks(), Since: stamp(h.GetSince()),
			LastContact: stamp(h.GetLastContact()), Until: stamp(h.GetUntil()), Proxies: h.GetProxies()})
	}
	steps := s.GetSteps()
	for i, step := range steps {
		p := rotationPhase{Phase: step.GetPhase(), Began: stamp(step.GetAt())}
		end := s.GetClock()
		if i+1 < len(steps) {
			next := steps[i+1]
			end = next.GetAt()
			p.Acked, p.Live, p.Forced, p.Actor = next.GetAcked(), next.GetLive(), next.GetForced(), next.GetActor()
		} else if ended(s) {
			continue // it lasts
		}
		p.Seconds = float64(end-step.GetAt()) / 1000
		v.Phases = append(v.Phases, p)
		v.Seconds += p.Seconds
	}
	return v
}

// progress is one line about where a rotation is.
func progress(s *wire.RotationState) string {
	line := s.GetPhase()
	if s.GetGate() != "" {
		line += ": " + s.GetGate()
	}
	var holds []string
	for i, h := range s.GetHolders() {
		if i == 3 {
			holds = append(holds, fmt.Sprintf("%d more", len(s.GetHolders())-i))
			break
		}
		holds = append(holds, h.GetNode())
	}
	if len(holds) > 0 {
		line += "; held by " + strings.Join(holds, ", ")
	}
	if s.GetFault() != "" {
		line += "; " + s.GetFault()
	}
	return plain(line)
}

func (c *cli) showRotation(s *wire.RotationState) error {
	v := toRotationView(s)
	return c.show(v, func() error { return c.printRotation(v, stamp(s.GetClock())) })
}

func (c *cli) printRotation(v rotationView, now time.Time) error {
	what := strings.TrimSpace(v.Target + " " + v.Name)
	if v.ID == "" && v.Phase == "idle" {
		fmt.Fprintf(c.out, "%s: no rotation is under way\n", plain(what))
		return nil
	}
	color := yellow
	if v.Phase == "removed" || v.Phase == "done" {
		color = green
	}
	fmt.Fprintf(c.out, "%s: %s since %s", plain(strings.TrimSpace(what+" "+v.ID)), c.paint(color, v.Phase), ago(v.Since, now))
	if v.Emergency {
		fmt.Fprint(c.out, ", ", c.paint(red, "an emergency"))
	}
	fmt.Fprintln(c.out)
	if v.OldRoot != "" {
		fmt.Fprintf(c.out, "  old root %s\n  new root %s\n", v.OldRoot, orDash(v.NewRoot))
	}
	if v.Next != "" {
		fmt.Fprintf(c.out, "  next: %s\n", v.Next)
	}
	if v.Gate != "" {
		fmt.Fprintf(c.out, "  gate: %s\n", v.Gate)
	}
	if !v.Earliest.IsZero() {
		fmt.Fprintf(c.out, "  earliest safe step: %s\n", ago(v.Earliest, now))
	}
	if v.Fault != "" {
		fmt.Fprintf(c.out, "  %s %s\n", c.paint(red, "the last try failed:"), plain(v.Fault))
	}
	for _, h := range v.Holders {
		state := "connected"
		if !h.Connected {
			state = "away, last contact " + ago(h.LastContact, now) + ", holds nothing valid " + ago(h.Until, now)
		}
		fmt.Fprintf(c.out, "  held by %s since %s: %s (%s)\n", plain(h.Node), ago(h.Since, now), h.Lacks, state)
		for _, p := range h.Proxies {
			fmt.Fprintf(c.out, "    proxy %s\n", plain(p))
		}
	}
	for _, text := range v.Breaks {
		fmt.Fprintf(c.out, "  forcing breaks: %s\n", plain(text))
	}
	if len(v.Phases) == 0 {
		return nil
	}
	t := table{heading: []string{"PHASE", "TOOK", "NODES", "ENDED BY"}}
	for _, p := range v.Phases {
		by := orDash(p.Actor)
		if p.Forced {
			by += " (forced)"
		}
		t.add(p.Phase, fmt.Sprintf("%.3fs", p.Seconds), fmt.Sprintf("%d of %d", p.Acked, p.Live), by)
	}
	return t.print(c.out)
}

// warnBreaks shows what a forced step breaks.
func (c *cli) warnBreaks(s *wire.RotationState) {
	if len(s.GetBreaks()) == 0 {
		fmt.Fprintln(c.err, "nothing live stands in the way of the next step")
	}
	for _, text := range s.GetBreaks() {
		fmt.Fprintf(c.err, "forcing breaks: %s\n", plain(text))
	}
}
