// This file holds the durable record of the root's rollover: what the store
// keeps of it, what the log repeats of it, and how the two find together after
// a restore.

package server

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
)

// rolloverKey is where the store keeps the record of the root's rollover.
const rolloverKey = "rotation/root"

// keptRoot is a root as the record keeps it.
type keptRoot struct {
	DER []byte `json:"der,omitempty"` // its certificate
	Key string `json:"key"`           // KMS URI
}

func (k keptRoot) certificate() (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(k.DER)
	if err != nil {
		return nil, fmt.Errorf("root of the record: %w", err)
	}
	return cert, nil
}

// ski returns the hex subject key identifier, "" where there is no
// certificate.
func (k keptRoot) ski() string {
	if cert, err := x509.ParseCertificate(k.DER); err == nil {
		return hex.EncodeToString(cert.SubjectKeyId)
	}
	return ""
}

func (k keptRoot) hash() string {
	if cert, err := x509.ParseCertificate(k.DER); err == nil {
		return identity.CertificateHash(cert)
	}
	return ""
}

// stepTaken is one step of a rollover with how the fleet stood.
type stepTaken struct {
	Phase  rotation.Phase `json:"phase"`
	At     time.Time      `json:"at"`
	Acked  int            `json:"acked"`
	Live   int            `json:"live"`
	Forced bool           `json:"forced,omitempty"`
	Actor  string         `json:"actor,omitempty"`
}

// rolloverRecord is the last rollover of the root, whether it is under way or
// not. It is a value; what it refers to is never changed.
type rolloverRecord struct {
	ID       string            `json:"id"`
	Sequence uint64            `json:"sequence"` // grows with each step, over all rollovers
	State    rotation.Rollover `json:"state"`
	Old      keptRoot          `json:"old"`
	New      keptRoot          `json:"new"`
	Cross    []byte            `json:"cross,omitempty"` // DER: the new root, signed by the old one
	Actor    string            `json:"actor,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	Steps    []stepTaken       `json:"steps,omitempty"`
}

// maxSteps bounds the steps that a record keeps.
const maxSteps = 32

// issuing returns the root that issues.
func (r rolloverRecord) issuing() keptRoot {
	if r.State.NewIssues() {
		return r.New
	}
	return r.Old
}

// trusted returns the roots that belong into bundles.
func (r rolloverRecord) trusted() []keptRoot {
	if r.State.BothTrusted() {
		return []keptRoot{r.Old, r.New}
	}
	return []keptRoot{r.issuing()}
}

// crossServed reports whether every chain carries the cross-certificate.
func (r rolloverRecord) crossServed() bool {
	return r.State.Phase == rotation.Active || r.State.Phase == rotation.Retiring
}

// after returns the record after a step, as the next in the sequence. That is
// a time in milliseconds unless the clock ran back, so that it grows over a
// store that was begun anew as well: the log remembers the one before.
func (r rolloverRecord) after(next rotation.Rollover, step stepTaken) rolloverRecord {
	moved := next.Phase != r.State.Phase
	r.State = next
	r.Sequence = max(r.Sequence+1, uint64(step.At.UnixMilli()))
	if moved || step.Forced {
		r.Steps = append(slices.Clone(r.Steps[max(0, len(r.Steps)-maxSteps+1):]), step)
	}
	return r
}

func (r rolloverRecord) text() ([]byte, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("record of the rollover: %w", err)
	}
	return raw, nil
}

// parseRolloverRecord reads a record, from the store or from the log.
func parseRolloverRecord(raw []byte) (rolloverRecord, error) {
	var r rolloverRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("record of the rollover: %w", err)
	}
	if !slices.Contains(rotation.Phases(), r.State.Phase) {
		return r, fmt.Errorf("record of the rollover: the phase %q is not known to this version", clip(string(r.State.Phase), 40))
	}
	for _, k := range []keptRoot{r.Old, r.New} {
		if len(k.DER) == 0 {
			continue
		}
		if _, err := k.certificate(); err != nil {
			return r, err
		}
	}
	if len(r.Old.DER) == 0 || (r.State.BothTrusted() || r.State.NewIssues()) && (len(r.New.DER) == 0 || len(r.Cross) == 0) {
		return r, fmt.Errorf("record of the rollover: a certificate is missing in the phase %s", r.State.Phase)
	}
	return r, nil
}

// event is what the log keeps of a step. It repeats the whole record, so that
// a store restored from before the step can be brought up to it.
func (r rolloverRecord) event(now time.Time, actor, detail string) (audit.Event, error) {
	raw, err := r.text()
	if err != nil {
		return audit.Event{}, err
	}
	return audit.Event{Time: now, Kind: audit.KindRotation, Verdict: audit.VerdictDone, Reason: r.State.Phase.String(),
		Actor: actor, Rollover: string(raw), Detail: clip(detail, 4096)}, nil
}

// reconcileRollover brings a restored store up to what the log says of the
// root's rollover and of the leaves that were issued: the log tells of steps
// that the backup doesn't know, and what they led to is on disk and on nodes.
func (s *Server) reconcileRollover(ctx context.Context, now time.Time) error {
	newest := s.rollover.current()
	held := newest.Sequence
	parents := map[string]string{} // of intermediates, by SKI
	ends := map[string]time.Time{}
	err := s.authorityLog.Read(s.authorityLog.Stats().First, func(e audit.Entry) error {
		switch e.Kind {
		case audit.KindAuthorityCreated, audit.KindAuthorityRenewed:
			if len(e.KeySHA256) >= 40 {
				parents[e.KeySHA256[:40]] = e.Issuer
			}
		case audit.KindIssuance:
			if e.NotAfter.After(ends[e.Issuer]) {
				ends[e.Issuer] = e.NotAfter
			}
		case audit.KindRotation:
			if e.Rollover == "" {
				return nil
			}
			r, err := parseRolloverRecord([]byte(e.Rollover))
			if err == nil && r.Sequence > newest.Sequence {
				newest = r
			}
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	for ski, end := range ends {
		if err := s.marks.raise(ctx, authorityKey{parents[ski], ski}, end); err != nil {
			return err
		}
	}
	if newest.Sequence == held {
		return nil
	}
	// The step is in the log already; the store alone lacks it.
	raw, err := newest.text()
	if err != nil {
		return err
	}
	if _, err := s.store.Txn(ctx, nil, []store.Op{store.Put(rolloverKey, raw)}); err != nil {
		return err
	}
	s.log.Info("the rollover of the root goes on where the log left it", "id", newest.ID, "phase", newest.State.Phase.String())
	return s.rollover.load()
}
