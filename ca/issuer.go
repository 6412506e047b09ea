// This file holds Issuer: signing in memory, recording, releasing, in this
// order and in no other.

package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

// Recorder makes events durable, all or none, before it returns. After an
// error the events may or may not be stored; the caller must not act on them.
// It is safe for concurrent use.
type Recorder interface {
	RecordAll(ctx context.Context, events []audit.Event) ([]audit.Receipt, error)
}

// Request asks for one leaf.
type Request struct {
	Entitlement Entitlement
	// CSR is PKCS#10 DER; it is looked at where Key is zero.
	CSR []byte
	// Key is a key that was proven before.
	Key ProvenKey
}

// Certificate is a certificate whose event is durable.
type Certificate struct {
	// Chain is DER, leaf first, without the root.
	Chain    [][]byte
	Leaf     *x509.Certificate
	IssuedAt time.Time
	Receipt  audit.Receipt
}

// Result answers one Request: a certificate or an error.
type Result struct {
	Certificate
	Err error
}

// Issuer signs drafts and releases certificates once they are recorded.
type Issuer struct {
	recorder Recorder
	workers  int
}

// NewIssuer returns an Issuer that records with r and signs on all cores.
func NewIssuer(r Recorder) *Issuer {
	return &Issuer{recorder: r, workers: runtime.GOMAXPROCS(0)}
}

// sealed is a signed certificate that nobody has seen yet.
type sealed struct {
	cert  Certificate
	event audit.Event
}

// sign spends the draft and signs it in memory. What it signed is held
// against the SPIFFE clauses before anything else happens to it.
func (a *Authority) sign(d *Draft) (sealed, error) {
	if d == nil || d.authority != a || d.spent.Swap(true) {
		return sealed{}, ErrSpent
	}
	der, err := a.create(d)
	if err != nil {
		return sealed{}, fmt.Errorf("sign for %s: %w", d.event.SPIFFEID, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return sealed{}, fmt.Errorf("sign for %s: %w", d.event.SPIFFEID, err)
	}
	if err := checkSigned(leaf, d, a.td); err != nil {
		return sealed{}, fmt.Errorf("sign for %s: %w", d.event.SPIFFEID, err)
	}
	if n := a.profiles.VerifyEvery; n > 0 && rand.IntN(n) == 0 {
		if err := a.cert.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
			return sealed{}, fmt.Errorf("sign for %s: the signature does not verify: %w", d.event.SPIFFEID, err)
		}
	}
	s := sealed{event: d.event, cert: Certificate{Leaf: leaf, IssuedAt: d.event.Time, Chain: make([][]byte, 0, 1+len(a.chain))}}
	s.cert.Chain = append(append(s.cert.Chain, der), a.chain...)
	sum := sha256.Sum256(der)
	s.event.LeafSHA256 = hex.EncodeToString(sum[:])
	return s, nil
}

func checkSigned(c *x509.Certificate, d *Draft, td identity.TrustDomain) error {
	if c.IsCA {
		return identity.CheckAuthority(c, td)
	}
	id, err := identity.LeafID(c)
	if err != nil {
		return err
	}
	if id.String() != d.event.SPIFFEID {
		return fmt.Errorf("the certificate says %s", id)
	}
	return nil
}

// Release signs drafts of authority a and returns the certificates once their
// events, and those given besides, are durable: all or none.
func (i *Issuer) Release(ctx context.Context, a *Authority, drafts []*Draft, besides ...audit.Event) ([]Certificate, error) {
	events := make([]audit.Event, 0, len(drafts)+len(besides))
	seals := make([]sealed, len(drafts))
	for n, d := range drafts {
		s, err := a.sign(d)
		if err != nil {
			return nil, err
		}
		seals[n] = s
		events = append(events, s.event)
	}
	receipts, err := i.recorder.RecordAll(ctx, append(events, besides...))
	if err != nil {
		return nil, notRecorded(err)
	}
	out := make([]Certificate, len(seals))
	for n, s := range seals {
		out[n] = s.cert
		out[n].Receipt = receipts[n]
	}
	return out, nil
}

// ReleaseRoot signs a self-signed draft and returns the root once its event
// is durable.
func (i *Issuer) ReleaseRoot(ctx context.Context, d *Draft) (*x509.Certificate, error) {
	certs, err := i.Release(ctx, d.authority, []*Draft{d})
	if err != nil {
		return nil, err
	}
	return certs[0].Leaf, nil
}

// Issue answers each request for itself: requests are checked, drafted and
// signed on all cores, recorded with one durable write, and then released.
// Where the write fails, no request of the batch gets a certificate.
func (i *Issuer) Issue(ctx context.Context, now time.Time, a *Authority, requests []Request) []Result {
	results := make([]Result, len(requests))
	seals := make([]sealed, len(requests))
	i.each(len(requests), func(n int) {
		seals[n], results[n].Err = a.seal(now, requests[n])
	})
	events := make([]audit.Event, 0, len(requests))
	for n := range seals {
		if results[n].Err == nil {
			events = append(events, seals[n].event)
		}
	}
	if len(events) == 0 {
		return results
	}
	receipts, err := i.recorder.RecordAll(ctx, events)
	at := 0
	for n := range results {
		switch {
		case results[n].Err != nil:
		case err != nil:
			results[n].Err = notRecorded(err)
		default:
			results[n].Certificate = seals[n].cert
			results[n].Receipt = receipts[at]
			at++
		}
	}
	return results
}

// seal takes one request from its key's proof to a signed certificate in
// memory. A panic is that request's error alone.
func (a *Authority) seal(now time.Time, r Request) (s sealed, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &Refusal{Cause: CauseInvalid, Reason: ReasonInternal, Err: fmt.Errorf("issue for %s: internal error", r.Entitlement.id)}
		}
	}()
	if r.Entitlement.id.IsZero() {
		return sealed{}, denied(ReasonNotEntitled, "nothing entitles to a certificate")
	}
	key := r.Key
	if key.IsZero() {
		if key, err = ProveCSR(r.CSR); err != nil {
			return sealed{}, err
		}
	}
	d, err := a.Draft(now, r.Entitlement, key)
	if err != nil {
		return sealed{}, err
	}
	return a.sign(d)
}

// each calls fn for 0 to n-1 on up to the issuer's workers at once.
func (i *Issuer) each(n int, fn func(int)) {
	workers := min(i.workers, n)
	if workers <= 1 {
		for k := range n {
			fn(k)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	work := func() {
		for k := int(next.Add(1)) - 1; k < n; k = int(next.Add(1)) - 1 {
			fn(k)
		}
	}
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

func notRecorded(err error) error {
	return &Refusal{Cause: CauseUnavailable, Reason: ReasonNotRecorded, Err: fmt.Errorf("no certificate without a record: %w", err)}
}
