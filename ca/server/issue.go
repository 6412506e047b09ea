// This file holds what a node sends up: batches of certificate requests, each
// checked for itself, and connection records.

package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
)

// MaxBatch bounds the requests of one batch.
const MaxBatch = 256

// retryAfter is what a node is told where its request may pass later.
const retryAfter = 5 * time.Second

// maxRecordEvents bounds the events of one record batch, and maxLost the loss
// that it may claim, so that no sum of claims runs over.
const (
	maxRecordEvents = 4096
	maxLost         = 1 << 32
)

// issueBatch answers each request of a batch for itself. Its node is looked
// at before and after the record: what an evicted node asked for is never
// sent to it.
func (s *Server) issueBatch(ctx context.Context, sess *session, batch *wire.IssueBatch) *wire.IssueResults {
	// What is revoked is looked at before and counts after: none is under way
	// while a revocation is made.
	s.issuing.RLock()
	defer s.issuing.RUnlock()
	start := time.Now()
	out := &wire.IssueResults{Batch: batch.GetBatch()}
	asked := batch.GetRequests()
	if len(asked) > MaxBatch {
		err := status.Errorf(codes.InvalidArgument, "%d requests in one batch, more than %d", len(asked), MaxBatch)
		for _, r := range asked {
			out.Results = append(out.Results, failed(r, err))
		}
		return out
	}
	requests := make([]ca.Request, len(asked))
	faults := make([]error, len(asked))
	node, err := s.current(sess)
	granted, over := s.paces.certificates(sess.node.ID().String(), len(asked), start)
	if over != nil {
		s.refuseNode(start, sess.node, identity.ID{}, "", over)
	}
	snap := s.documents.now.Load()
	for n, r := range asked {
		if faults[n] = err; err == nil && n >= granted {
			faults[n] = over
		} else if err == nil {
			requests[n], faults[n] = entitle(snap, node, r)
		}
	}
	authority := s.trust.Load().intermediate
	if err == nil {
		if err := s.marks.reach(ctx, authority, start, s.cfg.MaxTTL); err != nil {
			for n := range faults {
				faults[n] = err
			}
			clear(requests)
		}
	}
	results := s.issuer.Issue(ctx, start, authority, requests)
	if _, gone := s.current(sess); gone != nil {
		for n := range faults {
			faults[n] = gone
		}
	}
	s.release(out, asked, faults, results, sess, start)
	s.metrics.issueTime.Observe(time.Since(start).Seconds())
	s.orders.measure(time.Since(start), len(asked))
	s.rollover.stir()
	return out
}

// current returns the session's node as it is admitted now.
func (s *Server) current(sess *session) (ca.AttestedNode, error) {
	node, ok := s.nodes.get(sess.node.Name())
	if !ok {
		return ca.AttestedNode{}, &ca.Refusal{Cause: ca.CauseDenied, Reason: ca.ReasonUnknownNode, Err: errors.New("the node is not known")}
	}
	return node.Attest(sess.key)
}

// entitle checks one request against the registrations in force.
func entitle(snap *snapshot, node ca.AttestedNode, r *wire.IssueRequest) (ca.Request, error) {
	id, err := identity.ParseID(r.GetSpiffeId())
	if err != nil {
		return ca.Request{}, &ca.Refusal{Cause: ca.CauseInvalid, Reason: ca.ReasonNotEntitled, Err: err}
	}
	ns, name, _ := strings.Cut(r.GetRegistration(), "/")
	h := snap.docs[document.Key{Kind: document.Registration, Namespace: ns, Name: name}]
	if h == nil {
		return ca.Request{}, &ca.Refusal{Cause: ca.CauseDenied, Reason: ca.ReasonNotEntitled,
			Err: fmt.Errorf("there is no registration %q", clip(r.GetRegistration(), 512))}
	}
	if snap.denials.Bars(id) {
		return ca.Request{}, &ca.Refusal{Cause: ca.CauseDenied, Reason: ca.ReasonNotEntitled,
			Err: fmt.Errorf("%s is revoked; aval revoke lift %s lets it be issued again", id, id)}
	}
	entitled, err := node.Workload(h.registration, id)
	if err != nil {
		return ca.Request{}, err
	}
	return ca.Request{Entitlement: entitled.At(h.revision), CSR: r.GetCsr()}, nil
}

// release fills in the answers and takes what was issued into the index.
func (s *Server) release(out *wire.IssueResults, asked []*wire.IssueRequest, faults []error, results []ca.Result, sess *session, now time.Time) {
	var receipts []audit.Receipt
	for n := range results {
		if results[n].Err == nil {
			receipts = append(receipts, results[n].Receipt)
		}
	}
	signed, err := s.receipts.signAll(receipts)
	if err != nil {
		// The certificates are recorded; a receipt can be had later.
		s.log.Error("signing of receipts", "error", err)
		signed = receipts
	}
	at, issued := 0, 0
	for n, r := range asked {
		var receipt audit.Receipt
		if results[n].Err == nil {
			receipt = signed[at]
			at++
			leaf := results[n].Leaf
			s.live.put(sess.node.ID().String(), liveSVID{leaf.URIs[0].String(), identity.Serial(leaf), hex.EncodeToString(leaf.AuthorityKeyId), results[n].IssuedAt, leaf.NotAfter}, now)
		}
		err := results[n].Err
		if faults[n] != nil {
			err = faults[n]
		}
		if err != nil {
			s.refuseRequest(now, sess, r, err)
			out.Results = append(out.Results, failed(r, err))
			continue
		}
		issued++
		out.Results = append(out.Results, &wire.IssueResult{Request: r.GetRequest(), Chain: results[n].Chain, Receipt: fromReceipt(receipt)})
	}
	s.metrics.issued.WithLabelValues(audit.RoleWorkload).Add(float64(issued))
}

func (s *Server) refuseRequest(now time.Time, sess *session, r *wire.IssueRequest, err error) {
	if code := codeOf(err); code == codes.Unavailable || code == codes.ResourceExhausted || code == codes.Canceled {
		s.metrics.refused.WithLabelValues(reasonOf(err)).Inc()
		return
	}
	id, _ := identity.ParseID(r.GetSpiffeId())
	s.refuseNode(now, sess.node, id, clip(r.GetRegistration(), 512), err)
}

func failed(r *wire.IssueRequest, err error) *wire.IssueResult {
	code := codeOf(err)
	out := &wire.IssueResult{Request: r.GetRequest(), Error: err.Error(), Code: uint32(code)}
	if code == codes.Unavailable || code == codes.ResourceExhausted {
		out.RetryAfter = retryAfter.Milliseconds()
	}
	if over, ok := errors.AsType[*overPace](err); ok {
		out.RetryAfter = over.after.Milliseconds()
	}
	return out
}

func fromReceipt(r audit.Receipt) *wire.Receipt {
	out := &wire.Receipt{Log: r.Log, Index: r.Index, EntryHash: r.EntryHash[:], Signature: r.Signature, First: r.First, Count: r.Count}
	for _, h := range r.Path {
		out.Path = append(out.Path, h[:])
	}
	return out
}

// takeRecords stores connection records and acknowledges them, until ctx
// ends. A log that is full costs the records and nothing else: the loss is
// counted, recorded when there is room again, and the batch acknowledged.
func (s *Server) takeRecords(ctx context.Context, sess *session, batches <-chan *wire.RecordBatch) error {
	var lost uint64
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case batch := <-batches:
			waited, err := s.paces.records(ctx, sess.node.ID().String(), len(batch.GetEvents()))
			if err != nil {
				return err
			}
			if waited {
				s.metrics.delayed.Inc()
			}
			lost = s.storeRecords(ctx, sess, batch, lost)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			ack := &wire.RecordsAck{Sequence: batch.GetSequence()}
			if err := sess.send(&wire.ServerFrame{Frame: &wire.ServerFrame_RecordsAck{RecordsAck: ack}}); err != nil {
				return err
			}
		}
	}
}

// storeRecords stores one batch and returns how many records are lost and not
// accounted for in the log.
func (s *Server) storeRecords(ctx context.Context, sess *session, batch *wire.RecordBatch, lost uint64) uint64 {
	now := time.Now()
	events := make([]audit.Event, 0, len(batch.GetEvents())+1)
	for n, raw := range batch.GetEvents() {
		e, err := decodeRecord(raw)
		if err != nil || n >= maxRecordEvents {
			lost++
			continue
		}
		e.Node = sess.node.ID().String()
		events = append(events, e)
	}
	good, dropped := uint64(len(events)), min(batch.GetLost(), maxLost)
	if total := lost + dropped; total > 0 {
		events = append(events, audit.Event{Time: now, Kind: audit.KindLoss, Verdict: audit.VerdictDone,
			Node: sess.node.ID().String(), Lost: total, Detail: "connection records dropped"})
	}
	if len(events) == 0 {
		return 0
	}
	if _, err := s.connections.RecordAll(ctx, events); err != nil {
		if ctx.Err() != nil {
			return lost
		}
		n := good + dropped
		s.metrics.lost.Add(float64(n))
		s.log.Warn("storing of connection records", "node", sess.node.Name(), "lost", n, "error", err)
		return lost + n
	}
	s.ledger.addAll(events, now)
	return 0
}

// decodeRecord parses one connection record strictly.
func decodeRecord(raw []byte) (audit.Event, error) {
	if len(raw) > audit.MaxEventBytes {
		return audit.Event{}, fmt.Errorf("record is %d bytes, more than %d", len(raw), audit.MaxEventBytes)
	}
	var e audit.Event
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return audit.Event{}, fmt.Errorf("record: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return audit.Event{}, errors.New("record: text follows the object")
	}
	if !e.Kind.Reported() {
		return audit.Event{}, fmt.Errorf("record of the kind %q is not taken from nodes", e.Kind)
	}
	if e.KeptFrom != 0 {
		return audit.Event{}, errors.New("record: what a log dropped is the log's to tell")
	}
	return e, e.Validate()
}
