// Package join gives this machine its identity as a node: it verifies the
// server before it sends anything, attests by join token or by a recorded
// key, keeps the node's credential on disk, and renews it.
//
// It owns the files below the data directory's "node" folder and the TLS
// connections to the server. It leaves what is said on them afterwards to
// upstream. It stands on the second floor, inside the agent's room.
package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// attestTimeout bounds one call to the server, connection included.
const attestTimeout = 15 * time.Second

// Config is what a Node needs.
type Config struct {
	Server      string // host:port
	Token       string // join token; may be empty on a node that has joined
	BundleHash  string // pins a root at the first contact
	BundleFile  string // or holds the roots
	TrustDomain string // optional: the only one accepted
	Dir         string // directory for the node's files, mode 0700
	Version     string
	RetryMax    time.Duration // longest wait between tries of a renewal
	Logger      *slog.Logger  // required
}

// Refused is a final answer: trying again changes nothing.
type Refused struct{ Err error }

// Error returns the text of the cause.
func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap returns the cause, which carries the server's gRPC status where the
// server gave one.
func (r *Refused) Unwrap() error { return r.Err }

// Node is this machine's identity. It is an mtls.Source and safe for
// concurrent use.
type Node struct {
	cfg      Config
	files    files
	verifier *mtls.Verifier
	creds    atomic.Pointer[identity.Credentials]
	denials  atomic.Pointer[identity.Denials] // what the server last said is revoked
	renewed  chan struct{}
	wake     chan struct{}
	offset   atomic.Uint64 // generation of the credentials

	acting sync.Mutex // held over a call to the server: one at a time

	mu       sync.Mutex // guards what follows, and the files of the credential
	due      time.Time
	attempts int
}

// Open reads what the data directory holds. It contacts nobody.
func Open(cfg Config) (*Node, error) {
	n := &Node{
		cfg: cfg, files: files{dir: cfg.Dir}, verifier: mtls.NewVerifier(16),
		renewed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	svid, bundle, err := n.files.load()
	if err != nil {
		return nil, err
	}
	if bundle.IsZero() {
		if cfg.Token == "" {
			return nil, &Refused{errors.New("this node has not joined: a join token is needed")}
		}
		if cfg.BundleHash == "" && cfg.BundleFile == "" {
			return nil, &Refused{errors.New("this node has not joined: the bundle's hash or a bundle file is needed to verify the server")}
		}
		return n, nil
	}
	if cfg.TrustDomain != "" && bundle.TrustDomain().String() != cfg.TrustDomain {
		return nil, &Refused{fmt.Errorf("data directory %s belongs to trust domain %s, not %s", cfg.Dir, bundle.TrustDomain(), cfg.TrustDomain)}
	}
	n.swap(svid, bundle)
	return n, nil
}

// Credentials returns the node's credentials, or nil before it has joined.
func (n *Node) Credentials() *identity.Credentials {
	return n.creds.Load().WithDenials(n.denials.Load())
}

// KeepDenials replaces what is revoked: a server whose certificate is, is not
// talked to any more. It is kept in memory alone; a server says it at each
// stream's begin.
func (n *Node) KeepDenials(d *identity.Denials) { n.denials.Store(d) }

// ID returns the node's SPIFFE ID, or the zero value before it has joined.
func (n *Node) ID() identity.ID {
	if c := n.creds.Load(); c != nil {
		return c.SVID.ID
	}
	return identity.ID{}
}

// TrustDomain returns the node's trust domain, or the zero value before it
// has joined.
func (n *Node) TrustDomain() identity.TrustDomain { return n.ID().TrustDomain() }

// Valid reports whether the node has a credential that has not expired, nor is
// of the future, which it is when the clock was set back since.
func (n *Node) Valid(now time.Time) bool {
	c := n.creds.Load()
	return c.HasSVID() && now.Before(c.SVID.NotAfter()) && !now.Before(c.SVID.Leaf().NotBefore)
}

// Renewed receives after the credential was replaced.
func (n *Node) Renewed() <-chan struct{} { return n.renewed }

// Run renews the credential at half its life until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	return rotation.Loop(ctx, renewer{n}, n.wake)
}

// KeepBundle replaces the roots by which the server is verified, on disk and
// in memory. It does nothing when they are the same.
func (n *Node) KeepBundle(b identity.Bundle) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	held := n.creds.Load()
	if held == nil || b.TrustDomain() != held.SVID.ID.TrustDomain() {
		return fmt.Errorf("bundle of %s: this node is of %q", b.TrustDomain(), n.TrustDomain())
	}
	if old, ok := held.Bundle(b.TrustDomain()); ok && old.Equal(b) {
		return nil
	}
	if err := n.files.saveBundle(b); err != nil {
		return err
	}
	n.creds.Store(identity.NewCredentials(held.SVID, n.offset.Add(1), b))
	return nil
}

// Attest gets the node a credential: a node that has joined proves the key on
// record, and falls back on the join token where the server does not know it
// any more; a new node uses the token. The error is a *Refused when no repeat
// can help.
func (n *Node) Attest(ctx context.Context) error {
	n.acting.Lock()
	defer n.acting.Unlock()
	ctx, cancel := context.WithTimeout(ctx, attestTimeout)
	defer cancel()
	if n.creds.Load() == nil {
		return n.join(ctx)
	}
	err := n.reattest(ctx)
	if _, final := errors.AsType[*Refused](err); !final || n.cfg.Token == "" {
		return err
	}
	if second := n.join(ctx); second != nil {
		return fmt.Errorf("%w; by join token: %w", err, second)
	}
	return nil
}

// join attests by token with a key that is on disk before it is used. After a
// crash the same key goes on, since the token is bound to it.
func (n *Node) join(ctx context.Context) error {
	key, err := n.nextKey()
	if err != nil {
		return err
	}
	return n.attest(ctx, key, &wire.AttestRequest{Token: n.cfg.Token}, "join")
}

// reattest proves a key that the server has on record: the credential's, or
// the one of a renewal that was cut off.
func (n *Node) reattest(ctx context.Context) error {
	held := n.creds.Load()
	key, ok := held.SVID.Key.(*ecdsa.PrivateKey)
	if !ok {
		return &Refused{fmt.Errorf("attest again: the key on disk is a %T", held.SVID.Key)}
	}
	id := held.SVID.ID.String()
	err := n.attest(ctx, key, &wire.AttestRequest{NodeId: id}, "attest again")
	if _, final := errors.AsType[*Refused](err); !final {
		return err
	}
	pending, perr := n.files.pendingKey()
	if perr != nil || pending == nil {
		return err
	}
	return n.attest(ctx, pending, &wire.AttestRequest{NodeId: id}, "attest again")
}

// attest makes one call of Attest and takes its answer. The act names it in
// errors.
func (n *Node) attest(ctx context.Context, key *ecdsa.PrivateKey, req *wire.AttestRequest, act string) error {
	csr, err := newCSR(key)
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	req.Csr, req.Version = csr, n.cfg.Version
	trust := &contact{node: n}
	conn, err := Dial(n.cfg.Server, trust.config())
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	defer conn.Close()
	resp, err := wire.NewNodeClient(conn).Attest(ctx, req)
	if err != nil {
		if cause := trust.failure(); cause != nil {
			return fmt.Errorf("%s: %w", act, cause)
		}
		return fmt.Errorf("%s: server %s: %w", act, n.cfg.Server, final(err))
	}
	if err := n.take(key, resp, trust); err != nil {
		return fmt.Errorf("%s: answer of server %s: %w", act, n.cfg.Server, err)
	}
	return nil
}

// take checks the answer to Attest and makes it this node's credential.
func (n *Node) take(key *ecdsa.PrivateKey, resp *wire.AttestResponse, trust *contact) error {
	svid, err := n.nodeSVID(key, resp.GetChain(), trust.domain())
	if err != nil {
		return err
	}
	if id := resp.GetNodeId(); id != "" && id != svid.ID.String() {
		return fmt.Errorf("node ID is %s, but the certificate says %s", id, svid.ID)
	}
	bundle, err := wire.ToBundle(resp.GetBundle())
	if err != nil {
		return err
	}
	if bundle.TrustDomain() != trust.domain() {
		return fmt.Errorf("bundle is of %s, the server is of %s", bundle.TrustDomain(), trust.domain())
	}
	if _, err := n.verifier.Verify(svid.Chain, identity.NewCredentials(identity.SVID{}, 0, bundle), mtls.PurposeClient, time.Now()); err != nil {
		return fmt.Errorf("certificate of this node: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.files.save(svid, bundle); err != nil {
		return err
	}
	n.swap(svid, bundle)
	n.cfg.Logger.Info("node attested", "node", svid.ID.String(), "serial", svid.Serial(), "not_after", svid.NotAfter().UTC())
	return nil
}

// nodeSVID joins a chain with its key and checks that it is a node's.
func (n *Node) nodeSVID(key *ecdsa.PrivateKey, chain [][]byte, td identity.TrustDomain) (identity.SVID, error) {
	certs, err := identity.ParseChain(chain)
	if err != nil {
		return identity.SVID{}, err
	}
	svid, err := identity.NewSVID(certs, key, time.Now())
	if err != nil {
		return identity.SVID{}, err
	}
	if svid.ID.Role() != identity.RoleNode || svid.ID.TrustDomain() != td {
		return identity.SVID{}, fmt.Errorf("certificate is for %s, which is no node of %s", svid.ID, td)
	}
	return svid, nil
}

// swap makes a new SVID current and tells whoever waits for it. The caller
// holds n.mu, or is alone with n.
func (n *Node) swap(svid identity.SVID, bundle identity.Bundle) {
	n.due = rotation.Due(svid.IssuedAt, svid.NotAfter(), rotation.Jitter())
	n.attempts = 0
	n.creds.Store(identity.NewCredentials(svid, n.offset.Add(1), bundle))
	for _, c := range []chan struct{}{n.renewed, n.wake} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// nextKey returns the key of an attempt that was cut off, or a new one, which
// is on disk before it returns.
func (n *Node) nextKey() (*ecdsa.PrivateKey, error) {
	key, err := n.files.pendingKey()
	if err != nil || key != nil {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("new node key: %w", err)
	}
	if err := n.files.savePending(key); err != nil {
		return nil, err
	}
	return key, nil
}

// newCSR makes a request that says nothing but its key.
func newCSR(key *ecdsa.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}, key)
	if err != nil {
		return nil, fmt.Errorf("CSR of this node: %w", err)
	}
	return csr, nil
}

// final marks the answers of a server that a repeat does not change.
func final(err error) error {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.NotFound,
		codes.FailedPrecondition, codes.AlreadyExists, codes.Unimplemented:
		return &Refused{err}
	}
	return err
}
