// This file holds the connections to the server: the first contact, which is
// verified by a pinned hash or a bundle file, and the ordinary mTLS one.

package join

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Dial returns a connection to the server that presents the node's credential
// and accepts only servers of its trust domain.
func (n *Node) Dial() (*grpc.ClientConn, error) {
	return Dial(n.cfg.Server, mtls.ClientConfig(n, n.verifier, mtls.HasRole(n.TrustDomain(), identity.RoleServer)))
}

// Dial returns a connection to a server's node API. Nothing is sent before
// the first call. Proxies named in the environment are not used.
func Dial(server string, config *tls.Config) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+server,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessageBytes), grpc.MaxCallSendMsgSize(wire.MaxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// Fixed windows: gRPC's search for larger ones pings on every message.
		grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(4<<20),
	)
	if err != nil {
		return nil, fmt.Errorf("connection to server %s: %w", server, err)
	}
	return conn, nil
}

// contact is one attempt to attest. It remembers why the server was not
// trusted, since gRPC hands on only a text.
type contact struct {
	node *Node

	mu  sync.Mutex
	td  identity.TrustDomain
	err error
}

// config returns the TLS configuration of the attempt. It presents no
// certificate: the node proves its key in the call.
func (c *contact) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection decides, by SPIFFE ID
		VerifyConnection: func(cs tls.ConnectionState) error {
			td, err := c.verify(cs.PeerCertificates)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.td, c.err = td, err
			return err
		},
	}
}

// failure returns why the server was not trusted, or nil.
func (c *contact) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// domain returns the trust domain of the server that was verified.
func (c *contact) domain() identity.TrustDomain {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.td
}

// verify checks that the chain is a server's, by the roots this node holds,
// or by the pin or the file on first contact.
func (c *contact) verify(chain []*x509.Certificate) (identity.TrustDomain, error) {
	cfg := c.node.cfg
	bundle, err := c.roots(chain)
	if err != nil {
		return identity.TrustDomain{}, err
	}
	td := bundle.TrustDomain()
	if cfg.TrustDomain != "" && td.String() != cfg.TrustDomain {
		return td, &Refused{fmt.Errorf("server %s is of trust domain %s, not %s", cfg.Server, td, cfg.TrustDomain)}
	}
	peer, err := c.node.verifier.Verify(chain, identity.NewCredentials(identity.SVID{}, 0, bundle).WithDenials(c.node.denials.Load()), mtls.PurposeServer, time.Now())
	if err != nil {
		return td, c.untrusted(err)
	}
	if err := mtls.HasRole(td, identity.RoleServer)(peer, tls.ConnectionState{}); err != nil {
		return td, c.untrusted(err)
	}
	return td, nil
}

// roots returns the bundle to verify the server by.
func (c *contact) roots(chain []*x509.Certificate) (identity.Bundle, error) {
	cfg := c.node.cfg
	if held := c.node.creds.Load(); held != nil {
		bundle, ok := held.Bundle(held.SVID.ID.TrustDomain())
		if !ok {
			return identity.Bundle{}, errors.New("the bundle of the own trust domain is missing")
		}
		return bundle, nil
	}
	if cfg.BundleFile != "" {
		text, err := os.ReadFile(cfg.BundleFile)
		if err != nil {
			return identity.Bundle{}, &Refused{fmt.Errorf("bundle file: %w", err)}
		}
		bundle, err := readBundle(text, cfg.TrustDomain)
		if err != nil {
			return identity.Bundle{}, &Refused{fmt.Errorf("bundle file %s: %w", cfg.BundleFile, err)}
		}
		return bundle, nil
	}
	var last string
	for _, cert := range chain {
		last = identity.CertificateHash(cert)
		if last != cfg.BundleHash {
			continue
		}
		bundle, err := newBundle([]*x509.Certificate{cert}, cfg.TrustDomain)
		if err != nil {
			return identity.Bundle{}, &Refused{err}
		}
		return bundle, nil
	}
	return identity.Bundle{}, &Refused{fmt.Errorf(
		"server %s has another root than the bundle hash says: expected %s, the server's chain ends in %s; nothing was sent to it",
		cfg.Server, cfg.BundleHash, last)}
}

// untrusted words the refusal of a server. On first contact it is final: the
// pin was given by a person and does not change by itself.
func (c *contact) untrusted(err error) error {
	if c.node.creds.Load() == nil {
		return &Refused{fmt.Errorf("server %s is not trusted: %w", c.node.cfg.Server, err)}
	}
	return fmt.Errorf("server %s is not trusted by %s (remove that folder if the trust domain was made anew): %w",
		c.node.cfg.Server, c.node.cfg.Dir, err)
}

// readBundle parses a PEM bundle. The trust domain is the one named, or the
// one that the roots name.
func readBundle(text []byte, td string) (identity.Bundle, error) {
	certs, err := identity.DecodeCertificates(text)
	if err != nil {
		return identity.Bundle{}, err
	}
	return newBundle(certs, td)
}

func newBundle(roots []*x509.Certificate, name string) (identity.Bundle, error) {
	if name == "" {
		for _, c := range roots {
			if len(c.URIs) == 1 {
				id, err := identity.IDFromURI(c.URIs[0])
				if err != nil {
					return identity.Bundle{}, fmt.Errorf("root %s: %w", identity.CertificateHash(c), err)
				}
				name = id.TrustDomain().String()
				break
			}
		}
	}
	if name == "" {
		return identity.Bundle{}, errors.New("no root names its trust domain: name it in the configuration")
	}
	td, err := identity.ParseTrustDomain(name)
	if err != nil {
		return identity.Bundle{}, err
	}
	return identity.NewBundle(td, roots)
}
