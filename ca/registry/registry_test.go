// This file holds the tests of who may claim which address, and of what
// happens to claims.

package registry

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
)

// scene is a registry, the nodes of it, and registrations for all of them.
type scene struct {
	t     testing.TB
	td    identity.TrustDomain
	regs  map[string]identity.Registration
	nodes map[string]ca.AttestedNode
	r     *Registry
	left  map[string]func(time.Time)
	woken int
	now   time.Time
}

func newScene(t testing.TB) *scene {
	t.Helper()
	td, err := identity.ParseTrustDomain("example.org")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, td: td, regs: map[string]identity.Registration{}, nodes: map[string]ca.AttestedNode{}, left: map[string]func(time.Time){}, now: time.Unix(1e9, 0)}
	for _, name := range []string{"api", "db", "web"} {
		s.regs["shop/"+name] = identity.Registration{Namespace: "shop", Name: name, ID: s.id("/ns/shop/sa/" + name)}
	}
	s.r = New(Config{Changed: func() { s.woken++ },
		Registration: func(path string) (identity.Registration, bool) { r, ok := s.regs[path]; return r, ok }})
	return s
}

func (s *scene) id(path string) identity.ID {
	id, err := identity.ParseID("spiffe://example.org" + path)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// node attests a node whose attribute names these addresses.
func (s *scene) node(name string, addresses ...string) ca.AttestedNode {
	s.t.Helper()
	key := proven(s.t)
	n := ca.Node{ID: s.id("/aval/node/" + name), Name: name, Keys: []string{key.Hash()}, Attributes: identity.Attributes{"node.name": {name}}}
	if len(addresses) > 0 {
		n.Attributes[AddressAttribute] = addresses
	}
	attested, err := n.Attest(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.nodes[name] = attested
	return attested
}

func proven(t testing.TB) ca.ProvenKey {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, identitytest.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.ProveCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// join opens a stream from an address.
func (s *scene) join(node ca.AttestedNode, from string) {
	a, _ := netip.ParseAddr(from)
	s.left[node.Name()] = s.r.Join(node, a)
}

// leave ends the node's last stream.
func (s *scene) leave(node string) { s.left[node](s.now) }

// claim writes an endpoint as "api 10.0.0.1:80", with * for every port.
func (s *scene) claim(text string) *wire.Endpoint {
	name, at, _ := strings.Cut(text, " ")
	w := &wire.Endpoint{Registration: "shop/" + name, SpiffeId: "spiffe://example.org/ns/shop/sa/" + name, Mode: "STRICT"}
	host, port, _ := strings.Cut(at, "|")
	w.Address = host
	fmt.Sscan(port, &w.Port)
	return w
}

func (s *scene) report(node string, claims ...string) []State {
	s.now = s.now.Add(time.Second)
	r := &wire.EndpointReport{Complete: true}
	for _, c := range claims {
		r.Endpoints = append(r.Endpoints, s.claim(c))
	}
	return s.r.Report(s.nodes[node].ID(), r, s.now)
}

// accepted prints what counts.
func (s *scene) accepted() string {
	var out []string
	for _, st := range s.r.States() {
		if st.State == Accepted {
			out = append(out, fmt.Sprintf("%s:%s@%s|%d", name(st.Node), st.ID.Path()[len("/ns/shop/sa/"):], st.Address, st.Port))
		}
	}
	if len(out) != s.r.Len() {
		s.t.Errorf("%d endpoints are shown, %d are pushed", len(out), s.r.Len())
	}
	return strings.Join(out, " ")
}

func (s *scene) want(accepted string) {
	s.t.Helper()
	if got := s.accepted(); got != accepted {
		s.t.Errorf("accepted:\n  %s\nwant\n  %s", got, accepted)
	}
}

func TestANodeClaimsOnlyAddressesThatTheServerKnowsAsItsOwn(t *testing.T) {
	s := newScene(t)
	s.join(s.node("n1", "10.1.0.0/24", "fd01::/64", "10.9.9.9"), "10.0.0.1")
	refused := s.report("n1", "api 10.0.0.1|80", "api 10.1.0.7|80", "api fd01::7|80", "api 10.9.9.9|80",
		"api 10.0.0.2|80", "api 10.2.0.1|80", "api fd02::1|80")
	s.want("n1:api@10.0.0.1|80 n1:api@10.1.0.7|80 n1:api@10.9.9.9|80 n1:api@fd01::7|80")
	if len(refused) != 3 || !strings.Contains(refused[0].Reason, "nothing says that") {
		t.Errorf("refused: %+v", refused)
	}
	if again := s.report("n1", "api 10.0.0.2|80"); len(again) != 0 {
		t.Errorf("the same refusal is news again: %+v", again)
	}
	// Addresses that mean no one machine are refused whoever says what.
	s.join(s.node("n2", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"), "127.0.0.1")
	for _, bad := range []string{"127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1"} {
		if got := s.report("n2", "api "+bad+"|80"); len(got) != 1 {
			t.Errorf("%s: %+v", bad, got)
		}
	}
	s.want("")
}

func TestANodeClaimsOnlyIdentitiesThatItMayHold(t *testing.T) {
	s := newScene(t)
	reg := s.regs["shop/db"]
	reg.Node = identity.Selector{"node.name": {"n2"}}
	s.regs["shop/db"] = reg
	s.join(s.node("n1"), "10.0.0.1")
	stolen := s.claim("api 10.0.0.1|80")
	stolen.SpiffeId = "spiffe://example.org/ns/shop/sa/web"
	s.r.Report(s.nodes["n1"].ID(), &wire.EndpointReport{Complete: true, Endpoints: []*wire.Endpoint{
		s.claim("db 10.0.0.1|5432"), stolen, s.claim("none 10.0.0.1|81"), s.claim("api 10.0.0.1|8080")}}, s.now)
	s.want("n1:api@10.0.0.1|8080")
	// A registration that goes takes its endpoints along, at once.
	woken := s.woken
	delete(s.regs, "shop/api")
	s.r.Reconsider(map[string]bool{"shop/db": true})
	s.want("n1:api@10.0.0.1|8080")
	s.r.Reconsider(map[string]bool{"shop/api": true})
	s.want("")
	if s.woken == woken {
		t.Error("nobody was told")
	}
}

func TestOfTwoNodesTheBetterRightCountsAndNeverBoth(t *testing.T) {
	for name, tt := range map[string]struct {
		first, second string // attributes; empty means the stream's address 10.0.0.1 of the first
		claims        [2]string
		want          string
	}{
		"the first of equals":        {"10.0.0.0/24", "10.0.0.0/24", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|80"}, "n1:api@10.0.0.1|80"},
		"the narrower block":         {"10.0.0.0/24", "10.0.0.0/28", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|80"}, "n2:db@10.0.0.1|80"},
		"a word before a stream":     {"", "10.0.0.0/8", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|80"}, "n2:db@10.0.0.1|80"},
		"one identity of two nodes":  {"10.0.0.0/24", "10.0.0.0/24", [2]string{"api 10.0.0.1|80", "api 10.0.0.1|80"}, "n1:api@10.0.0.1|80 n2:api@10.0.0.1|80"},
		"every port against one":     {"10.0.0.0/24", "10.0.0.0/24", [2]string{"api 10.0.0.1|0", "db 10.0.0.1|80"}, "n1:api@10.0.0.1|0"},
		"one port against every":     {"10.0.0.0/24", "10.0.0.0/24", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|0"}, "n1:api@10.0.0.1|80"},
		"other ports":                {"10.0.0.0/24", "10.0.0.0/24", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|81"}, "n1:api@10.0.0.1|80 n2:db@10.0.0.1|81"},
		"an address named for both":  {"10.0.0.1", "10.0.0.1", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|80"}, "n1:api@10.0.0.1|80 n2:db@10.0.0.1|80"},
		"an address named for one":   {"10.0.0.0/31", "10.0.0.1", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|80"}, "n2:db@10.0.0.1|80"},
		"an address named of IPv6":   {"fd00::1", "fd00::1", [2]string{"api fd00::1|80", "db fd00::1|80"}, "n1:api@fd00::1|80 n2:db@fd00::1|80"},
		"an IPv4 block is not wider": {"10.0.0.0/16", "10.0.0.0/17", [2]string{"api 10.0.0.1|80", "db 10.0.0.1|80"}, "n2:db@10.0.0.1|80"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			for i, attribute := range []string{tt.first, tt.second} {
				node := s.node(fmt.Sprintf("n%d", i+1), strings.Fields(attribute)...)
				s.join(node, map[bool]string{true: "10.0.0.1", false: "192.0.2.1"}[attribute == ""])
				s.report(fmt.Sprintf("n%d", i+1), tt.claims[i])
			}
			s.want(tt.want)
			conflicts := 0
			for _, st := range s.r.States() {
				if st.State == Conflict && !st.Other.IsZero() && strings.Contains(st.Reason, "better right") {
					conflicts++
				}
			}
			if want := 2 - len(strings.Fields(tt.want)); conflicts != want {
				t.Errorf("%d conflicts are shown, want %d", conflicts, want)
			}
		})
	}
}

func TestWhatWasInTheWayGivesRoom(t *testing.T) {
	s := newScene(t)
	for _, n := range []string{"n1", "n2"} {
		s.join(s.node(n, "10.0.0.0/24"), "192.0.2.1")
	}
	s.report("n1", "api 10.0.0.1|80")
	s.report("n2", "db 10.0.0.1|80")
	// To say it again makes nothing younger.
	s.report("n1", "api 10.0.0.1|80")
	s.want("n1:api@10.0.0.1|80")
	s.report("n1")
	s.want("n2:db@10.0.0.1|80")
	s.report("n1", "api 10.0.0.1|80")
	s.want("n2:db@10.0.0.1|80")
	evicted := s.left["n2"]
	s.r.Drop(s.nodes["n2"].ID())
	s.want("n1:api@10.0.0.1|80")
	// It is let in again; the late end of its old stream means nothing then.
	s.join(s.nodes["n2"], "192.0.2.1")
	evicted(s.now)
	s.report("n2", "db 10.0.0.2|80")
	s.r.Expire(s.now.Add(time.Hour))
	s.want("n1:api@10.0.0.1|80 n2:db@10.0.0.2|80")
}

func TestAnAddressThatAStreamComesFromBelongsToTheFirst(t *testing.T) {
	s := newScene(t)
	s.join(s.node("n1"), "10.0.0.1")
	s.join(s.node("n2"), "10.0.0.1") // behind the same translation, or on the same machine
	s.report("n1", "api 10.0.0.1|80")
	refused := s.report("n2", "db 10.0.0.1|81")
	s.want("n1:api@10.0.0.1|80")
	if len(refused) != 1 || refused[0].Other != s.nodes["n1"].ID() {
		t.Errorf("refused: %+v", refused)
	}
	// Its stream breaks, and for a while nobody else can take its place.
	s.leave("n1")
	s.join(s.nodes["n2"], "10.0.0.1")
	s.report("n2", "db 10.0.0.1|81")
	s.want("n1:api@10.0.0.1|80")

	all := New(Config{AttributesOnly: true, Registration: s.r.cfg.Registration})
	s.r = all
	s.join(s.node("n3"), "10.0.0.3")
	s.report("n3", "api 10.0.0.3|80")
	s.want("")
}

func TestClaimsOutliveAStreamForAGraceAndNoLonger(t *testing.T) {
	s := newScene(t)
	s.join(s.node("n1"), "10.0.0.1")
	s.report("n1", "api 10.0.0.1|80")
	id := s.nodes["n1"].ID()
	s.leave("n1")
	if next := s.r.Expire(s.now.Add(Grace - 1)); next != s.now.Add(Grace) {
		t.Errorf("next at %v", next)
	}
	s.want("n1:api@10.0.0.1|80")
	if st := s.r.States()[0]; st.Connected {
		t.Error("a node without a stream is shown as connected")
	}
	// It comes back, and reports the same: nothing is told to anybody.
	woken := s.woken
	s.join(s.nodes["n1"], "10.0.0.1")
	s.report("n1", "api 10.0.0.1|80")
	s.r.Expire(s.now.Add(time.Hour))
	s.want("n1:api@10.0.0.1|80")
	if s.woken != woken {
		t.Error("a return is news")
	}
	// It comes back, and reports nothing.
	s.leave("n1")
	s.join(s.nodes["n1"], "10.0.0.1")
	if s.r.Reported(id) {
		t.Error("it has reported nothing on this stream")
	}
	s.r.Expire(s.now.Add(Grace))
	s.want("")
	s.report("n1", "api 10.0.0.1|80")
	s.leave("n1")
	s.r.Expire(s.now.Add(Grace))
	if s.want(""); len(s.r.States()) != 0 || len(s.r.remote) != 0 || len(s.r.byAddress) != 0 {
		t.Error("something is kept of a node that is gone")
	}
}

func TestAnIncompleteReportTakesNothingAway(t *testing.T) {
	s := newScene(t)
	s.join(s.node("n1"), "10.0.0.1")
	s.report("n1", "api 10.0.0.1|80", "db 10.0.0.1|81")
	s.r.Report(s.nodes["n1"].ID(), &wire.EndpointReport{Endpoints: []*wire.Endpoint{s.claim("web 10.0.0.1|82")}}, s.now)
	s.want("n1:api@10.0.0.1|80 n1:db@10.0.0.1|81 n1:web@10.0.0.1|82")
	s.report("n1", "web 10.0.0.1|82")
	s.want("n1:web@10.0.0.1|82")
}

func TestClaimsAreBoundedForANode(t *testing.T) {
	s := newScene(t)
	s.join(s.node("n1"), "10.0.0.1")
	for _, complete := range []bool{true, false, false} {
		r := &wire.EndpointReport{Complete: complete}
		for i := range directory.MaxPerNode + 500 {
			s.now = s.now.Add(time.Second)
			r.Endpoints = append(r.Endpoints, s.claim(fmt.Sprintf("api 10.0.0.1|%d", 1+(i+s.now.Second()*700)%60000)))
		}
		s.r.Report(s.nodes["n1"].ID(), r, s.now)
		if n := len(s.r.States()); n > directory.MaxPerNode {
			t.Errorf("%d claims are held", n)
		}
	}
	// What cannot be read is shown a few times and clipped.
	r := &wire.EndpointReport{Complete: true}
	for range 100 {
		r.Endpoints = append(r.Endpoints, &wire.Endpoint{SpiffeId: strings.Repeat("x\x1b", 5000)})
	}
	s.r.Report(s.nodes["n1"].ID(), r, s.now)
	states := s.r.States()
	if len(states) != maxFaults || len(states[0].Reason) > 1500 || strings.Contains(states[0].Reason, "\x1b") {
		t.Errorf("%d shown, %q", len(states), states[0].Reason)
	}
}

func TestNoTwoNodesShareAPortWithDifferentIdentitiesWhateverTheyReport(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newScene(t)
		blocks := []string{"10.0.0.0/24", "10.0.0.0/28", "10.0.0.0/30"}
		for i := range 3 {
			s.join(s.node(fmt.Sprintf("n%d", i), rapid.SampledFrom(blocks).Draw(rt, "block")), fmt.Sprintf("10.0.0.%d", i))
		}
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			node := fmt.Sprintf("n%d", rapid.IntRange(0, 2).Draw(rt, "node"))
			switch rapid.IntRange(0, 4).Draw(rt, "act") {
			case 0:
				s.r.Drop(s.nodes[node].ID())
				s.join(s.nodes[node], "192.0.2.1")
			case 1:
				s.leave(node)
				s.r.Expire(s.now.Add(Grace))
				s.join(s.nodes[node], "192.0.2.1")
			default:
				var claims []string
				for range rapid.IntRange(0, 3).Draw(rt, "claims") {
					claims = append(claims, fmt.Sprintf("%s 10.0.0.%d|%d", rapid.SampledFrom([]string{"api", "db"}).Draw(rt, "who"),
						rapid.IntRange(1, 2).Draw(rt, "host"), rapid.IntRange(0, 2).Draw(rt, "port")))
				}
				s.report(node, claims...)
			}
			var all []State
			for _, st := range s.r.States() {
				if st.State == Accepted {
					all = append(all, st)
				}
			}
			for _, a := range all {
				if slices.ContainsFunc(all, func(b State) bool { return a.Node != b.Node && a.ID != b.ID && a.Overlaps(b.Endpoint) }) {
					rt.Fatalf("%s stands beside another", a.Key)
				}
			}
			// Every conflict has somebody in its way.
			for _, st := range s.r.States() {
				if st.State == Conflict && !slices.ContainsFunc(all, func(b State) bool { return b.Node == st.Other && b.Overlaps(st.Endpoint) }) {
					rt.Fatalf("%s is in nobody's way", st.Key)
				}
			}
			s.accepted()
		}
	})
}

func TestBlocksOfTheAttribute(t *testing.T) {
	for _, good := range []string{"10.0.0.1", "10.0.0.0/24", "fd00::/64", "fd00::1"} {
		if _, err := ParseBlock(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "host", "10.0.0.1/24", "0.0.0.0/0", "::/0", "10.0.0.0/33", "fe80::1%eth0", "::ffff:10.0.0.1", "::ffff:10.0.0.0/120"} {
		if p, err := ParseBlock(bad); err == nil {
			t.Errorf("%q is taken as %s", bad, p)
		}
	}
}

func FuzzBlock(f *testing.F) {
	f.Add("10.0.0.0/24")
	f.Add("fd00::1")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseBlock(text)
		if err != nil {
			return
		}
		if again, err := ParseBlock(p.String()); err != nil || again != p || p.Bits() == 0 {
			t.Fatalf("%q: %s, %s, %v", text, p, again, err)
		}
	})
}

func BenchmarkReconsiderTenThousandClaims(b *testing.B) {
	s := newScene(b)
	for i := range 100 {
		name := fmt.Sprintf("n%d", i)
		s.join(s.node(name, fmt.Sprintf("10.0.%d.0/24", i)), "192.0.2.1")
		var claims []string
		for j := range 100 {
			claims = append(claims, fmt.Sprintf("api 10.0.%d.%d|80", i, j+1))
		}
		s.report(name, claims...)
	}
	for b.Loop() {
		s.r.Reconsider(nil)
	}
	if s.r.Len() != 10_000 {
		b.Fatal(s.r.Len())
	}
}
