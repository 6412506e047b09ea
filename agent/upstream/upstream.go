// Package upstream is the agent's end of the Sync stream: one connection to
// the server, on which rosters come down, requests for SVIDs and connection
// records go up, and checkpoints are shown.
//
// It owns the stream, its reconnection and its position. It leaves the
// node's credential to join, the meaning of deltas to roster, the SVIDs to
// keyring, the records to spool and the checkpoints to history. It stands on
// the second floor, inside the agent's room.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/aval-id/aval/agent/directory"
	"github.com/aval-id/aval/agent/history"
	"github.com/aval-id/aval/agent/join"
	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/agent/spool"
	"github.com/aval-id/aval/rotation"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	backoffBase = 100 * time.Millisecond
	// maxSkew is the difference of clocks that is reported.
	maxSkew = 30 * time.Second
)

// Served is what this node serves, as acknowledgements tell it to the server:
// a rollover of authorities waits for it.
type Served struct {
	Issuers []string   // subject key identifiers (hex) of the issuers of what is served
	Bundles [][32]byte // hashes of the own trust domain's bundles in use
	Lagging []string   // SPIFFE IDs of proxies that are behind
}

// Serving is the rest of the agent, as the stream needs it.
type Serving interface {
	// Served says what is served under a roster.
	Served(r *roster.Roster, now time.Time) Served
	// Changed receives when Served may have another answer.
	Changed() <-chan struct{}
	// Reissue has credentials issued anew.
	Reissue(o keyring.Order, now time.Time)
	// Reconnected is called when the server can be asked again.
	Reconnected()
}

// Config is what a Client needs.
type Config struct {
	Node      *join.Node
	Feed      *roster.Feed
	Spool     *spool.Spool
	History   *history.History
	Directory *directory.Directory
	Version   string
	Evaluator uint32        // newest policy evaluator that this program knows
	RetryMax  time.Duration // longest wait between tries to connect
	Logger    *slog.Logger
}

// Client keeps the stream. It is safe for concurrent use.
type Client struct {
	cfg Config

	mu      sync.Mutex // guards what follows
	serving Serving
	session *session      // nil while there is none
	opened  chan struct{} // closed when a session opens; nil while nobody waits
	status  Status
	obeyed  []string // the last orders to reissue, oldest first
}

// Status describes the stream at one moment.
type Status struct {
	Connected   bool
	Server      string        // SPIFFE ID of the server last talked to
	LastContact time.Time     // when something last came from it
	Skew        time.Duration // its clock less ours, at the last welcome
	LastError   string        // why the last stream ended; "" while connected
}

// New returns a client that is not connected.
func New(cfg Config) (*Client, error) {
	if cfg.Node == nil || cfg.Feed == nil || cfg.Spool == nil || cfg.History == nil || cfg.Directory == nil || cfg.Logger == nil {
		return nil, errors.New("upstream: a part of the configuration is missing")
	}
	if cfg.RetryMax == 0 {
		cfg.RetryMax = 5 * time.Second
	}
	return &Client{cfg: cfg}, nil
}

// serve names who is told about reconnections and asked for what is served.
func (c *Client) serve(s Serving) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving = s
}

// Run attests the node where that is needed and keeps a stream to the server
// until ctx ends, or until the server's answer is final: then the error is a
// *join.Refused.
func (c *Client) Run(ctx context.Context, serving Serving) error {
	c.serve(serving)
	for attempt := 0; ; attempt++ {
		began := time.Now()
		err := c.once(ctx, attempt)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, final := errors.AsType[*join.Refused](err); final {
			c.cfg.Feed.Set(nil)
			return err
		}
		if errors.Is(err, errRenewed) {
			attempt = -1
			continue
		}
		if time.Since(began) > 2*c.cfg.RetryMax {
			attempt = 0
		}
		wait := rotation.Backoff(attempt, backoffBase, c.cfg.RetryMax)
		if bye, ok := errors.AsType[*goodbye](err); ok && bye.after > 0 {
			wait = min(bye.after, time.Minute) + wait
		}
		c.ended(err)
		c.cfg.Logger.Warn("no stream to the server", "error", err, "retry_in", wait.Round(time.Millisecond))
		if !rotation.Pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

// attestAfter is how many failures in a row make the node attest again: a
// server that refuses its certificate in the handshake can't say so, as one
// does whose root was replaced while this node was away.
const attestAfter = 3

// once attests if need be and keeps one stream. A stream that the server
// refuses is answered by attesting again, whose refusal is final.
func (c *Client) once(ctx context.Context, attempt int) error {
	node := c.cfg.Node
	if !node.Valid(time.Now()) || attempt%attestAfter == attestAfter-1 {
		if err := node.Attest(ctx); err != nil {
			return err
		}
	}
	err := c.sync(ctx)
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated:
		if attestErr := node.Attest(ctx); attestErr != nil {
			return fmt.Errorf("%w; %w", err, attestErr)
		}
	}
	return err
}

// Issue sends requests as one batch and waits for their results. It gives a
// stream that is being replaced a moment to come back before it answers
// keyring.ErrAway.
func (c *Client) Issue(ctx context.Context, batch []keyring.Request) ([]keyring.Result, error) {
	s, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	return s.issue(ctx, batch)
}

// patience is how long Issue waits for a stream to come back.
const patience = time.Second

func (c *Client) current(ctx context.Context) (*session, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		c.mu.Lock()
		s := c.session
		if s == nil && c.opened == nil {
			c.opened = make(chan struct{})
		}
		opened := c.opened
		c.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-opened:
		case <-timer.C:
			return nil, keyring.ErrAway
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// open makes s the session that requests go to. Nil takes it away.
func (c *Client) open(s *session) {
	c.mu.Lock()
	c.session = s
	if s != nil && c.opened != nil {
		close(c.opened)
		c.opened = nil
	}
	serving := c.serving
	c.mu.Unlock()
	if s != nil {
		serving.Reconnected()
	}
}

// Status returns the state of the stream.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Client) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Connected = false
	c.status.LastError = err.Error()
}

// maxObeyed bounds the orders that are remembered.
const maxObeyed = 512

// firstTime reports whether an order was not obeyed before, and remembers it.
// One without a name is always obeyed.
func (c *Client) firstTime(order string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if order == "" {
		return true
	}
	if slices.Contains(c.obeyed, order) {
		return false
	}
	c.obeyed = append(c.obeyed[max(0, len(c.obeyed)-maxObeyed+1):], order)
	return true
}

func (c *Client) heard(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.LastContact = now
}

// goodbye is the server's announced end of a stream.
type goodbye struct {
	reason string
	after  time.Duration
}

// Error returns what the server gave as its reason.
func (g *goodbye) Error() string { return "the server ended the stream: " + g.reason }
