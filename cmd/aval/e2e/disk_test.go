// This file holds the full disk and the flood.

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

func TestAFullAuthorityDiskStopsIssuanceAndNothingElse(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	f := avaltest.New(t)
	avaltest.Must(t, os.MkdirAll(filepath.Join(f.ServerDir, "audit"), 0o700))
	avaltest.Must(t, os.Chmod(f.ServerDir, 0o700))
	small := filepath.Join(f.ServerDir, "audit")
	avaltest.Must(t, syscall.Mount("tmpfs", small, "tmpfs", 0, "size=48m,mode=0700"))
	t.Cleanup(func() {
		f.Server.Stop()
		syscall.Unmount(small, syscall.MNT_DETACH)
	})
	f.StartServer()
	f.StartAgent("n1")
	messages := f.Stream()
	f.Apply(string(avaltest.Registration("shop", "a")))
	avaltest.Until(t, "a's SVID", messages, hasSVID)
	before := len(f.Entries("issuance"))

	ballast := filepath.Join(small, "ballast")
	fill(t, ballast)
	// The agent lives on with what it has, and new identities are refused.
	f.Run(avaltest.Registration("shop", "b"), "apply", "-f", "-")
	for i := range 40 { // spends what is left of a page
		f.Run(avaltest.Registration("shop", fmt.Sprintf("c%d", i)), "apply", "-f", "-")
	}
	if out, stderr, code := f.Run(nil, "svid", "fetch", "--socket", f.Socket, "--timeout", "3s"); code != 5 && code != 0 && code != 4 {
		t.Fatalf("svid fetch on a full disk: exit %d\n%s%s", code, out, stderr)
	}
	full := len(f.Entries("issuance"))
	avaltest.Must(t, os.Remove(ballast))
	f.Apply(string(avaltest.Registration("shop", "d")))
	f.Await("issuance goes on after there is space", func() bool { return len(f.Entries("issuance")) > full })
	if full < before {
		t.Fatalf("%d issuances became %d", before, full)
	}
	f.Aval("audit", "verify", "--data-dir", f.ServerDir)
}

func TestAFullConnectionLogOnlyCounts(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	s := newShop(t, "1h")
	s.Server.Stop()
	small := filepath.Join(s.ServerDir, "audit", "connections")
	avaltest.Must(t, syscall.Mount("tmpfs", small, "tmpfs", 0, "size=256k,mode=0700"))
	t.Cleanup(func() {
		s.Server.Stop()
		syscall.Unmount(small, syscall.MNT_DETACH)
	})
	s.StartServer("--default-ttl", "1h", "--min-ttl", "1h")
	s.open(t)
	messages := s.Stream()

	s.Await("records are lost and counted", func() bool {
		for range 20 {
			if err := s.call(nil); err != nil {
				t.Fatalf("a call while the connection log fills: %v", err)
			}
		}
		return s.metric("aval_server_lost_total") > 0
	})
	s.Apply(string(avaltest.Registration("shop", "late")))
	avaltest.Until(t, "an SVID with the connection log full", messages, hasSVID)
	if err := s.call(nil); err != nil {
		t.Fatal(err)
	}
}

// metric returns the server's value of a metric without labels.
func (s *shop) metric(name string) float64 {
	resp, err := http.Get("http://" + s.HTTP + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	avaltest.Must(t, err)
	defer file.Close()
	for _, size := range []int{1 << 20, 4096} {
		block := make([]byte, size)
		for {
			if _, err := file.Write(block); err != nil {
				break
			}
		}
	}
}

func TestAFloodOfFailingHandshakesStopsNoIssuance(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := newShop(t, "1h")
	s.open(t)
	messages := s.Stream()
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for range 8 {
		flood.Go(func() {
			for range 500 {
				select {
				case <-stop:
					return
				default:
				}
				c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", s.inbound, &tls.Config{InsecureSkipVerify: true})
				if err == nil {
					c.Read(make([]byte, 1))
					c.Close()
				}
			}
		})
	}
	for i := range 10 {
		name := fmt.Sprintf("f%d", i)
		s.Apply(string(avaltest.Registration("shop", name)))
		avaltest.Until(t, "an SVID in the flood", messages, func(m svids) bool {
			for _, id := range avaltest.IDs(m) {
				if strings.HasSuffix(id, "/"+name) {
					return true
				}
			}
			return false
		})
	}
	close(stop)
	flood.Wait()
	s.Await("the refusals are on record", func() bool {
		for _, e := range s.Entries("connection") {
			if e["reason"] == "no_client_certificate" {
				return true
			}
		}
		return false
	})
	if err := s.call(nil); err != nil {
		t.Fatal(err)
	}
}
