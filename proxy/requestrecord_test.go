// This file holds the tests of the records of requests.

package proxy

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/proxy/request"
)

// often records requests each second.
func often(c *Config) { c.Records.Every = time.Second }

// tried is a policy on dry run.
func tried(name, action, text string) string {
	return strings.Replace(rules(name, action, text), "namespace: shop}", `namespace: shop, annotations: {aval.dev/dry-run: "true"}}`, 1)
}

// requestRecords waits until the records of requests that match count n, and
// returns them.
func (s *scene) requestRecords(t *testing.T, n uint64, match func(audit.Event) bool) []audit.Event {
	t.Helper()
	var got []audit.Event
	eventually(t, fmt.Sprintf("%d requests are in records", n), func() bool {
		s.agent.mu.Lock()
		defer s.agent.mu.Unlock()
		got = got[:0]
		total := uint64(0)
		for _, e := range s.agent.events {
			if e.Kind == audit.KindRequest && match(e) {
				got, total = append(got, e), total+max(1, e.Count)
			}
		}
		if total > n {
			t.Fatalf("%d requests are in records of %d: %+v", total, n, got)
		}
		return total == n
	})
	return got
}

func TestEveryAllowedRequestIsInOneRecord(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("STRICT")+shopRules)
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), often)
	both(t, func(t *testing.T, two bool) {
		c := s.httpClient(t, in, s.web, two)
		for i := range 30 {
			r := newRequest(t, "GET", fmt.Sprintf("https://%s/shop/%d?token=secret%d", in, i%3, i), nil)
			r.Host = "API.shop"
			if code, _ := ask(t, c, r); code != 200 {
				t.Fatalf("%d", code)
			}
		}
	})
	all := s.requestRecords(t, 60, func(e audit.Event) bool { return e.Verdict == audit.VerdictAllowed })
	if len(all) > 3*8 {
		t.Errorf("%d records of three kinds of requests", len(all))
	}
	for _, e := range all {
		if e.ClientID != s.web.ID.String() || e.ServerID != s.api.ID.String() || e.Port != 8080 || e.Transport != audit.TransportMTLS ||
			e.Method != "GET" || e.Host != "api.shop" || !strings.HasPrefix(e.Path, "/shop/") || e.Source != "127.0.0.1" ||
			e.Policy != "shop/shop" || e.Rule == nil || *e.Rule != 0 || e.Mode != "STRICT" || e.ModeSource != "shop/mode" ||
			e.Generation == 0 || e.Reason != audit.ReasonAllowed || e.FirstTime.IsZero() || len(e.Folded) != 0 {
			t.Errorf("record: %+v", e)
		}
	}
	for _, e := range s.agent.waitFor(2, reason("inbound", audit.ReasonAllowed)) {
		if !e.ByRequest {
			t.Errorf("the connection does not say that its requests are judged: %+v", e)
		}
	}
}

func TestRequestsOfGRPCAndPlaintextAreRecorded(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("PERMISSIVE")+rules("all", "ALLOW", `{to: [{operation: {methods: [POST]}}]}`))
	app := newSite(t, nil)
	_, calls := s.requestsTo(t, startGRPC(t), func(c *Config) { often(c); c.Inbound[0].Protocol = ProtocolGRPC })
	_, in := s.requestsTo(t, app.address(), often)
	conn, err := grpc.NewClient(calls, grpc.WithTransportCredentials(credentials.NewTLS(s.client(s.web))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 4 {
		if err := conn.Invoke(t.Context(), "/shop.Stock/Take", wrapperspb.String("x"), new(wrapperspb.StringValue)); err != nil {
			t.Fatal(err)
		}
		ask(t, s.httpClient(t, in, identity.SVID{}, false), newRequest(t, "POST", "http://"+in+"/plain", nil))
	}
	s.requestRecords(t, 4, func(e audit.Event) bool { return e.Path == "/shop.Stock/Take" && e.ClientID == s.web.ID.String() })
	s.requestRecords(t, 4, func(e audit.Event) bool {
		return e.Path == "/plain" && e.ClientID == "" && e.Transport == audit.TransportPlaintext && e.Reason == audit.ReasonPlaintextAllowed
	})
}

// TestRecordsCarryTheDryRunAndTheAudit of connections and of requests.
func TestRecordsCarryTheDryRunAndTheAudit(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("STRICT")+rules("seen", "AUDIT", `{to: [{operation: {paths: ["/a*"]}}]}`)+
		tried("narrow", "ALLOW", `{to: [{operation: {paths: ["/x"]}}]}, {to: [{operation: {paths: ["/b"]}}]}`))
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), often)
	c := s.httpClient(t, in, s.web, true)
	for _, path := range []string{"/a", "/b", "/c"} {
		ask(t, c, newRequest(t, "GET", "https://"+in+path, nil))
	}
	for _, e := range s.requestRecords(t, 3, func(audit.Event) bool { return true }) {
		if (e.AuditPolicy == "shop/seen") != (e.Path == "/a") {
			t.Errorf("%s: audit %q", e.Path, e.AuditPolicy)
		}
		switch {
		case e.Path == "/b" && (e.DryRun != audit.VerdictAllowed || e.DryRunPolicy != "shop/narrow" || e.DryRunRule == nil || *e.DryRunRule != 1),
			e.Path != "/b" && (e.DryRun != audit.VerdictDenied || e.DryRunReason != audit.ReasonPolicyDenied || e.DryRunPolicy != "" || e.DryRunRule != nil):
			t.Errorf("%s: dry run %q by %q %v", e.Path, e.DryRun, e.DryRunPolicy, e.DryRunRule)
		}
	}
	s.publish(t, mode("STRICT")+rules("seen", "AUDIT", `{}`)+tried("none", "DENY", `{}`))
	_, plain := s.inbound(t, echo(t), nil)
	eventually(t, "the policies are in force", func() bool {
		exchange(s.dialTLS(t, plain), "x")
		s.agent.mu.Lock()
		defer s.agent.mu.Unlock()
		return slices.ContainsFunc(s.agent.events, func(e audit.Event) bool {
			return e.Kind == audit.KindConnection && !e.ByRequest && e.AuditPolicy == "shop/seen" && e.DryRun == audit.VerdictDenied &&
				e.DryRunPolicy == "shop/none" && e.DryRunRule != nil && e.Verdict == audit.VerdictAllowed
		})
	})
}

func TestNotableAndOffLeaveOutWhatTheySay(t *testing.T) {
	t.Parallel()
	for _, setting := range []RequestRecords{RequestsNotable, RequestsOff} {
		s := newScene(t)
		s.publish(t, mode("STRICT")+rules("seen", "AUDIT", `{to: [{operation: {paths: ["/a"]}}]}`)+
			rules("no", "DENY", `{to: [{operation: {paths: ["/no"]}}]}`)+tried("not", "DENY", `{to: [{operation: {paths: ["/tried"]}}]}`))
		app := newSite(t, nil)
		p, in := s.requestsTo(t, app.address(), func(c *Config) { often(c); c.Records.Requests = setting })
		c := s.httpClient(t, in, s.web, true)
		for _, path := range []string{"/", "/a", "/no", "/tried", "/"} {
			ask(t, c, newRequest(t, "GET", "https://"+in+path, nil))
		}
		if setting == RequestsOff {
			eventually(t, "nothing is counted", func() bool { return !p.reporter.pending() })
			s.requestRecords(t, 0, func(audit.Event) bool { return true })
			continue
		}
		all := s.requestRecords(t, 3, func(audit.Event) bool { return true })
		if slices.ContainsFunc(all, func(e audit.Event) bool { return e.Path == "/" }) {
			t.Errorf("records: %+v", all)
		}
	}
}

// counted takes every record off a reporter and sums up.
func counted(t *testing.T, r *reporter) (records []*audit.Event, requests uint64) {
	t.Helper()
	for {
		events, lost := r.batch(time.Now(), true)
		if lost != 0 {
			t.Fatalf("%d are lost", lost)
		}
		if len(events) == 0 {
			return records, requests
		}
		for _, e := range events {
			requests += max(1, e.Count)
			if err := e.Validate(); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
		}
		records = append(records, events...)
	}
}

func testHouse() house {
	return house{&Proxy{cfg: Config{Records: Records{Requests: RequestsAll}}, reporter: testReporter(100_000)}}
}

func testPeer(id string, source netip.Addr) *request.Peer {
	return &request.Peer{ID: id, Server: "spiffe://example.org/api", Connection: policy.Connection{Source: source, Port: 8080}}
}

// TestDistinctPathsAreFoldedAndEveryRequestIsCounted asks for 100,000 paths,
// of which a tenth is refused.
func TestDistinctPathsAreFoldedAndEveryRequestIsCounted(t *testing.T) {
	const paths = 100_000
	h := testHouse()
	allowed := policy.Decision{Allowed: true, Reason: policy.ReasonAllowed, Rule: 0, Policy: "shop/p"}
	denied := policy.Decision{Reason: policy.ReasonPolicyDenied, Rule: -1}
	web, other := testPeer("spiffe://example.org/web", netip.MustParseAddr("192.0.2.1")), testPeer("spiffe://example.org/other", netip.MustParseAddr("192.0.2.2"))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range paths {
		r := policy.HTTP{Method: "GET", Host: "api", Path: fmt.Sprintf("/orders/%d", i)}
		if i%10 == 0 {
			h.Refused(request.Refusal{Peer: *web, Decision: denied, Method: r.Method, Host: r.Host, Path: r.Path})
			continue
		}
		h.Allowed(web, &r, &allowed)
	}
	h.Allowed(other, &policy.HTTP{Method: "GET", Host: "api", Path: "/of/another"}, &allowed)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d paths hold %d bytes", paths, grown)
	}
	records, total := counted(t, h.p.reporter)
	limit := h.p.reporter.requests.limit
	if total != paths+1 || len(records) > limit+limit/2+100 {
		t.Errorf("%d requests in %d records", total, len(records))
	}
	folded, apart := uint64(0), false
	for _, e := range records {
		if slices.Equal(e.Folded, []string{audit.FoldedPath}) && e.Path == "" && e.Method == "GET" && e.ClientID != "" {
			folded += e.Count
		}
		apart = apart || e.Path == "/of/another"
	}
	if folded < paths*9/10 {
		t.Errorf("%d of %d requests are counted without their path", folded, paths)
	}
	if !apart {
		t.Error("one client's paths have taken the room of another's")
	}
}

// TestWhateverIsDistinctIsFolded varies methods, hosts and clients too.
func TestWhateverIsDistinctIsFolded(t *testing.T) {
	h := testHouse()
	d := policy.Decision{Allowed: true, Reason: policy.ReasonAllowed, Rule: -1}
	const n = 50_000
	for i := range n {
		source := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		r := policy.HTTP{Method: fmt.Sprintf("M%d", i), Host: fmt.Sprintf("h%d", i), Path: fmt.Sprintf("/%d", i)}
		switch i {
		case 0:
			r.Path = "/" + strings.Repeat("x", maxPath)
		case 1:
			r.Host = strings.Repeat("x", maxHost+1)
		}
		h.Allowed(testPeer(fmt.Sprintf("spiffe://example.org/c%d", i), source), &r, &d)
	}
	limit := h.p.reporter.requests.limit
	records, total := counted(t, h.p.reporter)
	if total != n || len(records) > 2*limit {
		t.Errorf("%d requests in %d records", total, len(records))
	}
	kinds := map[int]uint64{}
	for _, e := range records {
		kinds[len(e.Folded)] += e.Count
		if len(e.Path) > maxPath || len(e.Host) > maxHost || len(e.Folded) == int(foldClient) && e.ClientID+e.Source+e.Policy != "" {
			t.Errorf("record: %+v", e)
		}
	}
	if len(kinds) != 4 || kinds[0] != uint64(limit) {
		t.Errorf("requests by what is left out: %v", kinds)
	}
}

func TestARecordHoldsNothingOfARequestThatItDoesNotName(t *testing.T) {
	h := testHouse()
	allowed, denied := policy.Decision{Allowed: true, Reason: policy.ReasonAllowed, Rule: -1}, policy.Decision{Reason: policy.ReasonPolicyDenied, Rule: -1}
	web := testPeer("spiffe://example.org/web", netip.MustParseAddr("192.0.2.1"))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 500
	for i := range n {
		// A request as net/http has it: method and path are parts of its line.
		line := fmt.Sprintf("M%03d /%03d?%s", i, i, strings.Repeat("x", 60<<10))
		h.Allowed(web, &policy.HTTP{Method: line[:4], Host: "api", Path: line[5:9]}, &allowed)
		h.Refused(request.Refusal{Peer: *web, Decision: denied, Method: line[:4], Host: "api", Path: line[5:9]})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d requests hold %d bytes", n, grown)
	}
	long := strings.Repeat("M", 60<<10)
	h.Allowed(web, &policy.HTTP{Method: long, Host: "api", Path: "/"}, &allowed)
	h.Refused(request.Refusal{Peer: *testPeer("spiffe://example.org/other", netip.MustParseAddr("192.0.2.2")), Decision: denied, Method: long, Host: "api", Path: "/"})
	records, total := counted(t, h.p.reporter)
	if total != 2*n+2 {
		t.Errorf("%d requests are recorded", total)
	}
	for _, e := range records {
		if len(e.Method) > maxMethod {
			t.Fatalf("a method of %d bytes makes a record that no agent takes", len(e.Method))
		}
	}
}

func TestAWindowOfRequestsEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := testHouse()
		d := policy.Decision{Allowed: true, Reason: policy.ReasonAllowed, Rule: -1}
		peer, r := testPeer("spiffe://example.org/web", netip.Addr{}), policy.HTTP{Method: "GET", Host: "a", Path: "/"}
		if _, counting := h.p.reporter.due(time.Now()); counting {
			t.Error("an idle proxy has something to ship")
		}
		for range 5 {
			h.Allowed(peer, &r, &d)
		}
		if wait, counting := h.p.reporter.due(time.Now()); !counting || wait != DefaultRecordsEvery {
			t.Errorf("due in %v, %v", wait, counting)
		}
		time.Sleep(DefaultRecordsEvery - time.Millisecond)
		h.Allowed(peer, &r, &d)
		if events, _ := h.p.reporter.batch(time.Now(), false); len(events) != 0 {
			t.Errorf("records before the window's end: %+v", events[0])
		}
		time.Sleep(time.Millisecond)
		h.Allowed(peer, &r, &d) // begins the next
		events, _ := h.p.reporter.batch(time.Now(), false)
		if len(events) != 1 || events[0].Count != 6 || events[0].Time.Sub(events[0].FirstTime) != DefaultRecordsEvery-time.Millisecond {
			t.Errorf("records: %+v", events)
		}
		if _, total := counted(t, h.p.reporter); total != 1 {
			t.Errorf("%d requests of the next window", total)
		}
	})
}

func TestAnAlikeRequestCostsNoAllocation(t *testing.T) {
	h := testHouse()
	d := policy.Decision{Allowed: true, Reason: policy.ReasonAllowed, Rule: 0, Policy: "shop/p", ModeSource: "shop/m"}
	peer := testPeer("spiffe://example.org/web", netip.MustParseAddr("192.0.2.1"))
	r := policy.HTTP{Method: "GET", Host: "api", Path: "/a/path"}
	if n := testing.AllocsPerRun(1000, func() { h.Allowed(peer, &r, &d) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAlikeRequest(b *testing.B) {
	h := testHouse()
	d := policy.Decision{Allowed: true, Reason: policy.ReasonAllowed, Rule: 0, Policy: "shop/p", ModeSource: "shop/m"}
	peer := testPeer("spiffe://example.org/ns/shop/sa/web", netip.MustParseAddr("192.0.2.1"))
	r := policy.HTTP{Method: "GET", Host: "api.shop", Path: "/a/path/of/some/length"}
	for b.Loop() {
		h.Allowed(peer, &r, &d)
	}
}

func TestRecordsOfRequestsAreConfigured(t *testing.T) {
	const base = "agent: /a\ninbound: [{listen: '127.0.0.1:0', forward: '127.0.0.1:1'}]\n"
	c, err := ParseConfig("f", []byte(base+"records: {requests: notable, every: 30s}\n"))
	if err != nil || c.Records.Requests != RequestsNotable || c.Records.Every != 30*time.Second {
		t.Errorf("%+v, %v", c.Records, err)
	}
	for text, want := range map[string]string{"{requests: some}": "records: requests", "{every: 1ms}": "records: every", "{every: 11m}": "records: every", "{path: x}": "path"} {
		if _, err := ParseConfig("f", []byte(base+"records: "+text+"\n")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
