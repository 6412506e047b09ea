// This file holds the scene of most tests: a trust domain, an agent, the
// workloads web and api, and applications for api.

package proxy

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/mtls"
)

func TestMain(m *testing.M) {
	for variable, run := range map[string]func(string) error{childVariable: runChild, redirectedVariable: runRedirected} {
		text := os.Getenv(variable)
		if text == "" {
			continue
		}
		if err := run(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	webPath = "/ns/shop/sa/web"
	apiPath = "/ns/shop/sa/api"
)

type scene struct {
	td    *identitytest.TrustDomain
	agent *fakeAgent
	web   identity.SVID
	api   identity.SVID
	rev   uint64
}

func newScene(t testing.TB) *scene {
	t.Helper()
	td := identitytest.New(t, "example.org")
	s := &scene{td: td, agent: newFakeAgent(t), web: td.SVID(t, webPath),
		api: td.SVID(t, apiPath, identitytest.DNSNames("api.shop"))}
	s.agent.start()
	return s
}

// publish gives api these policies, and web none.
func (s *scene) publish(t testing.TB, policies string) {
	t.Helper()
	s.rev++
	s.agent.put(workload{td: s.td, svid: s.api, revision: s.rev, policies: policies}.snapshot(t))
	s.agent.put(workload{td: s.td, svid: s.web, revision: s.rev}.snapshot(t))
}

// inbound runs api's proxy in front of an application.
func (s *scene) inbound(t testing.TB, forward string, change func(*Config)) (*Proxy, string) {
	t.Helper()
	cfg := Config{Agent: s.agent.socket, Identity: s.api.ID,
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: forward, Port: 8080}},
		Limits:  Limits{Drain: 2 * time.Second}}
	if change != nil {
		change(&cfg)
	}
	p, _ := runProxy(t, cfg)
	return p, p.Status().Inbound[0]
}

// outbound runs web's proxy towards an address.
func (s *scene) outbound(t testing.TB, dial string, id identity.ID) (*Proxy, string) {
	t.Helper()
	p, _ := runProxy(t, Config{Agent: s.agent.socket, Identity: s.web.ID,
		Outbound: []Outbound{{Listen: "127.0.0.1:0", Dial: dial, ID: id}},
		Limits:   Limits{Drain: 2 * time.Second}})
	return p, p.Status().Outbound[0]
}

// client is a TLS client configuration that presents an SVID.
func (s *scene) client(svid identity.SVID) *tls.Config {
	return mtls.ClientConfig(mtls.Fixed{C: identity.NewCredentials(svid, 1, s.td.Bundle)}, new(mtls.Verifier), mtls.ExactID(s.api.ID))
}

// rawClient presents any chain, and does not care who answers.
func rawClient(key *ecdsa.PrivateKey, chain ...*x509.Certificate) *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true}
	if len(chain) > 0 {
		cert := tls.Certificate{PrivateKey: key}
		for _, x := range chain {
			cert.Certificate = append(cert.Certificate, x.Raw)
		}
		// Unlike Certificates, this presents it whatever the server asks for.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return c
}

// exchange sends a line and reads the answer's.
func exchange(c net.Conn, line string) (string, error) {
	c.SetDeadline(time.Now().Add(8 * time.Second))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", err
	}
	return got[:len(got)-1], nil
}

// callTo dials, optionally with TLS, and exchanges one line.
func callTo(address string, config *tls.Config) (string, error) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if config != nil {
		c = tls.Client(c, config)
	}
	return exchange(c, "ping")
}

// mustDial opens a TCP connection that the test closes at its end.
func mustDial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(15 * time.Second))
	return c.(*net.TCPConn)
}

// app serves each connection with f until the test ends.
func app(t testing.TB, f func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

func echo(t testing.TB) string {
	return app(t, func(c *net.TCPConn) { io.Copy(c, c) })
}

// greeter speaks first and then echoes.
func greeter(t testing.TB) string {
	return app(t, func(c *net.TCPConn) {
		if _, err := io.WriteString(c, "hello\n"); err == nil {
			io.Copy(c, c)
		}
	})
}

// gone reports that a read says the connection ended, in whatever way.
func gone(c net.Conn) error {
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	if n > 0 {
		return errors.New("bytes came before the end")
	}
	return nil
}

// eventually waits for a condition without sleeping through it.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	eventuallyWithin(t, 8*time.Second, what, ok)
}

func eventuallyWithin(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(limit)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}
