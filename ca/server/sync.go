// This file holds Sync, the one stream of a node: deltas and results down,
// acknowledgements, requests and records up.

package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

const (
	// recordsAtOnce bounds the record batches of one node that wait, each as
	// large as a message may be. An agent sends the next when the last is
	// acknowledged.
	recordsAtOnce = 2
	// helloTimeout bounds the wait for a stream's first frame.
	helloTimeout = 10 * time.Second
	// goodbyeTimeout bounds the wait for a node that does not read.
	goodbyeTimeout = time.Second
)

type syncStream = grpc.BidiStreamingServer[wire.NodeFrame, wire.ServerFrame]

// Sync serves a node's stream until either side ends it.
func (s nodeService) Sync(stream syncStream) error {
	now := time.Now()
	attested, key, err := s.authenticate(stream.Context(), now)
	if err != nil {
		return err
	}
	hello, err := firstFrame(stream)
	if err != nil {
		return err
	}
	sess := newSession(stream, attested, key, hello, s.cfg.RootNamespace)
	if skew := sess.seen(now, hello.GetClock()); skew.Abs() > maxSkew {
		s.log.Warn("clock of a node differs", slog.String("node", attested.Name()), slog.Duration("skew", skew))
	}
	if err := s.enter(sess); err != nil {
		return err
	}
	s.rollover.poke()
	defer s.rollover.poke()
	defer s.sessions.remove(sess)
	defer s.joinRegistry(stream.Context(), attested)()
	if node, ok := s.nodes.get(attested.Name()); !ok || node.Evicted { // in this very moment
		s.registry.Drop(attested.ID())
	}
	return s.serve(stream, sess, hello)
}

// firstFrame waits for the Hello, but not for ever.
func firstFrame(stream syncStream) (*wire.Hello, error) {
	type first struct {
		frame *wire.NodeFrame
		err   error
	}
	got := make(chan first, 1)
	go func() { // ends with the stream, whose context the handler's return cancels
		f, err := stream.Recv()
		got <- first{f, err}
	}()
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil, status.Error(codes.DeadlineExceeded, "no hello came")
	case f := <-got:
		if f.err != nil {
			return nil, f.err
		}
		if f.frame.GetHello() == nil {
			return nil, status.Error(codes.InvalidArgument, "the first frame is not a hello")
		}
		return f.frame.GetHello(), nil
	}
}

// enter makes sess the node's session. A second stream of one node takes the
// place of the first and is recorded.
func (s *Server) enter(sess *session) error {
	if old := s.sessions.add(sess); old != nil {
		s.refusals.note(AuthorityLog, sess.node.Name(), audit.Event{Time: time.Now(), Kind: audit.KindSession, Verdict: audit.VerdictDone,
			Reason: "replaced", Node: sess.node.ID().String(), Detail: "a second stream took the place of the first"})
		old.close(&wire.Goodbye{Reason: "another stream of this node took this one's place"})
	}
	// An eviction between the check and the entry must not be missed, nor that
	// the node joined again with another key.
	if _, err := s.current(sess); err != nil {
		s.sessions.remove(sess)
		return err
	}
	return nil
}

// serve runs the session until either side ends it. Four goroutines work for
// it and end with the stream, whose context this function's return cancels:
// one pushes what changed, one receives and answers, one stores records, one
// takes reports of endpoints.
func (s *Server) serve(stream syncStream, sess *session, hello *wire.Hello) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	now := s.documents.now.Load()
	held := hello.GetHeld()
	err := sess.send(&wire.ServerFrame{Frame: &wire.ServerFrame_Welcome{Welcome: &wire.Welcome{
		Settings: &wire.Settings{TrustDomain: s.cfg.TrustDomain.String(), RootNamespace: s.cfg.RootNamespace, DefaultDeny: s.cfg.DefaultDeny},
		Position: toPosition(now.position),
		Clock:    time.Now().UnixMilli(), ServerId: s.Credentials().SVID.ID.String(),
		Resync:     held.GetEpoch() != now.position.Epoch || held.GetRevision() > now.position.Revision,
		Attributes: wire.FromAttributes(sess.node.Attributes()), Endpoints: true,
	}}})
	if err != nil {
		return err
	}
	records := make(chan *wire.RecordBatch, recordsAtOnce)
	go s.guarded(ctx, cancel, func() error { return s.pushAll(ctx, sess) })
	go s.guarded(ctx, cancel, func() error { return s.receive(ctx, stream, sess, records) })
	go s.guarded(ctx, cancel, func() error { return s.takeRecords(ctx, sess, records) })
	go s.guarded(ctx, cancel, func() error { return s.takeReports(ctx, sess) })
	select {
	case g := <-sess.end:
		return farewell(ctx, sess, g)
	case <-ctx.Done():
		return ending(context.Cause(ctx))
	}
}

// guarded runs a part of a session; its end is the session's.
func (s *Server) guarded(ctx context.Context, cancel context.CancelCauseFunc, run func() error) {
	var err error
	defer func() {
		if err != nil && ctx.Err() == nil {
			cancel(err)
		}
	}()
	defer s.guard("Sync", &err)
	err = run()
}

// farewell says goodbye to a node that reads, and does not wait for one that
// does not.
func farewell(ctx context.Context, sess *session, g *wire.Goodbye) error {
	said := make(chan struct{})
	go func() { // ends with the stream at the latest
		defer close(said)
		sess.sendLast(&wire.ServerFrame{Frame: &wire.ServerFrame_Goodbye{Goodbye: g}})
	}()
	timer := time.NewTimer(goodbyeTimeout)
	defer timer.Stop()
	select {
	case <-said:
	case <-timer.C:
	case <-ctx.Done():
	}
	if g.GetEvicted() {
		return status.Error(codes.PermissionDenied, g.GetReason())
	}
	return status.Error(codes.Unavailable, g.GetReason())
}

func ending(cause error) error {
	if errors.Is(cause, io.EOF) {
		return nil
	}
	return cause
}

// pushAll sends what the node lacks, each time something changed.
func (s *Server) pushAll(ctx context.Context, sess *session) error {
	sent := map[string][]byte{}
	for {
		if err := s.push(sess, sent); err != nil {
			return err
		}
		select {
		case <-sess.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// push sends what the node lacks: deltas, endpoints, orders, then new
// checkpoints.
func (s *Server) push(sess *session, sent map[string][]byte) error {
	for _, d := range sess.view.advance(s.documents.now.Load(), s.keySets.now.Load(), s.trust.Load().bundle) {
		if err := sess.send(&wire.ServerFrame{Frame: &wire.ServerFrame_Delta{Delta: d}}); err != nil {
			return err
		}
	}
	if err := s.pushEndpoints(sess); err != nil {
		return err
	}
	if err := s.orders.send(sess); err != nil {
		return err
	}
	current := s.checkpoints.Load()
	if current == nil {
		return nil
	}
	var fresh []*wire.Checkpoint
	for _, c := range *current {
		if !bytes.Equal(sent[c.GetLog()], c.GetNote()) {
			sent[c.GetLog()] = c.GetNote()
			fresh = append(fresh, c)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	return sess.send(&wire.ServerFrame{Frame: &wire.ServerFrame_Checkpoints{Checkpoints: &wire.Checkpoints{Checkpoints: fresh}}})
}

// receive takes the node's frames until the stream ends. A node's batches are
// answered one after the other, each on all cores.
func (s *Server) receive(ctx context.Context, stream syncStream, sess *session, records chan<- *wire.RecordBatch) error {
	for {
		f, err := stream.Recv()
		if err != nil {
			return err
		}
		now := time.Now()
		switch frame := f.GetFrame().(type) {
		case *wire.NodeFrame_Ack:
			sess.ack(frame.Ack)
			sess.seen(now, frame.Ack.GetClock())
			s.rollover.poke()
		case *wire.NodeFrame_Issue:
			sess.seen(now, 0)
			results := s.issueBatch(ctx, sess, frame.Issue)
			if err := sess.send(&wire.ServerFrame{Frame: &wire.ServerFrame_Issued{Issued: results}}); err != nil {
				return err
			}
		case *wire.NodeFrame_Records:
			sess.seen(now, 0)
			select {
			case records <- frame.Records:
			case <-ctx.Done():
				return ctx.Err()
			}
		case *wire.NodeFrame_Endpoints:
			sess.report(frame.Endpoints)
		case *wire.NodeFrame_Hello:
			return status.Error(codes.InvalidArgument, "a second hello")
		default:
			return status.Error(codes.InvalidArgument, "a frame of an unknown kind")
		}
	}
}

// pumpCheckpoints publishes the logs' newest checkpoints, at most once a
// second, and wakes the sessions, until ctx ends.
func (s *Server) pumpCheckpoints(ctx context.Context) error {
	grown := make(chan struct{}, 1)
	for _, log := range s.logs() {
		go func() { // ends with ctx
			for size := log.Size(); log.Wait(ctx, size) == nil; size = log.Size() {
				select {
				case grown <- struct{}{}:
				default:
				}
				if !rotation.Pause(ctx, time.Second) {
					return
				}
			}
		}()
	}
	for {
		behind := s.publishCheckpoints()
		if behind {
			if !rotation.Pause(ctx, time.Second) {
				return ctx.Err()
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grown:
		}
	}
}

// publishCheckpoints offers the newest checkpoints to the sessions and reports
// whether a log has entries that its checkpoint does not cover yet.
func (s *Server) publishCheckpoints() (behind bool) {
	var list []*wire.Checkpoint
	logs := s.logs()
	for _, name := range []string{AuthorityLog, ConnectionsLog} {
		log := logs[name]
		st := log.Stats()
		behind = behind || st.CheckpointSize < log.Size()
		if note := log.Checkpoint(); len(note) > 0 {
			list = append(list, &wire.Checkpoint{Log: log.Origin(), Note: note, VerifierKey: log.VerifierKey()})
		}
	}
	old := s.checkpoints.Load()
	same := old != nil && maps.Equal(notes(*old), notes(list))
	if !same {
		s.checkpoints.Store(&list)
		s.sessions.notifyAll()
	}
	return behind
}

func notes(list []*wire.Checkpoint) map[string]string {
	m := map[string]string{}
	for _, c := range list {
		m[c.GetLog()] = string(c.GetNote())
	}
	return m
}
