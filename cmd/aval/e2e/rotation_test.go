// Package e2e tests the whole: a server, an agent and proxies as real
// processes of the real binary, with foreign clients in front. This file
// holds rotation under load.
package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

// shop is a fleet with web's proxy in front of api's, and an HTTP application
// behind api's.
type shop struct {
	*avaltest.Fleet
	web, api       *avaltest.Process
	outbound       string // web's local listener to api
	inbound        string // api's mTLS listener
	app            *httptest.Server
	admit, connect string // the configurations
}

func newShop(t *testing.T, ttl string, serverArgs ...string) *shop {
	t.Helper()
	return shopOf(t, avaltest.New(t), ttl, serverArgs...)
}

func shopOf(t *testing.T, f *avaltest.Fleet, ttl string, serverArgs ...string) *shop {
	t.Helper()
	s := &shop{Fleet: f, outbound: avaltest.FreeAddress(t), inbound: avaltest.FreeAddress(t)}
	s.app = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	t.Cleanup(s.app.Close)
	s.admit = fmt.Sprintf("inbound: [{listen: %s, forward: %s}]\n", s.inbound, s.app.Listener.Addr())
	s.connect = fmt.Sprintf("outbound: [{listen: %s, dial: %s, id: spiffe://example.org/ns/shop/sa/api}]\n", s.outbound, s.inbound)
	f.StartServer(append([]string{"--default-ttl", ttl, "--min-ttl", ttl}, serverArgs...)...)
	return s
}

// open starts the agent and both proxies and waits until a call succeeds.
func (s *shop) open(t *testing.T) {
	t.Helper()
	s.StartAgent("n1")
	s.api, s.web = s.Proxy("api", s.admit), s.Proxy("web", s.connect)
	s.Await("a call from web to api succeeds", func() bool { return s.call(nil) == nil })
}

// call sends one request from web to api on a connection of its own, or on
// client's.
func (s *shop) call(client *http.Client) error {
	if client == nil {
		transport := &http.Transport{DisableKeepAlives: true}
		defer transport.CloseIdleConnections()
		client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
	}
	resp, err := client.Post("http://"+s.outbound, "text/plain", strings.NewReader("hello"))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || string(body) != "hello" {
		return fmt.Errorf("status %d, body %q", resp.StatusCode, body)
	}
	return nil
}

func TestThirtySecondLifetimesUnderLoadFailNoRequest(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for a minute")
	}
	s := newShop(t, "30s")
	s.open(t)
	before := len(s.Entries("issuance"))

	var requests, failed atomic.Int64
	stop := make(chan struct{})
	done := make(chan struct{})
	const clients = 3
	for i := range clients {
		go func() {
			defer func() { done <- struct{}{} }()
			// One client keeps its connection over all rotations, the others
			// shake hands anew for each request.
			var client *http.Client
			if i == 0 {
				client = &http.Client{Timeout: 10 * time.Second}
				defer client.CloseIdleConnections()
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				requests.Add(1)
				if err := s.call(client); err != nil {
					failed.Add(1)
					t.Errorf("request %d: %v", requests.Load(), err)
				}
			}
		}()
	}
	// 30 s lifetimes are renewed every 12 to 18 s.
	<-time.After(45 * time.Second)
	close(stop)
	for range clients {
		<-done
	}
	rotations := len(s.Entries("issuance")) - before
	t.Logf("%d rotations, %d requests, %d failed", rotations, requests.Load(), failed.Load())
	if rotations < 4 || failed.Load() > 0 {
		t.Fatalf("%d rotations, %d of %d requests failed", rotations, failed.Load(), requests.Load())
	}
	s.Aval("audit", "verify", "--data-dir", s.ServerDir)
}

// nobody is a policy that lets no one call api.
const nobody = "apiVersion: aval.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shop}\nspec: {selector: {matchLabels: {app: api}}}\n"

func TestAnyOrderOfStartsEndsWell(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	token := s.NewToken("n1")
	s.Server.Stop()

	// The agent before its server, the proxies before their agent.
	for _, name := range []string{"api", "web"} {
		s.Copy(name)
	}
	if _, err := net.Dial("unix", s.Socket); err == nil {
		t.Fatal("an agent's socket is there before the agent")
	}
	s.StartAgentWith("n1", token)
	s.StartServer("--default-ttl", "1h", "--min-ttl", "1h")
	s.api, s.web = s.Proxy("api", s.admit), s.Proxy("web", s.connect)
	s.Await("a call succeeds", func() bool { return s.call(nil) == nil })

	// Proxies live on without their agent, and have it back afterwards.
	s.Agent.Kill()
	for range 5 {
		if err := s.call(nil); err != nil {
			t.Fatalf("without the agent: %v", err)
		}
	}
	s.StartAgentWith("n1", avaltest.Token{})
	s.Apply(nobody)
	s.Await("a policy of after the restart holds", func() bool { return s.call(nil) != nil })
}

func TestServerAwayAgentsServeAndRenewAfterwards(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for half a minute")
	}
	s := newShop(t, "30s")
	s.open(t)
	messages := s.Stream()
	s.Apply("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: self, namespace: shop}\nspec: {id: /self, workload: {unix.path: " + self(t) + "}}\n")
	first := avaltest.Until(t, "an SVID", messages, hasSVID).GetSvids()[0].GetX509Svid()
	s.Server.Kill()
	for range 5 {
		if err := s.call(nil); err != nil {
			t.Fatalf("without the server: %v", err)
		}
	}
	select {
	case <-messages:
		t.Fatal("the stream moved while the server was away")
	case <-time.After(3 * time.Second):
	}
	s.StartServer("--default-ttl", "30s", "--min-ttl", "30s")
	next := avaltest.Until(t, "a renewal after the server is back", messages, hasSVID).GetSvids()[0].GetX509Svid()
	if string(next) == string(first) {
		t.Fatal("the SVID was sent again, not renewed")
	}
	if err := s.call(nil); err != nil {
		t.Fatal(err)
	}
}
