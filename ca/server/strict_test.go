// This file holds the tests of the ledger and of the judgement on it.

package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

const (
	apiID = "spiffe://example.org/ns/shop/sa/api"
	webID = "spiffe://example.org/ns/shop/sa/web"
)

// came is the record of a connection to api.
func came(at time.Time, change func(*audit.Event)) audit.Event {
	e := audit.Event{Time: at, Kind: audit.KindConnection, Verdict: audit.VerdictAllowed, Reason: audit.ReasonAllowed,
		Direction: audit.DirectionInbound, Transport: audit.TransportMTLS, ClientID: webID, ServerID: apiID, Reporter: apiID,
		Source: "192.0.2.7:5000", Destination: "192.0.2.8:8080", Port: 8080}
	if change != nil {
		change(&e)
	}
	return e
}

func inPlaintext(e *audit.Event) {
	e.Transport, e.Reason, e.ClientID, e.Protocol = audit.TransportPlaintext, audit.ReasonPlaintextAllowed, "", audit.ProtocolHTTP
}

// report sends records as the node and waits until they are stored.
func (s *stream) report(t testing.TB, lost uint64, events ...audit.Event) {
	t.Helper()
	batch := &wire.RecordBatch{Sequence: 1, Lost: lost}
	for _, e := range events {
		batch.Events = append(batch.Events, audit.Entry{Event: e}.AppendJSON(nil))
	}
	for i, raw := range batch.Events { // an entry without its index
		batch.Events[i] = append([]byte("{"), raw[len(`{"index":0,`):]...)
	}
	if err := s.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Records{Records: batch}}); err != nil {
		t.Fatal(err)
	}
	for s.answer(t).GetRecordsAck().GetSequence() != 1 {
	}
}

func (r *running) strict(t testing.TB, target string, window time.Duration) *wire.StrictWorkload {
	t.Helper()
	resp, err := r.admin.ExplainStrict(t.Context(), &wire.ExplainStrictRequest{Target: target, Window: window.Milliseconds()})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetWorkloads()) != 1 {
		t.Fatalf("%d workloads for %q", len(resp.GetWorkloads()), target)
	}
	return resp.GetWorkloads()[0]
}

func TestAPlaintextClientStandsInTheWayOfStrictUntilTheWindowIsClean(t *testing.T) {
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""), registration("shop", "web", "/ns/shop/sa/web", ""))
	s := r.join(t, "n1", nil).sync(t)
	if w := r.strict(t, "shop/api", time.Hour); w.GetReady() || !strings.Contains(w.GetMissing()[0], "was ever recorded") {
		t.Fatalf("without evidence: %v", w)
	}
	now := time.Now()
	s.report(t, 0,
		came(now.Add(-3*time.Hour), nil),
		came(now.Add(-2*time.Hour), func(e *audit.Event) {
			inPlaintext(e)
			e.Count, e.FirstTime, e.Source = 41, now.Add(-150*time.Minute), "192.0.2.7"
		}),
		came(now.Add(-2*time.Hour), inPlaintext),
		came(now.Add(-time.Minute), nil),
		came(now, func(e *audit.Event) {
			e.Verdict, e.Reason, e.Source = audit.VerdictDenied, audit.ReasonUnknownAuthority, "192.0.2.9:1"
		}))
	w := r.strict(t, "shop/api", 150*time.Minute)
	if w.GetReady() || len(w.GetPorts()) != 1 || w.GetConnections() != 45 {
		t.Fatalf("with plaintext within the window: %v", w)
	}
	c := w.GetPorts()[0].GetClients()[0]
	if !c.GetBreaks() || c.GetCount() != 42 || c.GetSource() != "192.0.2.7" || c.GetCause() != "plaintext" ||
		!strings.Contains(c.GetKnown(), webID) || !strings.Contains(c.GetFix(), apiID) ||
		c.GetFirstSeen() != now.Add(-150*time.Minute).UnixMilli() {
		t.Errorf("client: %v", c)
	}
	check := func(r *running) {
		t.Helper()
		w := r.strict(t, apiID, time.Hour)
		if !w.GetReady() || w.GetCleanSince() != now.Add(-2*time.Hour).UnixMilli() || w.GetObservedSince() != now.Add(-3*time.Hour).UnixMilli() {
			t.Fatalf("after a clean hour: %v", w)
		}
		if c := w.GetPorts()[0].GetClients()[1]; c.GetCause() != audit.ReasonUnknownAuthority || c.GetFix() == "" || c.GetBreaks() {
			t.Errorf("a failure breaks nothing that works: %v", c)
		}
	}
	check(r)
	if w := r.strict(t, apiID, 4*time.Hour); w.GetReady() {
		t.Error("a window longer than the observation is clean")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	again := start(t, cfg)
	for again.reading(t) {
	}
	check(again)
}

func TestAnExceptionLetsAClientStayUntilItEnds(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	exception := func(name, from string, until time.Time) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"aval.dev/v1alpha1","kind":"PlaintextException","metadata":{"name":%q,"namespace":"shop"},
			"spec":{"from":[%q],"ports":[8080],"reason":"moves in spring","until":%q}}`, name, from, until.UTC().Format(time.RFC3339))
	}
	now := time.Now()
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""), exception("gone", "192.0.2.0/24", now.Add(-time.Hour)))
	s := r.join(t, "n1", nil).sync(t)
	s.report(t, 0, came(now.Add(-2*time.Hour), nil), came(now, inPlaintext))
	w := r.strict(t, "shop/api", time.Hour)
	if w.GetReady() || len(w.GetExceptions()) != 1 || w.GetExceptions()[0].GetHolds() {
		t.Errorf("with an exception that has ended: %v", w)
	}
	r.apply(t, exception("legacy", "192.0.2.7", now.Add(time.Hour)))
	w = r.strict(t, "shop/api", time.Hour)
	if c := w.GetPorts()[0].GetClients(); !w.GetReady() || len(w.GetExceptions()) != 2 || !slices.ContainsFunc(c, func(c *wire.StrictClient) bool {
		return c.GetException() == "shop/legacy" && !c.GetBreaks()
	}) {
		t.Errorf("with one that holds: %v", w)
	}
}

// reading reports whether the ledger is still being rebuilt.
func (r *running) reading(t testing.TB) bool {
	t.Helper()
	resp, err := r.admin.ExplainStrict(t.Context(), &wire.ExplainStrictRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetReading()
}

func TestLostRecordsAreNoEvidence(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""))
	s := r.join(t, "n1", nil).sync(t)
	now := time.Now()
	s.report(t, 0, came(now.Add(-2*time.Hour), nil), came(now, nil))
	if w := r.strict(t, "shop/api", time.Hour); !w.GetReady() {
		t.Fatalf("clean: %v", w)
	}
	s.report(t, 7)
	if w := r.strict(t, "shop/api", time.Hour); w.GetReady() || w.GetLost() != 7 {
		t.Errorf("after a loss: %v", w)
	}
}

func TestOnlyNodesThatMayHoldAnIdentityGiveEvidenceOfIt(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", `,"node":{"zone":"a"}`))
	now := time.Now()
	good, bad := r.join(t, "n1", map[string]string{"zone": "a"}).sync(t), r.join(t, "n2", map[string]string{"zone": "b"}).sync(t)
	good.report(t, 0, came(now.Add(-2*time.Hour), nil), came(now, nil))
	bad.report(t, 5, came(now, inPlaintext), came(now, func(e *audit.Event) { e.Reporter = webID }))
	w := r.strict(t, "shop/api", time.Hour)
	if !w.GetReady() || w.GetUntrusted() != 1 || !slices.Equal(w.GetNodes(), []string{"spiffe://example.org/aval/node/n1"}) {
		t.Errorf("judgement: %v", w)
	}
}

func TestNamedCallersThatNeverCameAreListed(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""), registration("shop", "web", "/ns/shop/sa/web", ""),
		registration("shop", "batch", "/ns/shop/sa/batch", ""), registration("shop", "other", "/ns/shop/sa/other", ""),
		[]byte(`{"apiVersion":"aval.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"callers","namespace":"shop"},"spec":{
			"selector":{"matchLabels":{"app":"api"}},"rules":[{"from":[{"source":{"principals":["example.org/ns/shop/sa/web","example.org/ns/shop/sa/batch"]}}]}]}}`))
	s := r.join(t, "n1", nil).sync(t)
	s.report(t, 0, came(time.Now(), nil))
	if w := r.strict(t, "shop/api", time.Hour); !slices.Equal(w.GetNeverObserved(), []string{"spiffe://example.org/ns/shop/sa/batch"}) {
		t.Errorf("never observed: %v", w.GetNeverObserved())
	}
	if _, err := r.admin.ExplainStrict(t.Context(), &wire.ExplainStrictRequest{Target: "shop/nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("a workload that is not there: %v", err)
	}
	if resp, err := r.admin.ExplainStrict(t.Context(), &wire.ExplainStrictRequest{Target: "shop"}); err != nil || len(resp.GetWorkloads()) != 4 {
		t.Errorf("a namespace: %v %v", resp, err)
	}
}

func TestTheLedgerIsBoundedAndCountsExactly(t *testing.T) {
	l := newLedger()
	now := time.Now()
	const n = 3 * maxPortClients
	for i := range n {
		l.addAll([]audit.Event{came(now, func(e *audit.Event) {
			inPlaintext(e)
			e.Node, e.Count = "node", 2
			e.Source = fmt.Sprintf("%s:1", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		})}, now)
	}
	for i := range 2 * maxPlacePorts {
		l.addAll([]audit.Event{came(now, func(e *audit.Event) { e.Node, e.Port = "node", uint16(10_000+i) })}, now)
	}
	v := l.view(apiID, []string{"node"}, func(string) bool { return true })
	total := uint64(0)
	for _, p := range v.ports {
		sum := uint64(0)
		for _, s := range p.visitors {
			sum += s.count
		}
		if sum != p.all.count {
			t.Errorf("visitors are %d of %d", sum, p.all.count)
		}
		total += sum
	}
	if total != 2*n+2*maxPlacePorts || len(v.ports) > maxPlacePorts+1 || len(v.ports[8080].visitors) > maxPortClients+1 {
		t.Errorf("%d connections, %d ports, %d visitors", total, len(v.ports), len(v.ports[8080].visitors))
	}
}

func FuzzAddressOf(f *testing.F) {
	for _, s := range []string{"192.0.2.1:80", "[2001:db8::1]:1", "::ffff:192.0.2.1", "", "x:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a := addressOf(s); a.Is4In6() {
			t.Errorf("%q: %s", s, a)
		}
	})
}

// asksFor is a record of plaintext requests to api.
func asksFor(at time.Time, path string, n uint64) audit.Event {
	return came(at, func(e *audit.Event) {
		inPlaintext(e)
		e.Kind, e.Method, e.Host, e.Path, e.Count, e.Source = audit.KindRequest, "GET", "api", path, n, "192.0.2.7"
	})
}

func TestAPlaintextClientIsKnownByItsProcessAndWhatItAsksFor(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "api", "/ns/shop/sa/api", ""))
	s := r.join(t, "n1", nil).sync(t)
	now := time.Now()
	by := func(process string) audit.Event {
		return came(now, func(e *audit.Event) { inPlaintext(e); e.ClientProcess = process })
	}
	s.report(t, 0, by("uid=5 unit=batch.service exe=/usr/bin/curl"), by("uid=6"), by("uid=6"), by(""),
		asksFor(now, "/rare", 1), asksFor(now, "/often", 40), asksFor(now, "/rare", 1))
	c := r.strict(t, "shop/api", time.Hour).GetPorts()[0].GetClients()[0]
	if c.GetCount() != 4 || c.GetRequestCount() != 42 || !slices.Equal(c.GetRequests(), []string{"GET api/often", "GET api/rare"}) ||
		!slices.Equal(c.GetProcesses(), []string{"uid=6 (2 times)", "uid=5 unit=batch.service exe=/usr/bin/curl (1 times)"}) {
		t.Errorf("client: %v", c)
	}
}

func TestWhatClientsAskForIsKeptWithinBounds(t *testing.T) {
	l := newLedger()
	now := time.Now()
	for i := range 2 * maxPortClients {
		source := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()
		for n := range 20 {
			connection, request := came(now, inPlaintext), asksFor(now, fmt.Sprintf("/%d", n), 1)
			connection.Source, connection.ClientProcess, connection.Node = source+":1", fmt.Sprintf("uid=%d", n), "node"
			request.Source, request.Node = source, "node"
			l.addAll([]audit.Event{connection, request}, now)
		}
	}
	port := l.places[place{apiID, "node"}].ports[8080]
	kept := 0
	for _, a := range port.asked {
		if kept += len(a.targets); a.count != 20 {
			t.Errorf("%d requests of a client", a.count)
		}
	}
	for _, c := range port.processes {
		kept += len(c)
	}
	if kept != l.targets || kept > maxTargets || len(port.asked) > maxPortClients || len(port.processes) > maxPortClients {
		t.Errorf("%d kept, %d counted, of %d and %d clients", kept, l.targets, len(port.asked), len(port.processes))
	}
}
