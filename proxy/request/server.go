// This file holds Server: construction, Run, the handing over of connections,
// and what a change of policies does to open requests.

package request

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
)

// cutAfter is how long a request that is no longer allowed has to end before
// its connection is cut. A change of policies is in force within a second.
const cutAfter = 400 * time.Millisecond

// Server serves the requests of connections, whichever application they are
// for.
type Server struct {
	cfg     Config
	house   House
	log     *slog.Logger
	metrics *Metrics
	http    *http.Server
	one     *http.Transport // HTTP/1.1 to the application
	two     *http.Transport // HTTP/2 to the application
	queue   queue
	gate    atomic.Pointer[gate] // of the Authentication seen last

	mu    sync.Mutex
	conns map[*conn]struct{} // guarded by mu
}

// New checks the config and starts nothing.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("requests: %w", err)
	}
	s := &Server{cfg: cfg, house: cfg.House, log: cfg.Logger, metrics: cfg.Metrics,
		queue: queue{conns: make(chan net.Conn), done: make(chan struct{})}, conns: make(map[*conn]struct{})}
	s.http = s.newHTTP()
	s.one, s.two = s.newTransport(false), s.newTransport(true)
	return s, nil
}

// newHTTP configures the server's side. HTTP/2 is known by its preface, also
// over TLS, whatever ALPN agreed on: one way in for both.
func (s *Server) newHTTP() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	l := s.cfg.Limits
	return &http.Server{
		Handler:   http.HandlerFunc(s.serve),
		Protocols: protocols,
		// net/http adds 4 KiB to what is asked for.
		MaxHeaderBytes:    l.HeaderBytes - 4<<10,
		ReadHeaderTimeout: l.HeaderTimeout,
		IdleTimeout:       l.IdleTimeout,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: l.Streams, SendPingTimeout: l.IdleTimeout},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// OPTIONS * is the application's to answer.
		DisableGeneralOptionsHandler: true,
	}
}

// newTransport configures the side of the application.
func (s *Server) newTransport(h2c bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2c)
	protocols.SetUnencryptedHTTP2(h2c)
	return &http.Transport{
		Protocols:           protocols,
		DialContext:         func(ctx context.Context, _, address string) (net.Conn, error) { return s.cfg.Dial(ctx, address) },
		MaxIdleConnsPerHost: 256,
		// Below what applications commonly allow, so that they are not the
		// ones to end a connection that is about to be used.
		IdleConnTimeout:        4 * time.Second,
		ExpectContinueTimeout:  5 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
		DisableCompression:     true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second},
	}
}

type connKey struct{}

// queue is the listener that connections are handed over by.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// Run serves until ctx ends, and then drains: idle connections are closed,
// others end with their requests, for which Run waits. Whoever wants it
// sooner closes what is left. It returns nil after a drain.
func (s *Server) Run(ctx context.Context) error {
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { drained <- s.http.Shutdown(context.WithoutCancel(ctx)) })
	defer stop()
	err := s.http.Serve(&s.queue)
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("requests: %w", err)
	}
	err = <-drained
	s.one.CloseIdleConnections()
	s.two.CloseIdleConnections()
	return err
}

// Serve takes over a connection whose peer is known. It is closed when its
// client or the server ends it, or its requests do; gone is then called once,
// also where Run has ended meanwhile.
func (s *Server) Serve(nc net.Conn, peer Peer, gone func()) {
	own, _ := identity.ParseID(peer.Server)
	c := &conn{Conn: nc, peer: peer, s: s, gone: gone, open: make(map[*exchange]struct{}),
		pair: s.metrics.Pairs.Of(peer.Connection.Peer, own, ByDestination)}
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	select {
	case s.queue.conns <- c:
	case <-s.queue.done:
		c.Close()
	}
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Reconsider judges every open request by the new policies and ends those
// that are no longer allowed.
func (s *Server) Reconsider(set *policy.Set) {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		for _, e := range c.exchanges() {
			d := set.DecideRequest(&e.facts)
			if d.Allowed {
				continue
			}
			s.house.Refused(e.refusal(d, true))
			e.cancel(errNoLongerAllowed)
			time.AfterFunc(cutAfter, func() {
				if c.has(e) {
					c.cut()
				}
			})
		}
	}
}

var errNoLongerAllowed = errors.New("policies no longer allow the request")
