// This file holds the renewal of the node's credential over mTLS.

package join

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// renewer renews a node's credential for the renewal loop.
type renewer struct{ n *Node }

// Renew renews the credential when it is due.
func (r renewer) Renew(ctx context.Context, now time.Time) time.Time {
	n := r.n
	n.acting.Lock()
	defer n.acting.Unlock()
	held := n.creds.Load()
	if held == nil {
		return time.Time{} // joining wakes the loop
	}
	if due := n.next(); now.Before(due) {
		return due
	}
	if !now.Before(held.SVID.NotAfter()) {
		return time.Time{} // too late for mTLS: attesting again wakes the loop
	}
	err := n.renew(ctx)
	if err == nil {
		return n.next()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	wait := rotation.Backoff(n.attempts, time.Second/4, n.cfg.RetryMax)
	if n.attempts == 0 && ctx.Err() == nil {
		n.cfg.Logger.Warn("node credential was not renewed", "error", err, "not_after", held.SVID.NotAfter().UTC())
	}
	n.attempts++
	return now.Add(wait)
}

// renew gets a certificate for a new key. The key is on disk before the
// server hears of it, so that a crash at any point leaves either the old pair
// or the new one.
func (n *Node) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attestTimeout)
	defer cancel()
	key, err := n.nextKey()
	if err != nil {
		return err
	}
	csr, err := newCSR(key)
	if err != nil {
		return err
	}
	conn, err := n.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := wire.NewNodeClient(conn).Renew(ctx, &wire.RenewRequest{Csr: csr})
	if err != nil {
		return fmt.Errorf("renew node credential: server %s: %w", n.cfg.Server, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	held := n.creds.Load()
	svid, err := n.nodeSVID(key, resp.GetChain(), held.SVID.ID.TrustDomain())
	if err != nil {
		return fmt.Errorf("renew node credential: %w", err)
	}
	if svid.ID != held.SVID.ID {
		return fmt.Errorf("renew node credential: server %s sent a certificate for %s, not %s", n.cfg.Server, svid.ID, held.SVID.ID)
	}
	bundle, ok := held.Bundle(svid.ID.TrustDomain())
	if !ok {
		return errors.New("renew node credential: the bundle of the own trust domain is missing")
	}
	if err := n.files.save(svid, bundle); err != nil {
		return err
	}
	n.swap(svid, bundle)
	n.cfg.Logger.Info("node credential renewed", "serial", svid.Serial(), "not_after", svid.NotAfter().UTC())
	return nil
}

// next returns when the credential is due for renewal.
func (n *Node) next() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.due
}

// RenewAt makes the credential due at a time, unless it is due before.
func (n *Node) RenewAt(at time.Time) {
	n.mu.Lock()
	if at.Before(n.due) {
		n.due = at
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}
