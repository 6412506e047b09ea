// This file holds how recorded requests, and connections that may have carried
// some, are judged anew: what of them was not recorded is never guessed.

package main

import (
	"cmp"
	"slices"
	"strings"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
)

// maxTargets bounds the targets of requests that a change tells apart, and
// shownTargets how many it names.
const (
	maxTargets   = 1000
	shownTargets = 5
)

// asked is a target of requests and how often it was asked for.
type asked struct {
	Target string `json:"target"` // METHOD host/path
	Count  uint64 `json:"count"`
}

// boundsKey is a workload and what is not known of requests to it.
type boundsKey struct {
	registration string
	unknown      policy.Unknown
}

// notRecorded is what a record of requests never has.
var notRecorded = policy.Unknown{Headers: true, Token: true}

// judge decides about a record anew. What that depends on, and was not
// recorded, is returned; the decision then means nothing.
func (r *replay) judge(e *audit.Event, reg identity.Registration) (policy.Decision, []string) {
	peer, _ := identity.ParseID(e.ClientID) // zero in plaintext
	c := policy.Connection{Peer: peer, Source: recordedAddr(e.Source), Destination: recordedAddr(e.Destination),
		Port: e.Port, SNI: e.SNI, Remote: recordedAddr(e.Remote)}
	set := r.set(reg)
	switch {
	case e.Kind == audit.KindRequest:
		return r.judgeRequest(e, reg, c)
	case e.ByRequest:
		return set.Entrance(c), nil
	case set.AsksRequests(e.Port) && e.Exception == "" && mayBeHTTP(e):
		return r.judgeUnasked(reg, c)
	}
	return r.decide(reg, c), nil
}

// mayBeHTTP reports whether a connection that was judged as a whole would be
// judged by request, if policies asked for what only requests have.
func mayBeHTTP(e *audit.Event) bool {
	switch e.Protocol {
	case audit.ProtocolHTTP, audit.ProtocolProbe:
		return true
	case "":
		return e.Transport == audit.TransportMTLS
	}
	return false
}

// judgeRequest decides about requests that are counted in one record.
func (r *replay) judgeRequest(e *audit.Event, reg identity.Registration, c policy.Connection) (policy.Decision, []string) {
	unknown := notRecorded
	switch {
	case slices.Contains(e.Folded, audit.FoldedClient):
		return policy.Decision{}, []string{"the client, not told apart"}
	case slices.Contains(e.Folded, audit.FoldedHost):
		unknown.Path, unknown.Host = true, true
	case slices.Contains(e.Folded, audit.FoldedPath):
		unknown.Path = true
	}
	req := policy.Request{Connection: c, HTTP: &policy.HTTP{Method: e.Method, Host: e.Host, Path: e.Path}}
	d, certain, fields := r.boundsOf(reg, unknown).Decide(&req)
	if certain {
		return d, nil
	}
	for i, f := range fields {
		fields[i] = f + missing(f, unknown)
	}
	return d, fields
}

// missing says why a field of a record is not known.
func missing(field string, u policy.Unknown) string {
	_, name, _ := strings.Cut(field, " ")
	if name == "path" || u.Host && (name == "host" || name == "method" || name == "header host") {
		return ", not told apart"
	}
	return ", not recorded"
}

// judgeUnasked decides about a connection whose requests were not recorded,
// as no policy asked for what they have: it is certain where neither the
// requests nor, if it was not HTTP, the connection could be judged otherwise.
func (r *replay) judgeUnasked(reg identity.Registration, c policy.Connection) (policy.Decision, []string) {
	whole := r.decide(reg, c)
	req := policy.Request{Connection: c, HTTP: &policy.HTTP{}}
	d, certain, fields := r.boundsOf(reg, policy.Unknown{Headers: true, Token: true, Path: true, Host: true}).Decide(&req)
	switch {
	case certain && d.Allowed == whole.Allowed:
		return whole, nil
	case certain:
		return whole, []string{"whether the connection was HTTP, not recorded"}
	}
	for i := range fields {
		fields[i] += " of the connection's requests, not recorded"
	}
	return whole, fields
}

func (r *replay) boundsOf(reg identity.Registration, u policy.Unknown) *policy.Bounds {
	key := boundsKey{reg.Path(), u}
	b := r.bounds[key]
	if b == nil {
		b = policy.CompileBounds(r.settings, policy.Workload{Namespace: reg.Namespace, Labels: reg.Labels}, r.pas, r.aps, 0, u)
		r.bounds[key] = b
	}
	return b
}

// ask remembers what a request of the change was for.
func (c *replayed) ask(e *audit.Event, n uint64) {
	if e.Kind != audit.KindRequest {
		return
	}
	if c.targets == nil {
		c.targets = map[string]uint64{}
	}
	target := targetOf(e)
	if _, known := c.targets[target]; known || len(c.targets) < maxTargets {
		c.targets[target] += n
	}
}

// targetOf writes what was asked for, with "*" for what is not told apart.
func targetOf(e *audit.Event) string {
	return cmp.Or(e.Method, "*") + " " + cmp.Or(e.Host, "*") + cmp.Or(e.Path, "/*")
}

// mostAsked returns the targets that were asked for most.
func (c *replayed) mostAsked() []asked {
	var all []asked
	for target, n := range c.targets {
		all = append(all, asked{target, n})
	}
	slices.SortFunc(all, func(a, b asked) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Target, b.Target)) })
	return all[:min(len(all), shownTargets)]
}
