// This file holds what the server trusts and presents during a rollover of
// the root, and how it follows the rollover's record.

package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
)

// follow brings the server's own certificates and its bundle up to the
// record, orders leaves anew where the record asks for it, and wakes the
// sessions. It does nothing where that was done.
func (s *Server) follow(ctx context.Context, now time.Time) error {
	r := s.rollover.current()
	if s.trust.Load().sequence != r.Sequence {
		if err := s.establish(ctx, now); err != nil {
			return err
		}
		s.sessions.notifyAll()
	}
	if r.crossServed() {
		s.orderReissue(r, now)
	} else {
		s.orders.drop(rolloverOrder)
	}
	s.rollover.shown.Store(&r)
	return nil
}

// rootsOfRecord makes the roots part of trust from the record. The file with
// the root's certificate follows it, for operators and for the checks of the
// next start.
func (s *Server) rootsOfRecord(r rolloverRecord, now time.Time) (*trust, error) {
	issuing := r.issuing()
	cert, err := issuing.certificate()
	if err != nil {
		return nil, err
	}
	t := &trust{rootCert: cert, rootKey: issuing.Key, sequence: r.Sequence, tail: []*x509.Certificate{cert}}
	var roots []*x509.Certificate
	for _, k := range r.trusted() {
		c, err := k.certificate()
		if err != nil {
			return nil, err
		}
		if now.Before(c.NotAfter) {
			roots = append(roots, c)
		}
	}
	if t.bundle, err = identity.NewBundle(s.cfg.TrustDomain, roots); err != nil {
		return nil, err
	}
	if r.State.NewIssues() {
		if err := s.addCross(t, r, now); err != nil {
			return nil, err
		}
	}
	return t, s.keepRootFile(cert)
}

// addCross adds what late peers need to what chains carry: to every chain
// while both roots are trusted, and to the server's own as long as it is good,
// so that an agent that was away for the whole rollover can come back. Where
// the old root is tainted that ends with its removal.
func (s *Server) addCross(t *trust, r rolloverRecord, now time.Time) error {
	cross, err := x509.ParseCertificate(r.Cross)
	if err != nil {
		return fmt.Errorf("cross-certificate of the record: %w", err)
	}
	// A chain ends with the first of its certificates: no leaf may outlive
	// the cross-certificate beside it.
	if cross.NotAfter.Sub(now) <= max(s.cfg.MaxTTL, s.cfg.NodeTTL, s.cfg.ServerTTL) {
		return nil
	}
	switch {
	case r.crossServed():
		old, err := r.Old.certificate()
		if err != nil {
			return err
		}
		t.above = []*x509.Certificate{cross}
		t.tail = append(t.tail, old)
	case r.State.Phase == rotation.Removed && !r.State.Emergency:
		t.tail = append([]*x509.Certificate{cross}, t.tail...)
	}
	return nil
}

// keepRootFile writes the certificate of the root that issues, unless the
// file holds it.
func (s *Server) keepRootFile(cert *x509.Certificate) error {
	text := identity.EncodeCertificates([]*x509.Certificate{cert})
	if held, err := os.ReadFile(s.rootPath()); err == nil && bytes.Equal(held, text) {
		return nil
	}
	if err := audit.WriteFile(s.rootPath(), text, 0o644); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return nil
}
