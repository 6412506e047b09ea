// This file holds the counting of requests. What is alike in client, target
// and verdict is one record for a window of time; where clients ask for more
// than is told apart, first the path is left out, then method and host, then
// the client. Every request is in exactly one record.

package proxy

import (
	"net/netip"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
)

// Bounds of what is told apart within a window.
const (
	// requestKeys bounds the groups of requests for each second of the window,
	// and requestKeysMost those of a whole window. One client has at most half
	// of them.
	requestKeys     = 100
	requestKeysMost = 4096
	// maxPath, maxHost and maxMethod bound what a record names of a request.
	// What is longer is left out: cut off it would be another one.
	maxPath   = 1024
	maxHost   = 255
	maxMethod = 64
)

// asked is what tells requests of one client apart.
type asked struct {
	method, host, path string
	sni                string
	destination        netip.Addr
	remote             netip.Addr // where it is not the source
	fold               fold
}

// fold is how much is left out.
type fold uint8

const (
	foldNothing fold = iota
	foldPath
	foldHost   // and what foldPath leaves out
	foldClient // and what foldHost leaves out
)

// names are what a record says of it.
func (f fold) names() []string { return audit.Foldings()[:f] }

// folded leaves out what f says.
func (a alike) folded(f fold) alike {
	if f >= foldPath {
		a.asked.path = ""
	}
	if f >= foldHost {
		a.asked.method, a.asked.host = "", ""
	}
	if f >= foldClient {
		a = alike{kind: a.kind, verdict: a.verdict, reason: a.reason, direction: a.direction, transport: a.transport,
			server: a.server, port: a.port, rule: -1}
	}
	a.asked.fold = f
	return a
}

// visitorKey is a client of requests, as far as fairness goes.
type visitorKey struct {
	client string
	source netip.Addr
}

// requestTallies counts requests of the running window. It belongs to a
// reporter, whose mutex guards it.
type requestTallies struct {
	every   time.Duration
	limit   int // groups told apart in full; a quarter of it in each further way
	ends    time.Time
	all     map[alike]*audit.Event
	told    [foldClient + 1]int // groups, by how much they leave out
	clients map[visitorKey]int  // groups told apart in full
}

func newRequestTallies(every time.Duration) requestTallies {
	limit := min(requestKeysMost, requestKeys*max(1, int(every/time.Second)))
	return requestTallies{every: every, limit: limit, all: map[alike]*audit.Event{}, clients: map[visitorKey]int{}}
}

// find returns the record that counts requests of the key, or nil and the key
// of a record that is to be made.
func (t *requestTallies) find(key alike) (*audit.Event, alike) {
	if len(key.asked.path) > maxPath {
		key = key.folded(foldPath)
	}
	if len(key.asked.host) > maxHost || len(key.asked.method) > maxMethod {
		key = key.folded(foldHost)
	}
	for {
		if e := t.all[key]; e != nil {
			return e, key
		}
		full := t.told[key.asked.fold] >= t.limit/4
		if key.asked.fold == foldNothing {
			full = t.told[foldNothing] >= t.limit || t.clients[visitorKey{key.client, key.source}] >= t.limit/2
		}
		if !full || key.asked.fold == foldClient {
			return nil, key
		}
		key = key.folded(key.asked.fold + 1)
	}
}

// put enters the record of a key that find returned.
func (t *requestTallies) put(key alike, e *audit.Event) {
	// Substrings would keep whole headers.
	key.asked.method, key.asked.host, key.asked.path = strings.Clone(key.asked.method), strings.Clone(key.asked.host), strings.Clone(key.asked.path)
	if len(t.all) == 0 {
		t.ends = e.Time.Add(t.every)
	}
	t.told[key.asked.fold]++
	if key.asked.fold == foldNothing {
		t.clients[visitorKey{key.client, key.source}]++
	}
	e.FirstTime, e.Count = e.Time, max(1, e.Count)
	e.Method, e.Host, e.Path = key.asked.method, key.asked.host, key.asked.path
	if e.Folded = key.asked.fold.names(); key.asked.fold == foldClient {
		e.ClientID, e.Source, e.Remote, e.Destination, e.SNI = "", "", "", "", ""
		e.Policy, e.Rule, e.Policies, e.Generation, e.Mode, e.ModeSource = "", nil, nil, 0, "", ""
		e.AuditPolicy, e.DryRun, e.DryRunReason, e.DryRunPolicy, e.DryRunRule = "", "", "", "", nil
	}
	t.all[key] = e
}

// merge counts a record that was made.
func (t *requestTallies) merge(e *audit.Event, source netip.Addr) {
	key := alikeOf(e, source)
	key.asked = asked{method: e.Method, host: e.Host, path: e.Path, sni: e.SNI}
	key.asked.destination, _ = netip.ParseAddr(e.Destination)
	key.asked.remote, _ = netip.ParseAddr(e.Remote)
	if len(e.Folded) > 0 {
		key = key.folded(fold(len(e.Folded)))
	}
	counted, key := t.find(key)
	if counted == nil {
		e.Detail, e.ClientSerial = "", ""
		t.put(key, e)
		return
	}
	counted.Time, counted.Count = e.Time, counted.Count+max(1, e.Count)
}

// due reports whether the window is over.
func (t *requestTallies) due(now time.Time) bool { return len(t.all) > 0 && !now.Before(t.ends) }

// take returns the records of the window and begins another.
func (t *requestTallies) take() map[alike]*audit.Event {
	all := t.all
	*t = newRequestTallies(t.every)
	return all
}
