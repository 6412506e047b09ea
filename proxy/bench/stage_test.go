// This file holds the stage: the agent, the application, who is measured in
// front of it, and the clients' identities.

package bench

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/aval-id/aval/cmd/measure"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
)

// agent feeds snapshots and takes every record.
type agent struct {
	wire.UnimplementedProxyServer
	records atomic.Int64

	mu      sync.Mutex
	snap    *wire.Snapshot // guarded by mu
	changed chan struct{}  // guarded by mu; closed at the next snapshot
}

// publish gives the proxies a new snapshot with these policies.
func (a *agent) publish(policies []*wire.Resource) {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := a.snap
	a.snap = &wire.Snapshot{
		Position: &wire.Position{Epoch: 1, Revision: last.GetPosition().GetRevision() + 1}, Settings: last.Settings,
		SpiffeId: last.SpiffeId, Chain: last.Chain, Key: last.Key, Bundles: last.Bundles,
		WorkloadNamespace: last.WorkloadNamespace, IssuedAt: last.IssuedAt, Policies: policies,
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) Watch(_ *wire.WatchRequest, s grpc.ServerStreamingServer[wire.Snapshot]) error {
	for {
		a.mu.Lock()
		snap, changed := a.snap, a.changed
		a.mu.Unlock()
		if err := s.Send(snap); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (a *agent) Report(s grpc.BidiStreamingServer[wire.RecordBatch, wire.RecordsAck]) error {
	for {
		b, err := s.Recv()
		if err != nil {
			return err
		}
		a.records.Add(int64(len(b.Events)))
		if err := s.Send(&wire.RecordsAck{Sequence: b.Sequence}); err != nil {
			return err
		}
	}
}

// serve serves the agent's socket and returns it.
func (a *agent) serve(b testing.TB) string {
	b.Helper()
	socket := filepath.Join(scratch(b), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	g := grpc.NewServer()
	wire.RegisterProxyServer(g, a)
	go g.Serve(l)
	b.Cleanup(g.Stop)
	return socket
}

// stage is everything around those who are measured.
type stage struct {
	job   job // what its children are told
	agent *agent
	td    *identitytest.TrustDomain
	web   identity.SVID // a client that comes again and again
	api   identity.ID
}

// newStage runs an application and an agent whose policies allow the web
// client.
func newStage(b testing.TB, application string) *stage {
	b.Helper()
	td := identitytest.New(b, "example.org")
	api := td.SVID(b, "/ns/shop/sa/api")
	key, err := x509.MarshalPKCS8PrivateKey(api.Key)
	if err != nil {
		b.Fatal(err)
	}
	var chain [][]byte
	for _, c := range api.Chain {
		chain = append(chain, c.Raw)
	}
	s := &stage{td: td, web: td.SVID(b, "/ns/shop/sa/web"), api: api.ID, agent: &agent{changed: make(chan struct{}), snap: &wire.Snapshot{
		Settings: &wire.Settings{TrustDomain: "example.org"},
		SpiffeId: api.ID.String(), Chain: chain, Key: key, Bundles: []*wire.Bundle{wire.FromBundle(td.Bundle)},
		WorkloadNamespace: "shop", IssuedAt: api.IssuedAt.UnixMilli(),
	}}}
	s.agent.publish(policies(1, "web"))
	s.job = job{Agent: s.agent.serve(b), ID: api.ID.String(), Chain: chain, Key: key, Roots: td.Bundle.DERs()}
	s.job.App = startChild(b, application, job{Role: application}).address
	return s
}

// start runs a role in front of the application.
func (s *stage) start(b testing.TB, role string, change func(*job)) side {
	b.Helper()
	j := s.job
	j.Role = role
	if change != nil {
		change(&j)
	}
	return startChild(b, role, j)
}

// policies are n documents, of which the last allows the client.
func policies(n int, client string) []*wire.Resource {
	var all []*wire.Resource
	for i := range n {
		name, who := fmt.Sprintf("p%05d", i), fmt.Sprintf("w%d", i)
		if i == n-1 {
			who = client
		}
		all = append(all, &wire.Resource{
			Key: &wire.ResourceKey{Kind: "AuthorizationPolicy", Namespace: "shop", Name: name},
			Document: fmt.Appendf(nil, `{"apiVersion":"aval.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":%q,"namespace":"shop"},`+
				`"spec":{"action":"ALLOW","rules":[{"from":[{"source":{"principals":["example.org/ns/shop/sa/%s"]}}]}]}}`, name, who),
			Evaluator: 1,
		})
	}
	return all
}

// returning is the configuration of a client that comes again and again.
func (s *stage) returning(group tls.CurveID) *tls.Config {
	config := mtls.ClientConfig(mtls.Fixed{C: identity.NewCredentials(s.web, 1, s.td.Bundle)}, mtls.NewVerifier(0), mtls.ExactID(s.api))
	config.CurvePreferences = []tls.CurveID{group}
	return config
}

// fresh is the configuration of clients that nobody has seen: each
// connection comes with a certificate of its own.
func (s *stage) fresh(group tls.CurveID) *tls.Config {
	config := s.returning(group)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
		if err != nil {
			return nil, err
		}
		key := s.web.Key.(*ecdsa.PrivateKey)
		leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs: []*url.URL{s.web.ID.URI()}, BasicConstraintsValid: true,
		}, s.td.Intermediate, key.Public(), s.td.Key)
		return &tls.Certificate{Certificate: [][]byte{leaf, s.td.Intermediate.Raw}, PrivateKey: key}, err
	}
	return config
}

// What is measured must do the same work: every side takes the client's
// certificate and reaches the application.
func TestEverySideForwards(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newStage(t, "app")
	others := startPeers(t, s.job)
	if len(others.secure) < 2 {
		t.Skip("nginx and HAProxy are not both installed: .ci/setup installs them")
	}
	for _, side := range slices.Concat([]side{s.start(t, "proxy", nil), s.start(t, "floor", nil)}, others.secure, others.noTickets) {
		for name, config := range map[string]*tls.Config{"returning": s.returning(tls.X25519), "new": s.fresh(tls.X25519)} {
			conn, err := tls.Dial("tcp", side.address, config)
			if err != nil {
				t.Errorf("%s, %s peer: %v", side.name, name, err)
				continue
			}
			if err := ping(conn); err != nil {
				t.Errorf("%s, %s peer: %v", side.name, name, err)
			}
			if got := conn.ConnectionState().CurveID; got != tls.X25519 {
				t.Errorf("%s, %s peer: group %v", side.name, name, got)
			}
			conn.Close()
		}
		nobody := s.returning(tls.X25519)
		nobody.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
		if conn, err := tls.Dial("tcp", side.address, nobody); err == nil {
			if ping(conn) == nil {
				t.Errorf("%s lets a client without a certificate in", side.name)
			}
			conn.Close()
		}
	}
	s.agent.publish(nil)
	for _, side := range append(others.plain, s.start(t, "plain floor", nil), s.start(t, "proxy", nil)) {
		conn, err := plain(side)
		if err != nil {
			t.Fatal(err)
		}
		if err := ping(conn); err != nil {
			t.Errorf("%s in plaintext: %v", side.name, err)
		}
		conn.Close()
	}
}

// compare measures the sides in interleaved rounds and tells the first one's
// figure beside each other's. Most has the targets by name.
func compare(b *testing.B, what, unit string, most map[string]float64, sides []side, take func(side) float64) {
	b.Helper()
	for b.Loop() {
		var turns []func() float64
		for _, s := range sides {
			turns = append(turns, func() float64 { return take(s) })
		}
		tell(b, what, unit, most, sides, measure.Interleave(measure.Rounds, turns...))
	}
}

func tell(b *testing.B, what, unit string, most map[string]float64, sides []side, figures []float64) {
	b.Helper()
	for i, s := range sides[1:] {
		measure.Figure{What: what, Unit: unit, Ours: figures[0], Beside: s.name, Baseline: figures[i+1], Most: most[s.name]}.Tell(b)
	}
}
