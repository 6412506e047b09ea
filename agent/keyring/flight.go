// This file holds the trip of one batch: keys and CSRs made on all cores, the
// batch sent, its results taken.

package keyring

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/identity"
)

// key is a new private key with its CSR.
type key struct {
	signer crypto.Signer
	csr    []byte
	err    error
}

// emptyCSR is all that a CSR says: only its key counts.
var emptyCSR = &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}

func newKey() key {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return key{err: fmt.Errorf("new key: %w", err)}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, emptyCSR, k)
	if err != nil {
		return key{err: fmt.Errorf("new CSR: %w", err)}
	}
	return key{signer: k, csr: csr}
}

// newKeys makes n keys on all cores.
func newKeys(n int) []key {
	keys := make([]key, n)
	if n == 1 {
		keys[0] = newKey()
		return keys
	}
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				keys[i] = newKey()
			}
		})
	}
	workers.Wait()
	return keys
}

// fly takes one batch to the server and settles each of its entries.
func (r *Ring) fly(ctx context.Context, batch []*entry) {
	defer r.land()
	keys := newKeys(len(batch))
	requests := make([]Request, 0, len(batch))
	for i, e := range batch {
		requests = append(requests, Request{Registration: e.subject.Registration, ID: e.subject.ID, CSR: keys[i].csr})
	}
	results, err := r.issue(ctx, keys, requests)
	now := time.Now()
	outcomes := make([]outcome, len(batch))
	parse := newParser()
	for i, e := range batch {
		o := outcome{err: err}
		if err == nil {
			o.err, o.retry = results[i].Err, results[i].RetryAfter
		}
		if o.err == nil {
			o.svid, o.err = parse.svid(e.subject, keys[i], results[i].Chain, now)
		}
		if o.err != nil {
			o.err = fmt.Errorf("SVID for %s by registration %s: %w", e.subject.ID, e.subject.Registration, o.err)
		}
		outcomes[i] = o
	}
	r.settle(ctx, batch, outcomes, now)
}

// issue sends the requests unless a key could not be made.
func (r *Ring) issue(ctx context.Context, keys []key, requests []Request) ([]Result, error) {
	for _, k := range keys {
		if k.err != nil {
			return nil, k.err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	results, err := r.issuer.Issue(ctx, requests)
	if err != nil {
		return nil, err
	}
	if len(results) != len(requests) {
		return nil, fmt.Errorf("server answered %d of %d requests", len(results), len(requests))
	}
	return results, nil
}

// parser parses the chains of one batch, whose intermediates are mostly the
// same.
type parser struct{ seen map[string]*x509.Certificate }

func newParser() parser { return parser{make(map[string]*x509.Certificate)} }

// svid checks what a server sent for a subject against its key and ID.
func (p parser) svid(s Subject, k key, chain [][]byte, now time.Time) (identity.SVID, error) {
	certs := make([]*x509.Certificate, 0, len(chain))
	for i, der := range chain {
		c, ok := p.seen[string(der)]
		if !ok {
			var err error
			if c, err = x509.ParseCertificate(der); err != nil {
				return identity.SVID{}, fmt.Errorf("certificate %d of the server's answer: %w", i, err)
			}
			if i > 0 {
				p.seen[string(der)] = c
			}
		}
		certs = append(certs, c)
	}
	svid, err := identity.NewSVID(certs, k.signer, now)
	switch {
	case err != nil:
		return identity.SVID{}, err
	case svid.ID != s.ID:
		return identity.SVID{}, fmt.Errorf("the server sent an SVID for %s", svid.ID)
	case !now.Before(svid.NotAfter()):
		return identity.SVID{}, errors.New("the server sent an SVID that has expired; compare the clocks")
	}
	return svid, nil
}

// land ends a flight and wakes the loop for the next.
func (r *Ring) land() {
	r.mu.Lock()
	r.flying--
	r.mu.Unlock()
	r.poke()
}
