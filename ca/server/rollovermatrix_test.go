// This file holds the matrix of handshakes: in every phase of a rollover,
// leaves of before and after it, peers with an old bundle and with a new one,
// and the TLS of others: go-spiffe, OpenSSL, GnuTLS.

package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// leafOf has a leaf with a DNS name issued, which GnuTLS asks for.
func (m *member) leafOf(t testing.TB) identity.SVID {
	t.Helper()
	key := newKey()
	req := &wire.IssueRequest{Request: 1, Registration: "shop/web", SpiffeId: "spiffe://example.org/web", Csr: csrOf(key)}
	if err := m.stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Issue{Issue: &wire.IssueBatch{Batch: 7, Requests: []*wire.IssueRequest{req}}}}); err != nil {
		t.Fatal(err)
	}
	for {
		if res := m.answer(t).GetIssued(); res != nil {
			return must(identity.NewSVID(must(identity.ParseChain(res.GetResults()[0].GetChain())), key, time.Now()))
		}
	}
}

// handshakes are the ways in which a peer that holds bundle checks svid.
var handshakes = map[string]func(t *testing.T, svid identity.SVID, bundle identity.Bundle) error{
	"aval":           avalClient,
	"go-spiffe":      spiffeClient,
	"go-spiffe/srv":  spiffeServer,
	"openssl":        opensslClient,
	"openssl/server": opensslServer,
	"gnutls":         gnutlsClient,
}

func TestPeersOfOthersCompleteHandshakesInEveryPhase(t *testing.T) {
	r := start(t, testConfig(shortDir(t)))
	r.apply(t, registration("shop", "web", "/web", `,"dnsNames":["web.example.org"]`))
	m := r.member(t, "one")
	type held struct {
		name   string
		bundle identity.Bundle
	}
	type leaf struct {
		name string
		svid identity.SVID
	}
	old := held{"old bundle", r.trust.Load().bundle}
	first := leaf{"leaf of the old root", m.leafOf(t)}
	check := func(phase rotation.Phase, leaves []leaf, bundles []held) {
		for _, l := range leaves {
			for _, b := range bundles {
				for name, try := range handshakes {
					if err := try(t, l.svid, b.bundle); err != nil {
						t.Errorf("%s, %s, %s, %s: %v", phase, l.name, b.name, name, err)
					}
				}
			}
		}
	}
	must(r.admin.Rotate(t.Context(), &wire.RotateRequest{Verb: "start", Target: "root", Settle: time.Hour.Milliseconds()}))
	r.follows(t, rotation.Published, m)
	both := held{"both roots", r.trust.Load().bundle}
	check(rotation.Published, []leaf{first}, []held{old, both})
	r.follows(t, rotation.Active, m)
	next := leaf{"leaf of the new root", m.leafOf(t)}
	check(rotation.Active, []leaf{first, next}, []held{old, both})
	r.follows(t, rotation.Retiring, m)
	check(rotation.Retiring, []leaf{next}, []held{old, both})
	r.rotate(t, "force")
	last := leaf{"leaf of after the removal", m.leafOf(t)}
	check(rotation.Removed, []leaf{next, last}, []held{both, {"new bundle", r.trust.Load().bundle}})
	// The matrix would notice: the old root's leaf is good no more.
	for name, try := range handshakes {
		if err := try(t, first.svid, r.trust.Load().bundle); err == nil || errors.Is(err, errMissing) {
			t.Errorf("%s takes a leaf of the removed root", name)
		}
	}
}

var errMissing = errors.New("program is missing")

// serveOnce serves one handshake with a configuration on loopback.
func serveOnce(t *testing.T, config *tls.Config) (addr string, result <-chan error) {
	t.Helper()
	l := must(tls.Listen("tcp", "127.0.0.1:0", config))
	done := make(chan error, 1)
	go func() {
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if err = c.(*tls.Conn).Handshake(); err == nil {
			_, err = c.Write([]byte("hello\n"))
		}
		io.Copy(io.Discard, c)
		done <- err
	}()
	return l.Addr().String(), done
}

func avalClient(t *testing.T, svid identity.SVID, bundle identity.Bundle) error {
	addr, done := serveOnce(t, &tls.Config{Certificates: []tls.Certificate{*svid.TLSCertificate()}, MinVersion: tls.VersionTLS13})
	config := mtls.ClientConfig(mtls.Fixed{C: identity.NewCredentials(identity.SVID{}, 1, bundle)}, mtls.NewVerifier(0), mtls.ExactID(svid.ID))
	config.GetClientCertificate = nil
	c, err := tls.Dial("tcp", addr, config)
	if err == nil {
		c.Close()
	}
	<-done
	return err
}

func spiffeBundle(b identity.Bundle) *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(b.TrustDomain().String()), b.Roots())
}

func spiffeClient(t *testing.T, svid identity.SVID, bundle identity.Bundle) error {
	addr, done := serveOnce(t, &tls.Config{Certificates: []tls.Certificate{*svid.TLSCertificate()}, MinVersion: tls.VersionTLS13})
	c, err := tls.Dial("tcp", addr, tlsconfig.TLSClientConfig(spiffeBundle(bundle), tlsconfig.AuthorizeID(spiffeid.RequireFromString(svid.ID.String()))))
	if err == nil {
		c.Close()
	}
	<-done
	return err
}

func spiffeServer(t *testing.T, svid identity.SVID, bundle identity.Bundle) error {
	own := &x509svid.SVID{ID: spiffeid.RequireFromString(svid.ID.String()), Certificates: svid.Chain, PrivateKey: svid.Key}
	addr, done := serveOnce(t, tlsconfig.MTLSServerConfig(own, spiffeBundle(bundle), tlsconfig.AuthorizeAny()))
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*svid.TLSCertificate()}})
	if err != nil {
		<-done
		return err
	}
	_, err = bufio.NewReader(c).ReadString('\n')
	c.Close()
	<-done
	return err
}

// bundleFile writes a bundle as PEM.
func bundleFile(t *testing.T, b identity.Bundle) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(path, identity.EncodeCertificates(b.Roots()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// outside runs a program of others against a Go server that presents svid.
func outside(t *testing.T, svid identity.SVID, program string, args func(host, port string) []string) error {
	if _, err := exec.LookPath(program); err != nil {
		t.Logf("%s is not installed: .ci/setup installs it", program)
		return nil
	}
	addr, done := serveOnce(t, &tls.Config{Certificates: []tls.Certificate{*svid.TLSCertificate()}})
	host, port, _ := net.SplitHostPort(addr)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args(host, port)...).CombinedOutput()
	if served := <-done; err != nil || served != nil {
		return fmt.Errorf("%v, %v: %s", err, served, out)
	}
	return nil
}

func opensslClient(t *testing.T, svid identity.SVID, bundle identity.Bundle) error {
	ca := bundleFile(t, bundle)
	return outside(t, svid, "openssl", func(host, port string) []string {
		return []string{"s_client", "-connect", host + ":" + port, "-CAfile", ca, "-no-CApath", "-no-CAstore", "-verify_return_error", "-verify_hostname", "web.example.org", "-tls1_3"}
	})
}

func gnutlsClient(t *testing.T, svid identity.SVID, bundle identity.Bundle) error {
	ca := bundleFile(t, bundle)
	return outside(t, svid, "gnutls-cli", func(host, port string) []string {
		return []string{"--port", port, "--x509cafile", ca, "--verify-hostname", "web.example.org", host}
	})
}

// opensslServer has OpenSSL verify a client that presents svid.
func opensslServer(t *testing.T, svid identity.SVID, bundle identity.Bundle) error {
	if _, err := exec.LookPath("openssl"); err != nil {
		return nil
	}
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	port := fmt.Sprint(freePort(t))
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "openssl", "s_server", "-accept", "127.0.0.1:"+port, "-www", "-quiet", "-no-CApath", "-no-CAstore",
		"-cert", write("leaf.pem", identity.EncodeCertificates(svid.Chain[:1])), "-key", write("key.pem", must(identity.EncodeKey(svid.Key))),
		"-cert_chain", write("chain.pem", identity.EncodeCertificates(svid.Chain[1:])), "-CAfile", bundleFile(t, bundle),
		"-Verify", "8", "-verify_return_error")
	if err := cmd.Start(); err != nil {
		cancel()
		return err
	}
	defer cmd.Wait()
	defer cancel()
	config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*svid.TLSCertificate()}, MinVersion: tls.VersionTLS13}
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := tls.Dial("tcp", "127.0.0.1:"+port, config)
		if err == nil {
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
			line, err := bufio.NewReader(c).ReadString('\n')
			if err == nil && !strings.HasPrefix(line, "HTTP/1.0 200") {
				err = fmt.Errorf("OpenSSL answered %q", line)
			}
			return err
		}
		select {
		case <-deadline.C:
			return err
		case <-tick.C:
		}
	}
}
