// Package bench measures the whole: real processes of the real binary on one
// machine. This file holds the benchmarks of latency: from a registration to the SVID
// on an open stream, from a deletion to its absence, a thousand SVIDs for a
// new agent, and the start of each part.
package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/cmd/measure"
	"github.com/aval-id/aval/identity/wire"
)

const rounds = 150

func BenchmarkRegistrationToOpenStream(b *testing.B) {
	f := avaltest.New(b)
	f.StartServer()
	admin := f.Operator()
	_, err := admin.Apply(b.Context(), &wire.ApplyRequest{Documents: [][]byte{avaltest.Registration("bench", "base")}})
	avaltest.Must(b, err)
	f.StartAgent("latency")
	messages := f.Stream()
	avaltest.Until(b, "the first SVID", messages, holds(1))

	const id = "spiffe://example.org/ns/bench/sa/extra"
	var applied, gone, whole, floor []time.Duration
	for b.Loop() {
		for range rounds {
			floor = append(floor, leafFloor(b, f.Dir))
			began := time.Now()
			_, err := admin.Apply(b.Context(), &wire.ApplyRequest{Documents: [][]byte{avaltest.Registration("bench", "extra")}})
			returned := time.Now()
			avaltest.Must(b, err)
			avaltest.Until(b, "the new SVID", messages, func(m *workload.X509SVIDResponse) bool { return slices.Contains(avaltest.IDs(m), id) })
			applied, whole = append(applied, time.Since(returned)), append(whole, time.Since(began))

			_, err = admin.Delete(b.Context(), &wire.DeleteRequest{Keys: []*wire.ResourceKey{{Kind: "Registration", Namespace: "bench", Name: "extra"}}})
			returned = time.Now()
			avaltest.Must(b, err)
			avaltest.Until(b, "its absence", messages, func(m *workload.X509SVIDResponse) bool { return !slices.Contains(avaltest.IDs(m), id) })
			gone = append(gone, time.Since(returned))
		}
	}
	measure.Figure{What: "apply called until the SVID is there, p50", Unit: "ms", Ours: quantile(whole, 50), Beside: "floor", Baseline: quantile(floor, 50)}.Tell(b)
	for _, f := range []struct {
		what string
		took []time.Duration
	}{{"apply returned until the SVID is there", applied}, {"delete returned until the SVID is gone", gone}} {
		measure.Figure{What: f.what + ", p50", Unit: "ms", Ours: quantile(f.took, 50)}.Tell(b)
		measure.Figure{What: f.what + ", p99", Unit: "ms", Ours: quantile(f.took, 99)}.Tell(b)
	}
}

// leafFloor does in one goroutine, without any network, what the trip of an
// identity can't go without: two durable writes, a key, a CSR and a leaf.
func leafFloor(b *testing.B, dir string) time.Duration {
	b.Helper()
	began := time.Now()
	for range 2 {
		file, err := os.OpenFile(filepath.Join(dir, "floor"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		avaltest.Must(b, err)
		_, err = file.Write(make([]byte, 512))
		avaltest.Must(b, err)
		avaltest.Must(b, file.Sync())
		avaltest.Must(b, file.Close())
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	avaltest.Must(b, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	avaltest.Must(b, err)
	csr, err := x509.ParseCertificateRequest(der)
	avaltest.Must(b, err)
	avaltest.Must(b, csr.CheckSignature())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: began, NotAfter: began.Add(time.Hour)}
	_, err = x509.CreateCertificate(rand.Reader, template, template, csr.PublicKey, key)
	avaltest.Must(b, err)
	return time.Since(began)
}

func BenchmarkThousandSVIDsForANewAgent(b *testing.B) {
	const count = 1000
	f := avaltest.New(b)
	f.StartServer()
	admin := f.Operator()
	var documents [][]byte
	for i := range count {
		documents = append(documents, avaltest.Registration("bench", fmt.Sprintf("w%d", i)))
	}
	_, err := admin.Apply(b.Context(), &wire.ApplyRequest{Documents: documents})
	avaltest.Must(b, err)
	var took []time.Duration
	for i := range 5 {
		began := f.StartAgent(fmt.Sprintf("n%d", i))
		avaltest.Until(b, "a thousand SVIDs", f.Stream(), holds(count))
		took = append(took, time.Since(began))
		f.Agent.Kill()
	}
	measure.Figure{What: "agent's start until 1,000 SVIDs, p50", Unit: "ms", Ours: quantile(took, 50)}.Tell(b)
}

func BenchmarkStartAndFootprint(b *testing.B) {
	f := avaltest.New(b)
	f.StartServer()
	admin := f.Operator()
	_, err := admin.Apply(b.Context(), &wire.ApplyRequest{Documents: [][]byte{avaltest.Registration("bench", "web")}})
	avaltest.Must(b, err)
	var first []time.Duration
	for i := range 5 {
		began := f.StartAgent(fmt.Sprintf("n%d", i))
		avaltest.Until(b, "the first SVID", f.Stream(), holds(1))
		first = append(first, time.Since(began))
		if i < 4 {
			f.Agent.Kill()
		}
	}
	config := filepath.Join(f.Dir, "proxy.yaml")
	listen := avaltest.FreeAddress(b)
	avaltest.Must(b, os.WriteFile(config, fmt.Appendf(nil,
		"agent: unix://%s\ninbound: [{listen: %s, forward: 127.0.0.1:9}]\n", f.Socket, listen), 0o600))
	proxy := f.Start("proxy", "--config", config)
	f.Reachable(listen)

	size, err := os.Stat(f.Binary)
	avaltest.Must(b, err)
	for _, figure := range []measure.Figure{
		{What: "server's start until it is ready", Unit: "ms", Ours: float64(f.Ready.Milliseconds())},
		{What: "agent's start until the first SVID, p50", Unit: "ms", Ours: quantile(first, 50)},
		{What: "server, idle", Unit: "MiB", Ours: measure.Resident(b, f.Server.Process.Pid) / 1024},
		{What: "agent, idle", Unit: "MiB", Ours: measure.Resident(b, f.Agent.Process.Pid) / 1024},
		{What: "proxy, idle", Unit: "MiB", Ours: measure.Resident(b, proxy.Process.Pid) / 1024, Most: 30},
		{What: "the binary", Unit: "MiB", Ours: float64(size.Size()) / (1 << 20)},
	} {
		figure.Tell(b)
	}
}

// holds accepts a message with this many SVIDs.
func holds(n int) func(*workload.X509SVIDResponse) bool {
	return func(m *workload.X509SVIDResponse) bool { return len(m.GetSvids()) == n }
}

// quantile returns the pth percentile in milliseconds.
func quantile(d []time.Duration, p int) float64 {
	var ms []float64
	for _, one := range d {
		ms = append(ms, float64(one.Microseconds())/1000)
	}
	return measure.Quantile(ms, p)
}
