// This file holds the benchmarks: interleaved rounds of floor and proxy, the
// median of each, and their ratio.

package bench

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
)

const (
	rounds          = 5
	roundTime       = 1500 * time.Millisecond
	idleConnections = 4000
)

// agent feeds one snapshot and takes every record.
type agent struct {
	wire.UnimplementedProxyServer
	snap    *wire.Snapshot
	records atomic.Int64
}

func (a *agent) Watch(_ *wire.WatchRequest, s grpc.ServerStreamingServer[wire.Snapshot]) error {
	if err := s.Send(a.snap); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
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

// stage is the two processes, their application and a client.
type stage struct {
	floor, proxy child
	agent        *agent
	client       *tls.Config
	hybrid       *tls.Config
}

func newStage(b *testing.B, serve func(net.Conn)) *stage {
	b.Helper()
	return stageFor(b, job{Role: "floor", App: listen(b, serve)})
}

// stageFor runs the floor that j says, and a proxy in front of its
// application, with further policies.
func stageFor(b *testing.B, j job, policies ...*wire.Resource) *stage {
	b.Helper()
	td := identitytest.New(b, "example.org")
	api, web := td.SVID(b, "/ns/shop/sa/api"), td.SVID(b, "/ns/shop/sa/web")
	key, err := x509.MarshalPKCS8PrivateKey(api.Key)
	if err != nil {
		b.Fatal(err)
	}
	var chain [][]byte
	for _, c := range api.Chain {
		chain = append(chain, c.Raw)
	}
	s := &stage{agent: &agent{snap: &wire.Snapshot{
		Position: &wire.Position{Epoch: 1, Revision: 1}, Settings: &wire.Settings{TrustDomain: "example.org"},
		SpiffeId: api.ID.String(), Chain: chain, Key: key, Bundles: []*wire.Bundle{wire.FromBundle(td.Bundle)},
		WorkloadNamespace: "shop", IssuedAt: api.IssuedAt.UnixMilli(),
		Policies: []*wire.Resource{{
			Key:       &wire.ResourceKey{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "callers"},
			Document:  []byte(`{"apiVersion":"aval.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"callers","namespace":"shop"},"spec":{"action":"ALLOW","rules":[{"from":[{"source":{"principals":["example.org/ns/shop/sa/web"]}}]}]}}`),
			Evaluator: 1,
		}},
	}}}
	s.agent.snap.Policies = append(s.agent.snap.Policies, policies...)
	j.Agent, j.ID, j.Chain, j.Key, j.Roots = s.serveAgent(b), api.ID.String(), chain, key, td.Bundle.DERs()
	s.floor = startChild(b, j)
	j.Role = "proxy"
	s.proxy = startChild(b, j)
	s.hybrid = mtls.ClientConfig(mtls.Fixed{C: identity.NewCredentials(web, 1, td.Bundle)}, mtls.NewVerifier(0), mtls.ExactID(api.ID))
	s.client = s.hybrid.Clone()
	s.client.CurvePreferences = []tls.CurveID{tls.X25519}
	return s
}

func (s *stage) serveAgent(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "aval-bench")
	if err != nil {
		b.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	g := grpc.NewServer()
	wire.RegisterProxyServer(g, s.agent)
	go g.Serve(l)
	b.Cleanup(func() {
		g.Stop()
		os.RemoveAll(dir)
	})
	return socket
}

// listen runs the application.
func listen(b *testing.B, serve func(net.Conn)) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

func echo(c net.Conn) {
	var b [64]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

func ping(c net.Conn) error {
	var b [1]byte
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:])
	return err
}

// interleave measures both in turn and returns the medians.
func interleave(n int, floor, proxy func() float64) (f, p float64) {
	var fs, ps []float64
	for range n {
		fs, ps = append(fs, floor()), append(ps, proxy())
	}
	slices.Sort(fs)
	slices.Sort(ps)
	return fs[n/2], ps[n/2]
}

func report(b *testing.B, f, p float64, unit string) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(f, "floor-"+unit)
	b.ReportMetric(p, "proxy-"+unit)
	b.ReportMetric(p/f, "ratio")
}

// BenchmarkHandshake is CPU of the serving process for a whole connection:
// accept, full mutual TLS 1.3 handshake, dial, one byte each way, close, and
// in the proxy the policy decision and the record.
func BenchmarkHandshake(b *testing.B) {
	for _, group := range []string{"X25519", "X25519MLKEM768"} {
		b.Run(group, func(b *testing.B) {
			s := newStage(b, echo)
			config := s.client
			if group != "X25519" {
				config = s.hybrid
			}
			handshakes(b, s.floor, config, 300*time.Millisecond)
			handshakes(b, s.proxy, config, 300*time.Millisecond)
			for b.Loop() {
				f, p := interleave(rounds,
					func() float64 { return handshakes(b, s.floor, config, roundTime) },
					func() float64 { return handshakes(b, s.proxy, config, roundTime) })
				report(b, f, p, "µs-CPU/handshake")
			}
			if s.agent.records.Load() == 0 {
				b.Error("no records were taken")
			}
		})
	}
}

func handshakes(b *testing.B, c child, config *tls.Config, d time.Duration) float64 {
	b.Helper()
	before, end := c.cpu(b), time.Now().Add(d)
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(end) {
				conn, err := tls.Dial("tcp", c.address, config)
				if err != nil {
					b.Error(err)
					return
				}
				if err := ping(conn); err != nil {
					b.Error(err)
				}
				conn.Close()
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(c.cpu(b)-before) / 1e3 / float64(max(1, n.Load()))
}

// BenchmarkBulk is CPU of the serving process per GB over four connections,
// with the client sending and with the application sending.
func BenchmarkBulk(b *testing.B) {
	for _, direction := range []string{"up", "down"} {
		b.Run(direction, func(b *testing.B) {
			// The first byte says who sends.
			s := newStage(b, func(c net.Conn) {
				var first [1]byte
				if _, err := io.ReadFull(c, first[:]); err != nil {
					return
				}
				if first[0] == 'u' {
					io.Copy(io.Discard, c)
					return
				}
				chunk := make([]byte, 256<<10)
				for {
					if _, err := c.Write(chunk); err != nil {
						return
					}
				}
			})
			for b.Loop() {
				f, p := interleave(rounds,
					func() float64 { return bulk(b, s.floor, s.client, direction) },
					func() float64 { return bulk(b, s.proxy, s.client, direction) })
				report(b, f, p, "s-CPU/GB")
			}
		})
	}
}

func bulk(b *testing.B, c child, config *tls.Config, direction string) float64 {
	b.Helper()
	var total atomic.Int64
	var wg sync.WaitGroup
	var conns []*tls.Conn
	for range 4 {
		conn, err := tls.Dial("tcp", c.address, config)
		if err != nil {
			b.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(roundTime))
		if _, err := conn.Write([]byte(direction[:1])); err != nil {
			b.Fatal(err)
		}
		conns = append(conns, conn)
	}
	before := c.cpu(b)
	for _, conn := range conns {
		wg.Go(func() {
			defer conn.Close()
			chunk := make([]byte, 256<<10)
			for {
				move := conn.Read
				if direction == "up" {
					move = conn.Write
				}
				n, err := move(chunk)
				total.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return (c.cpu(b) - before).Seconds() / (float64(total.Load()) / 1e9)
}

// BenchmarkIdle is resident memory of the serving process for each
// connection that has said one byte and idles.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		f, p := interleave(3,
			func() float64 { s := newStage(b, echo); return idle(b, s.floor, s.client) },
			func() float64 { s := newStage(b, echo); return idle(b, s.proxy, s.client) })
		report(b, f, p, "KiB/idle-connection")
	}
}

func idle(b *testing.B, c child, config *tls.Config) float64 {
	b.Helper()
	before := c.memory(b)
	conns := make([]*tls.Conn, idleConnections)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < len(conns); i += 8 {
				conn, err := tls.Dial("tcp", c.address, config)
				if err == nil {
					err = ping(conn)
				}
				if err != nil {
					b.Error(err)
					return
				}
				conns[i] = conn
			}
		})
	}
	wg.Wait()
	pause := time.NewTimer(2 * time.Second)
	<-pause.C
	after := c.memory(b)
	for _, conn := range conns {
		if conn != nil {
			conn.NetConn().Close()
		}
	}
	if b.Failed() {
		b.FailNow()
	}
	return (after - before) / idleConnections
}

// BenchmarkPing is CPU of the serving process for 64 bytes there and back on
// sixteen connections.
func BenchmarkPing(b *testing.B) {
	s := newStage(b, echo)
	for b.Loop() {
		f, p := interleave(rounds,
			func() float64 { return pings(b, s.floor, s.client) },
			func() float64 { return pings(b, s.proxy, s.client) })
		report(b, f, p, "µs-CPU/ping")
	}
}

func pings(b *testing.B, c child, config *tls.Config) float64 {
	b.Helper()
	var conns []*tls.Conn
	for range 16 {
		conn, err := tls.Dial("tcp", c.address, config)
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, conn)
	}
	before, end := c.cpu(b), time.Now().Add(roundTime)
	var n atomic.Int64
	var wg sync.WaitGroup
	for _, conn := range conns {
		wg.Go(func() {
			defer conn.Close()
			var buf [64]byte
			for time.Now().Before(end) {
				if _, err := conn.Write(buf[:]); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(conn, buf[:]); err != nil {
					b.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(c.cpu(b)-before) / 1e3 / float64(max(1, n.Load()))
}

func BenchmarkBaseMemory(b *testing.B) {
	s := newStage(b, echo)
	for b.Loop() {
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(s.proxy.memory(b)/1024, "proxy-MiB")
		b.ReportMetric(s.floor.memory(b)/1024, "floor-MiB")
	}
}
