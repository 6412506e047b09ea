// This file holds the rollover of the root over real processes: under load,
// with nodes that are away, come back, and hold it.

package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

// rotationState is what `aval rotation status -o json` prints.
type rotationState struct {
	ID      string  `json:"id"`
	Phase   string  `json:"phase"`
	Seconds float64 `json:"seconds"`
	Acked   int     `json:"acked"`
	Live    int     `json:"live"`
	Old     string  `json:"old_root"`
	New     string  `json:"new_root"`
	Holders []struct {
		Node      string   `json:"node"`
		Connected bool     `json:"connected"`
		Lacks     string   `json:"lacks"`
		Proxies   []string `json:"proxies"`
	} `json:"holders"`
	Breaks []string `json:"breaks"`
	Phases []struct {
		Phase   string  `json:"phase"`
		Seconds float64 `json:"seconds"`
		Acked   int     `json:"acked"`
		Live    int     `json:"live"`
		Forced  bool    `json:"forced"`
	} `json:"phases"`
}

func (s *shop) rotation(t *testing.T, args ...string) rotationState {
	t.Helper()
	var st rotationState
	avaltest.Must(t, json.Unmarshal(s.Aval(append(append([]string{"rotation"}, args...), "-o", "json")...), &st))
	return st
}

func (s *shop) status(t *testing.T) rotationState { return s.rotation(t, "status") }

// second starts another agent with a proxy of its own and returns its socket.
func (s *shop) second(t *testing.T, node string) *avaltest.Process {
	t.Helper()
	first, socket := s.Agent, s.Socket
	defer func() { s.Agent, s.Socket = first, socket }()
	s.Socket = filepath.Join(s.Dir, node+".sock")
	s.StartAgent(node)
	s.Proxy(node+"-web", "outbound: [{listen: "+avaltest.FreeAddress(t)+", dial: "+s.inbound+", id: spiffe://example.org/ns/shop/sa/api}]\n")
	agent := s.Agent
	s.Await("node "+node+" is connected", func() bool { return strings.Contains(string(s.Aval("node", "list")), node+" ") })
	return agent
}

func TestARootRolloverUnderLoadFailsNoRequest(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	s.second(t, "n2")
	stop := s.load(t)
	st := s.rotation(t, "start", "root", "--wait", "--yes", "--settle", "1s")
	passed, failed := stop()
	t.Logf("%d requests passed, %d failed; %+v", passed, failed, st)
	if st.Phase != "removed" || len(st.Phases) != 4 || passed == 0 || failed > 0 {
		t.Fatalf("%d requests passed, %d failed: %+v", passed, failed, st)
	}
	for _, p := range st.Phases[1:] {
		if p.Live != 2 || p.Acked != 2 || p.Forced {
			t.Errorf("%d of %d nodes at the end of %s", p.Acked, p.Live, p.Phase)
		}
	}
	// Again: the new root is the old one of the next.
	next := s.rotation(t, "start", "root", "--wait", "--yes", "--settle", "0s")
	if next.Phase != "removed" || next.Old != st.New || next.ID == st.ID {
		t.Fatalf("the second rollover: %+v", next)
	}
	if err := s.call(nil); err != nil {
		t.Fatal(err)
	}
	// What is on disk serves a start, and a new node can join.
	s.Server.Kill()
	s.StartServer("--default-ttl", "1h", "--min-ttl", "1h")
	s.second(t, "n3")
	s.Aval("audit", "verify", "--data-dir", s.ServerDir)
	if keys, _ := filepath.Glob(filepath.Join(s.ServerDir, "keys", "root*.key")); len(keys) != 1 {
		t.Errorf("keys of roots on disk: %v", keys)
	}
}

func TestAnAgentThatIsAwayHoldsTheGateAndIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	away := s.second(t, "n2")
	avaltest.Must(t, away.Process.Signal(syscall.SIGSTOP))
	s.rotation(t, "start", "root", "--yes", "--settle", "0s")
	held := func(phase string) rotationState {
		var st rotationState
		s.Await("n2 alone holds "+phase, func() bool {
			st = s.status(t)
			return st.Phase == phase && len(st.Holders) == 1 && st.Holders[0].Node == "n2"
		})
		return st
	}
	if st := held("published"); st.Acked != 1 || st.Live != 2 || len(st.Breaks) != 1 || !strings.Contains(st.Breaks[0], "n2") {
		t.Fatalf("%+v", st)
	}
	if _, stderr, code := s.Run(nil, "rotation", "advance", "root"); code != 1 || !strings.Contains(string(stderr), "n2") {
		t.Fatalf("advance: exit %d, %s", code, stderr)
	}
	if _, stderr, code := s.Run([]byte("no\n"), "rotation", "force", "root"); code != 1 || !strings.Contains(string(stderr), "forcing breaks: node n2") {
		t.Fatalf("force without the name: exit %d, %s", code, stderr)
	}
	// The server forgets nothing by a restart, and a node that it has not
	// seen since holds as well.
	s.Server.Kill()
	s.StartServer("--default-ttl", "1h", "--min-ttl", "1h")
	held("published")
	st := s.rotation(t, "force", "root", "--yes")
	if st.Phase != "active" {
		t.Fatalf("%+v", st)
	}
	// The node that was passed over is served by the cross-certificate, and
	// still keeps its old root from being removed.
	if err := s.call(nil); err != nil {
		t.Fatal(err)
	}
	if st := held("active"); len(st.Breaks) != 1 || !strings.Contains(st.Breaks[0], "leaves of the old root") {
		t.Fatalf("%+v", st)
	}
	avaltest.Must(t, away.Process.Signal(syscall.SIGCONT))
	s.Await("the old root is removed once n2 is back", func() bool { return s.status(t).Phase == "removed" })
	for _, e := range s.Entries("rotation") {
		if detail, _ := e["detail"].(string); strings.Contains(detail, "force") && !strings.Contains(detail, "node n2") {
			t.Errorf("the forced step is recorded without what it broke: %s", detail)
		}
	}
}

func TestAnAgentThatWasAwayForAWholeRolloverComesBack(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	s.Agent.Kill()
	s.rotation(t, "start", "root", "--yes", "--settle", "0s")
	phase := func(want string) {
		t.Helper()
		s.Await("it is "+want, func() bool { return s.status(t).Phase == want })
	}
	phase("published")
	for _, next := range []string{"active", "retiring", "removed"} {
		if next != "removed" || s.status(t).Phase != "removed" { // nothing settles
			s.Run(nil, "rotation", "force", "root", "--yes")
		}
	}
	phase("removed")
	// Its bundle knows the old root alone, and its credential is of it.
	s.StartAgentWith("n1", avaltest.Token{})
	s.Await("a call from web to api succeeds", func() bool { return s.call(nil) == nil })
	s.Await("its leaves are of the new root", func() bool {
		return !strings.Contains(string(s.Aval("rotation", "status")), "held by")
	})
}

func TestLeavesAndIntermediatesAreReplacedAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	issued := func() map[string]int {
		var out struct {
			SVIDs []struct {
				ID string `json:"spiffe_id"`
			} `json:"svids"`
		}
		avaltest.Must(t, json.Unmarshal(s.Aval("node", "show", "n1", "-o", "json"), &out))
		n := map[string]int{}
		for _, v := range out.SVIDs {
			n[strings.TrimPrefix(v.ID, "spiffe://example.org/ns/shop/sa/")]++
		}
		return n
	}
	before := issued()
	stop := s.load(t)
	st := s.rotation(t, "start", "leaves", "shop/api", "--wait", "--yes")
	if after := issued(); st.Phase != "done" || after["api"] != before["api"]+1 || after["web"] != before["web"] {
		t.Fatalf("of api alone: %v became %v; %+v", before, after, st)
	}
	for _, what := range [][]string{{"leaves", "node/n1"}, {"leaves", "shop"}, {"intermediate"}} {
		before := issued()
		st := s.rotation(t, append(append([]string{"start"}, what...), "--wait", "--yes")...)
		if after := issued(); st.Phase != "done" || after["api"] != before["api"]+1 || after["web"] != before["web"]+1 || st.Acked != 1 {
			t.Fatalf("%v: %v became %v; %+v", what, before, after, st)
		}
	}
	if _, failed := stop(); failed > 0 {
		t.Fatalf("%d requests failed", failed)
	}
}

func TestAProxyThatHoldsAnOldSnapshotHoldsTheGateAndIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	avaltest.Must(t, s.web.Process.Signal(syscall.SIGSTOP))
	s.rotation(t, "start", "root", "--yes", "--settle", "0s")
	s.Await("the proxy is named", func() bool {
		st := s.status(t)
		return st.Phase == "published" && len(st.Holders) == 1 && strings.Join(st.Holders[0].Proxies, " ") == "spiffe://example.org/ns/shop/sa/web"
	})
	avaltest.Must(t, s.web.Process.Signal(syscall.SIGCONT))
	s.Await("it goes on", func() bool { return s.status(t).Phase == "removed" })
	if err := s.call(nil); err != nil {
		t.Fatal(err)
	}
}
