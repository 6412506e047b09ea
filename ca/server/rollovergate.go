// This file holds the gate of the root's rollover: which nodes are live, what
// each of them still holds, and what forcing a step would break.

package server

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// report is what a node last acknowledged.
type report struct {
	known   bool
	bundles []string // hex SHA-256 of the bundles that it and its proxies hold
	issuers []string // SKIs of the issuers of what they serve
	lagging []string // SPIFFE IDs of proxies that hold an older snapshot
}

// maxReported bounds each list that a node may report.
const maxReported = 4096

func reportOf(a *wire.Ack) report {
	r := report{known: true, issuers: clipAll(a.GetIssuers()), lagging: clipAll(a.GetLagging())}
	for _, b := range a.GetBundles()[:min(len(a.GetBundles()), maxReported)] {
		r.bundles = append(r.bundles, clip(hex.EncodeToString(b), 64))
	}
	return r
}

func clipAll(list []string) []string {
	out := make([]string, 0, min(len(list), maxReported))
	for _, s := range list[:min(len(list), maxReported)] {
		out = append(out, clip(s, 2048))
	}
	return out
}

// holder is one node that holds a step back.
type holder struct {
	node     ca.Node
	presence presence
	lacks    string
	since    time.Time
	until    time.Time // of a silent one: when all that it was issued has ended
}

// standing is how the fleet stands to the next step.
type standing struct {
	phase       rotation.Phase
	acked, live int
	holders     []holder
	until       time.Time // when the first silent holder is let go
	highWater   time.Time
}

func (s standing) clean() bool { return len(s.holders) == 0 }

// names lists up to n holders for a message.
func (s standing) names(n int) []string {
	var out []string
	for i, h := range s.holders {
		if i == n {
			return append(out, fmt.Sprintf("and %d more", len(s.holders)-n))
		}
		out = append(out, h.node.Name+" ("+h.lacks+")")
	}
	return out
}

// maxShown bounds the nodes that an answer names.
const maxShown = 1000

// breaks says what forcing the next step would break, by name. Svids gives
// the workloads whose leaves a node may hold.
func (s standing) breaks(svids func(ca.Node) []string) []string {
	var out []string
	for i, h := range s.holders {
		if i == maxShown {
			return append(out, fmt.Sprintf("and %d more nodes", len(s.holders)-i))
		}
		switch s.phase {
		case rotation.Published:
			text := "node " + h.node.Name + " may hold the old root alone: what runs there takes the new root's leaves only from peers that present the cross-certificate"
			out = append(out, text)
		case rotation.Active, rotation.Retiring:
			text := "node " + h.node.Name + " may serve leaves of the old root, which peers refuse once that is removed"
			if ids := svids(h.node); len(ids) > 0 {
				text += ": " + strings.Join(ids[:min(len(ids), 32)], ", ")
			}
			out = append(out, text)
		}
	}
	return out
}

// radius words what a forced step breaks, for the record.
func (s standing) radius(svids func(ca.Node) []string) string {
	b := s.breaks(svids)
	if len(b) == 0 {
		return "nothing live stood in the way"
	}
	return fmt.Sprintf("%d of %d nodes had not followed: %s", len(s.holders), s.live, strings.Join(b, "; "))
}

// forgetLacking begins a phase: nobody lacks for it yet.
func (v *rollover) forgetLacking() {
	v.looking.Lock()
	defer v.looking.Unlock()
	clear(v.lacking)
}

// standing looks at every node, as it stands to the next step of a record.
func (v *rollover) standing(r rolloverRecord, now time.Time) standing {
	v.looking.Lock()
	defer v.looking.Unlock()
	st := standing{phase: r.State.Phase}
	if r.State.Phase.Rests() || r.State.Phase == rotation.Prepared {
		return st
	}
	s := v.server
	old, mark := s.marks.below(r.Old.ski())
	st.highWater = mark
	clock := v.clock(now)
	hash := s.trust.Load().bundle.Hash()
	wanted := hex.EncodeToString(hash[:])
	for _, node := range s.nodes.all() {
		if node.Evicted {
			continue
		}
		p := s.sessions.of(node.Name)
		lacks := lackOf(r.State, p, wanted, old)
		if lacks == "" {
			delete(v.lacking, node.Name)
			st.acked++
			st.live++
			continue
		}
		var until time.Time
		if !p.connected {
			until, _ = s.exposure(node, now)
			if clock.After(until) || !mark.IsZero() && clock.After(mark) {
				continue // all that it holds has ended
			}
			st.until = sooner(st.until, until.Add(time.Second))
		}
		st.live++
		if v.lacking[node.Name].IsZero() {
			v.lacking[node.Name] = now
		}
		st.holders = append(st.holders, holder{node: node, presence: p, lacks: lacks, since: v.lacking[node.Name], until: until})
	}
	return st
}

// lackOf says what a node lacks for the next step, "" where it lacks nothing.
func lackOf(state rotation.Rollover, p presence, bundle string, old map[string]bool) string {
	switch {
	case !p.held.known && !p.connected && p.lastSeen.IsZero():
		return "not seen since this server's start"
	case !p.held.known:
		return "has not acknowledged yet"
	}
	if state.Phase == rotation.Published {
		switch {
		case len(p.held.lagging) > 0:
			return "a proxy holds an older snapshot"
		case len(p.held.bundles) != 1 || p.held.bundles[0] != bundle:
			return "holds an older bundle"
		}
		return ""
	}
	for _, ski := range p.held.issuers {
		if old[ski] {
			return "serves leaves of the old root"
		}
	}
	return ""
}

// exposure says until when anything that a node was issued is valid, and which
// workloads' SVIDs it may hold.
func (s *Server) exposure(node ca.Node, now time.Time) (until time.Time, ids []string) {
	until = node.NotAfter
	for _, v := range s.live.of(node.ID, now) {
		if v.notAfter.After(until) {
			until = v.notAfter
		}
		if !slices.Contains(ids, v.id) {
			ids = append(ids, v.id)
		}
	}
	return until, ids
}

// svidsOf returns the workloads whose live SVIDs a node may hold.
func (s *Server) svidsOf(node ca.Node) []string {
	_, ids := s.exposure(node, time.Now())
	return ids
}
