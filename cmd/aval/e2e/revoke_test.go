// This file holds revocation with real processes.

package e2e

import (
	"crypto/tls"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/identity"
)

const webID = "spiffe://example.org/ns/shop/sa/web"

// hold opens a connection from web to api that stays open.
func (s *shop) hold(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.outbound)
	avaltest.Must(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: api\r\n\r\n")
	avaltest.Must(t, err)
	var first [1]byte
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = io.ReadFull(c, first[:])
	avaltest.Must(t, err)
	return c
}

// revoked counts the connection records that say so of web.
func (s *shop) revoked() int {
	n := 0
	for _, e := range s.Entries("connection") {
		if e["reason"] == "revoked" && e["client_id"] == webID {
			n++
		}
	}
	return n
}

func TestARevokedWorkloadIsCutAtOnceAndStaysOutUntilLifted(t *testing.T) {
	s := newShop(t, "1h")
	s.open(t)
	held := s.hold(t)
	began := time.Now()
	s.Aval("revoke", "shop/web", "--yes", "--reason", "its key was copied")
	held.SetReadDeadline(began.Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, held); err != nil {
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			t.Fatal("the open connection was not cut")
		}
	}
	t.Logf("the open connection was cut %s after the command began", time.Since(began).Round(time.Millisecond))
	s.Await("the cut is recorded as revoked", func() bool { return s.revoked() > 0 })
	if s.call(nil) == nil {
		t.Error("a revoked workload's call succeeded")
	}
	if _, stderr, code := s.Run(nil, "revoke", "lift", "shop/api"); code == 0 {
		t.Errorf("what is not revoked was lifted: %s", stderr)
	}
	s.Await("the revocation can be lifted", func() bool {
		_, _, code := s.Run(nil, "revoke", "lift", "shop/web")
		return code == 0
	})
	s.Await("a call succeeds again", func() bool { return s.call(nil) == nil })
}

func TestARevokedSerialIsReplacedAtOnce(t *testing.T) {
	s := newShop(t, "1h")
	s.open(t)
	held := s.hold(t)
	serial := ""
	for _, e := range s.Entries("issuance") {
		if e["spiffe_id"] == webID {
			serial = e["serial"].(string)
		}
	}
	s.Aval("revoke", serial, "--yes")
	held.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, held); err != nil {
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			t.Fatal("the open connection was not cut")
		}
	}
	s.Await("a call by a new SVID succeeds", func() bool { return s.call(nil) == nil })
}

// steal returns the SVID of web as a thief holds it: a copy of its files.
func (s *shop) steal(t *testing.T) (stolen tls.Certificate, serial string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(filepath.Join(s.Dir, "web"), "svid", "fetch", "--socket", s.Socket, "--write", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("svid fetch: %v\n%s", err, out)
	}
	stolen, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.0.pem"), filepath.Join(dir, "svid.0.key"))
	avaltest.Must(t, err)
	return stolen, identity.Serial(stolen.Leaf)
}

// dialAs reports whether api's application answers on a connection of its own.
func (s *shop) dialAs(cert tls.Certificate) bool {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := tls.DialWithDialer(&d, "tcp", s.inbound, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	var first [1]byte
	_, err = io.ReadFull(c, first[:])
	return err == nil
}

func TestAStolenSVIDStaysRefusedOverEveryRestart(t *testing.T) {
	s := newShop(t, "1h")
	s.open(t)
	stolen, serial := s.steal(t)
	if !s.dialAs(stolen) {
		t.Fatal("the stolen SVID is not good before it is revoked")
	}
	s.Aval("revoke", "--node", "n1", "--yes")
	s.Await("the stolen SVID is refused", func() bool { return !s.dialAs(stolen) })
	refusals := func() (n int) {
		for _, e := range s.Entries("connection") {
			if e["reason"] == "revoked" && e["client_serial"] == serial {
				n++
			}
		}
		return n
	}
	s.Await("the refusal is recorded as revoked", func() bool { return refusals() > 0 })
	s.Await("a call by new SVIDs succeeds", func() bool { return s.call(nil) == nil })
	for _, restart := range []func(){
		func() { s.Server.Kill(); s.StartServer("--default-ttl", "1h") },
		func() { s.Agent.Kill(); s.StartAgentWith("n1", avaltest.Token{}) },
		func() { s.api.Kill(); s.api = s.Proxy("api", s.admit) },
	} {
		restart()
		s.Await("a call succeeds after the restart", func() bool { return s.call(nil) == nil })
		if s.dialAs(stolen) {
			t.Fatal("a restart made the stolen SVID good again")
		}
	}
}
