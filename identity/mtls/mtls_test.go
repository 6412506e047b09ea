// This file holds the tests of TLS configurations and of Verifier: real TLS
// over real sockets.

package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/mtls"
)

// handshake runs one handshake over loopback and returns both sides' errors.
// The client's includes what a first read tells it, since a TLS 1.3 server
// refuses after the client believes to be done.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, srv, cli error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		err = s.HandshakeContext(ctx)
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := tls.Client(c, client)
	if cli = conn.HandshakeContext(t.Context()); cli == nil {
		state = conn.ConnectionState()
		_, cli = conn.Read(make([]byte, 1))
	}
	return state, <-done, cli
}

func reason(err error) string {
	if r, ok := errors.AsType[*mtls.Rejection](err); ok {
		return r.Reason
	}
	return ""
}

func TestBothSidesAuthenticateOnTLS13WithTheHybridGroup(t *testing.T) {
	d := identitytest.New(t, "example.org")
	v := mtls.NewVerifier(0)
	var seen atomic.Pointer[mtls.Peer]
	server := mtls.ServerConfig(mtls.Fixed{C: d.Credentials(t, "/api")}, v, func(p mtls.Peer, _ tls.ConnectionState) error {
		seen.Store(&p)
		return nil
	})
	client := mtls.ClientConfig(mtls.Fixed{C: d.Credentials(t, "/web")}, v, mtls.ExactID(d.ID(t, "/api")))
	state, srv, cli := handshake(t, server, client)
	if srv != nil || cli != nil {
		t.Fatal(srv, cli)
	}
	if mtls.VersionName(state.Version) != "1.3" || mtls.GroupName(state.CurveID) != "X25519MLKEM768" {
		t.Fatalf("version %s, group %s", mtls.VersionName(state.Version), mtls.GroupName(state.CurveID))
	}
	if p := seen.Load(); p == nil || p.ID != d.ID(t, "/web") || p.Serial == "" {
		t.Fatalf("server saw %+v", p)
	}
}

func TestRefusalsOfClients(t *testing.T) {
	d, foreign := identitytest.New(t, "example.org"), identitytest.New(t, "other.org")
	impostor := identitytest.New(t, "example.org") // same name, another root
	past, soon := time.Now().Add(-2*time.Hour), time.Now().Add(time.Hour)
	creds := func(s identity.SVID) *identity.Credentials { return identity.NewCredentials(s, 1, d.Bundle) }
	authority, err := identity.NewSVID([]*x509.Certificate{d.Leaf(t, "/x", d.Key.Public())}, d.Key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	asClient := *authority.TLSCertificate()
	asClient.Certificate = [][]byte{d.Intermediate.Raw}
	asClient.Leaf = nil
	cases := []struct {
		name, want string
		client     *tls.Config
	}{
		{"no certificate", mtls.ReasonNoCertificate, &tls.Config{InsecureSkipVerify: true}},
		{"unknown authority", mtls.ReasonUnknownAuthority, mtls.ClientConfig(mtls.Fixed{C: creds(impostor.SVID(t, "/web"))}, mtls.NewVerifier(0), nil)},
		{"foreign trust domain", mtls.ReasonWrongTrustDomain, mtls.ClientConfig(mtls.Fixed{C: creds(foreign.SVID(t, "/web"))}, mtls.NewVerifier(0), nil)},
		{"expired", mtls.ReasonExpired, mtls.ClientConfig(mtls.Fixed{C: creds(d.SVID(t, "/web", identitytest.Lifetime(past, past.Add(time.Hour))))}, mtls.NewVerifier(0), nil)},
		{"not yet valid", mtls.ReasonNotYetValid, mtls.ClientConfig(mtls.Fixed{C: creds(d.SVID(t, "/web", identitytest.Lifetime(soon, soon.Add(time.Hour))))}, mtls.NewVerifier(0), nil)},
		{"denied", mtls.ReasonPolicyDenied, mtls.ClientConfig(mtls.Fixed{C: d.Credentials(t, "/intruder")}, mtls.NewVerifier(0), nil)},
		{"X-6 intermediate as client", mtls.ReasonNotAnSVID, &tls.Config{InsecureSkipVerify: true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &asClient, nil }}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			server := mtls.ServerConfig(mtls.Fixed{C: d.Credentials(t, "/api")}, mtls.NewVerifier(0), func(p mtls.Peer, _ tls.ConnectionState) error {
				if p.ID.Path() == "/intruder" {
					return errors.New("no policy allows it")
				}
				return nil
			})
			_, srv, cli := handshake(t, server, c.client)
			if reason(srv) != c.want {
				t.Errorf("server says %v, want the reason %s", srv, c.want)
			}
			if cli == nil {
				t.Error("the client was served")
			}
		})
	}
	t.Run("TLS 1.2", func(t *testing.T) {
		server := mtls.ServerConfig(mtls.Fixed{C: d.Credentials(t, "/api")}, mtls.NewVerifier(0), nil)
		_, srv, _ := handshake(t, server, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		if srv == nil || !strings.Contains(srv.Error(), "unsupported versions") {
			t.Fatalf("server says %v", srv)
		}
	})
}

func TestClientPinsTheServersID(t *testing.T) {
	d := identitytest.New(t, "example.org")
	v := mtls.NewVerifier(0)
	server := mtls.ServerConfig(mtls.Fixed{C: d.Credentials(t, "/other")}, v, nil)
	client := mtls.ClientConfig(mtls.Fixed{C: d.Credentials(t, "/web")}, v, mtls.ExactID(d.ID(t, "/api")))
	if _, _, cli := handshake(t, server, client); reason(cli) != mtls.ReasonIDMismatch {
		t.Fatalf("client says %v", cli)
	}
	client = mtls.ClientConfig(mtls.Fixed{C: d.Credentials(t, "/web")}, v, mtls.HasRole(d.Name, identity.RoleServer))
	if _, _, cli := handshake(t, server, client); reason(cli) != mtls.ReasonIDMismatch {
		t.Fatalf("a workload posed as server: %v", cli)
	}
}

func TestNoSessionIsResumed(t *testing.T) {
	d := identitytest.New(t, "example.org")
	v := mtls.NewVerifier(0)
	denied := false
	server := mtls.ServerConfig(mtls.Fixed{C: d.Credentials(t, "/api")}, v, func(mtls.Peer, tls.ConnectionState) error {
		if denied {
			return errors.New("denied now")
		}
		return nil
	})
	client := mtls.ClientConfig(mtls.Fixed{C: d.Credentials(t, "/web")}, v, nil)
	client.SessionTicketsDisabled = false
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	client.ServerName = "api"
	for range 2 {
		state, srv, cli := handshake(t, server, client)
		if srv != nil || cli != nil || state.DidResume {
			t.Fatal(srv, cli, state.DidResume)
		}
	}
	denied = true
	if _, srv, _ := handshake(t, server, client); reason(srv) != mtls.ReasonPolicyDenied {
		t.Fatalf("after the denial: %v", srv)
	}
}

func TestCacheForgetsWithTheBundleAndTheClock(t *testing.T) {
	d := identitytest.New(t, "example.org")
	v := mtls.NewVerifier(2)
	s := d.SVID(t, "/web")
	creds := identity.NewCredentials(identity.SVID{}, 1, d.Bundle)
	now := time.Now()
	for range 2 {
		if _, err := v.Verify(s.Chain, creds, mtls.PurposeClient, now); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Verify(s.Chain, creds, mtls.PurposeClient, now.Add(2*time.Hour)); reason(err) != mtls.ReasonExpired {
		t.Errorf("a remembered chain outlived its end: %v", err)
	}
	if _, err := v.Verify(s.Chain, creds, mtls.PurposeClient, now.Add(-time.Hour)); reason(err) != mtls.ReasonNotYetValid {
		t.Errorf("a remembered chain was good before its start: %v", err)
	}
	empty, err := identity.NewBundle(d.Name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(s.Chain, identity.NewCredentials(identity.SVID{}, 2, empty), mtls.PurposeClient, now); reason(err) != mtls.ReasonUnknownAuthority {
		t.Errorf("a remembered chain outlived its bundle: %v", err)
	}
	for range 10 {
		if _, err := v.Verify(d.SVID(t, "/web").Chain, creds, mtls.PurposeClient, now); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATamperedCopyOfARememberedChainIsVerifiedAfresh(t *testing.T) {
	d, impostor := identitytest.New(t, "example.org"), identitytest.New(t, "example.org")
	v := mtls.NewVerifier(0)
	creds := identity.NewCredentials(identity.SVID{}, 1, d.Bundle)
	good := d.SVID(t, "/web")
	if _, err := v.Verify(good.Chain, creds, mtls.PurposeClient, time.Now()); err != nil {
		t.Fatal(err)
	}
	bad := []*x509.Certificate{impostor.SVID(t, "/web").Leaf(), good.Chain[1]}
	if _, err := v.Verify(bad, creds, mtls.PurposeClient, time.Now()); reason(err) != mtls.ReasonUnknownAuthority {
		t.Fatalf("an impostor's leaf over the good intermediate: %v", err)
	}
}
