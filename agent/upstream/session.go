// This file holds session: one Sync stream from its hello to its end.

package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errRenewed ends a stream whose credential was renewed: the next one proves
// the new key to the server, which then forgets the old one.
var errRenewed = errors.New("the node's credential was renewed")

// helloTimeout bounds the wait for a connection and the server's welcome.
const helloTimeout = 15 * time.Second

// drainTimeout bounds the wait for results when a stream is replaced.
const drainTimeout = 5 * time.Second

// session is one stream. Frames go out through one goroutine.
type session struct {
	client  *Client
	stream  wire.Node_SyncClient
	out     chan *wire.NodeFrame
	done    <-chan struct{} // closed when the stream ends
	builder *roster.Builder
	acks    chan uint64
	told    told

	registry bool // the server keeps the registry of endpoints

	mu      sync.Mutex // guards what follows
	next    uint64     // number of the next batch
	waiting map[uint64]chan *wire.IssueResults
	quiet   chan struct{} // closed once nothing waits, where set
}

// sync opens a stream and serves it until it ends. The error says why it did.
func (c *Client) sync(ctx context.Context) error {
	select {
	case <-c.cfg.Node.Renewed(): // this stream will use what was renewed
	default:
	}
	conn, err := c.cfg.Node.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := wire.NewNodeClient(conn).Sync(ctx)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	s := &session{
		client: c, stream: stream, out: make(chan *wire.NodeFrame), done: ctx.Done(),
		acks: make(chan uint64, 1), waiting: make(map[uint64]chan *wire.IssueResults),
	}
	late := time.AfterFunc(helloTimeout, func() { cancel(errors.New("the server sent no welcome in time")) })
	err = s.hello()
	late.Stop()
	if err != nil {
		return fmt.Errorf("sync: %w", causeOf(ctx, err))
	}
	var parts sync.WaitGroup
	parts.Go(func() { cancel(s.send(ctx)) })
	parts.Go(func() { cancel(s.ship(ctx)) })
	parts.Go(func() { cancel(s.report(ctx)) })
	parts.Go(func() { cancel(s.watchRenewal(ctx)) })
	parts.Go(func() { cancel(s.acknowledgeChanges(ctx)) })
	err = s.receive(ctx)
	c.open(nil)
	err = causeOf(ctx, err)
	cancel(err)
	parts.Wait()
	return err
}

// hello says what is held and takes the welcome.
func (s *session) hello() error {
	c := s.client
	held, _ := c.cfg.Feed.Current()
	hello := &wire.Hello{Version: c.cfg.Version, Clock: time.Now().UnixMilli(), Evaluator: c.cfg.Evaluator}
	if held != nil {
		hello.Held = held.Position.Wire()
	}
	if err := s.stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Hello{Hello: hello}}); err != nil {
		return err
	}
	frame, err := s.stream.Recv()
	if err != nil {
		return err
	}
	if bye := frame.GetGoodbye(); bye != nil {
		return s.goodbye(bye)
	}
	w := frame.GetWelcome()
	if w == nil {
		return fmt.Errorf("first frame is a %T, not a welcome", frame.GetFrame())
	}
	return s.welcome(w, held)
}

// welcome starts the state of the stream.
func (s *session) welcome(w *wire.Welcome, held *roster.Roster) error {
	c := s.client
	node := c.cfg.Node.ID()
	if td := w.GetSettings().GetTrustDomain(); td != node.TrustDomain().String() {
		return fmt.Errorf("server is of trust domain %q, this node of %s", td, node.TrustDomain())
	}
	now := time.Now()
	skew := time.UnixMilli(w.GetClock()).Sub(now).Round(time.Millisecond)
	if skew.Abs() > maxSkew {
		c.cfg.Logger.Warn("the clocks of server and node differ", "skew", skew, "server", w.GetServerId())
	}
	at := roster.PositionOf(w.GetPosition())
	if held != nil && at.Epoch < held.Position.Epoch {
		c.cfg.Logger.Error("the server is of an earlier epoch than what this node holds",
			"held", held.Position.String(), "server_position", at.String(), "server", w.GetServerId())
	}
	s.builder = roster.NewBuilder(roster.Node{
		ID: node, Server: w.GetServerId(), Attributes: wire.ToAttributes(w.GetAttributes()), Settings: w.GetSettings(),
	}, node.TrustDomain(), held, at, w.GetResync())
	s.registry = w.GetEndpoints()
	c.cfg.Directory.Begin(s.registry)
	c.mu.Lock()
	c.status = Status{Connected: true, Server: w.GetServerId(), LastContact: now, Skew: skew}
	c.mu.Unlock()
	c.cfg.Logger.Info("stream to the server is open", "server", w.GetServerId(), "position", at.String(), "resync", w.GetResync())
	c.open(s)
	return nil
}

// receive takes frames until the stream ends.
func (s *session) receive(ctx context.Context) error {
	for {
		frame, err := s.stream.Recv()
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		s.client.heard(time.Now())
		if err := s.take(ctx, frame); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
}

// take handles one frame. What this program does not know is passed over:
// newer servers may say more.
func (s *session) take(ctx context.Context, frame *wire.ServerFrame) error {
	switch f := frame.GetFrame().(type) {
	case *wire.ServerFrame_Delta:
		return s.delta(ctx, f.Delta)
	case *wire.ServerFrame_Issued:
		s.results(f.Issued)
	case *wire.ServerFrame_RecordsAck:
		select {
		case s.acks <- f.RecordsAck.GetSequence():
		case <-ctx.Done():
		}
	case *wire.ServerFrame_Checkpoints:
		s.checkpoints(f.Checkpoints)
	case *wire.ServerFrame_Endpoints:
		s.endpoints(f.Endpoints)
	case *wire.ServerFrame_Reissue:
		// By issuers alone an order may be obeyed again: what follows it is
		// not of these.
		if f.Reissue.GetBefore() == 0 || s.client.firstTime(f.Reissue.GetOrder()) {
			s.client.serving.Reissue(orderOf(f.Reissue), time.Now())
		}
	case *wire.ServerFrame_Goodbye:
		return s.goodbye(f.Goodbye)
	case *wire.ServerFrame_Welcome:
		return errors.New("a second welcome")
	}
	return nil
}

// delta applies a delta, and shows and acknowledges what it completes.
func (s *session) delta(ctx context.Context, d *wire.Delta) error {
	c := s.client
	r, faults, err := s.builder.Apply(d)
	for _, f := range faults {
		c.cfg.Logger.Warn("a document of the server was left out", "error", f)
	}
	if errors.Is(err, roster.ErrOutOfStep) {
		// What is held stays in use; the next hello asks for everything.
		if held, _ := c.cfg.Feed.Current(); held != nil {
			forgotten := *held
			forgotten.Position = roster.Position{}
			c.cfg.Feed.Set(&forgotten)
		}
	}
	if err != nil || r == nil {
		return err
	}
	if err := c.cfg.Node.KeepBundle(r.Bundle); err != nil {
		return err
	}
	c.cfg.Node.KeepDenials(r.Denials)
	c.cfg.Feed.Set(r)
	return s.acknowledge(ctx, r)
}

func (s *session) checkpoints(cs *wire.Checkpoints) {
	for _, cp := range cs.GetCheckpoints() {
		if err := s.client.cfg.History.Keep(cp.GetLog(), cp.GetNote(), cp.GetVerifierKey(), time.Now()); err != nil {
			s.client.cfg.Logger.Error("a checkpoint of the server's log does not fit", "error", err)
		}
	}
}

// goodbye turns the server's farewell into the stream's error.
func (s *session) goodbye(g *wire.Goodbye) error {
	if g.GetEvicted() {
		// The node serves nothing from now on. It is not final by itself: a
		// new join token may admit the node again.
		s.client.cfg.Feed.Set(nil)
		return status.Errorf(codes.PermissionDenied, "this node was evicted: %s", g.GetReason())
	}
	return &goodbye{reason: g.GetReason(), after: time.Duration(g.GetRetryAfter()) * time.Millisecond}
}

// causeOf prefers why a stream was ended to the cancellation that ended it.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && (errors.Is(cause, errRenewed) || status.Code(err) == codes.Canceled) {
		return cause
	}
	return err
}

// put hands a frame to the sender.
func (s *session) put(ctx context.Context, f *wire.NodeFrame) error {
	select {
	case s.out <- f:
		return nil
	case <-s.done:
		return keyring.ErrAway
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send writes frames until ctx ends. Once one can't be sent the stream is
// over; Recv has the reason, and must not wait here for its own answers, so
// what else is handed in goes nowhere.
func (s *session) send(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-s.out:
			if err := s.stream.Send(f); err != nil {
				return s.discard(ctx, err)
			}
		}
	}
}

// discard takes frames that go nowhere until ctx ends, and returns err.
func (s *session) discard(ctx context.Context, err error) error {
	for {
		select {
		case <-ctx.Done():
			return err
		case <-s.out:
		}
	}
}

// watchRenewal ends the stream once the node's credential was renewed and
// nothing waits for results any more.
func (s *session) watchRenewal(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.client.cfg.Node.Renewed():
	}
	s.client.open(nil)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.drained():
	case <-time.After(drainTimeout):
	}
	return errRenewed
}

var _ keyring.Issuer = (*Client)(nil)
