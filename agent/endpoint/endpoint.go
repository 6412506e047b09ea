// Package endpoint is the agent's Unix socket: the SPIFFE Workload API, the
// service for proxies, and the service for people on the machine. Each caller
// is attested by its connection and gets what its process is entitled to.
//
// It owns the socket and who may see what. It leaves what processes are to
// attest, who is entitled to roster, and keys to keyring. It stands on the
// second floor, inside the agent's room.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/agent/attest"
	"github.com/aval-id/aval/agent/directory"
	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/identity/wire/socket"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// Records takes connection records that proxies report.
type Records interface {
	// Add takes JSON records of a reporter, and a count of those that it lost.
	// It never blocks on the server.
	Add(reporter string, events [][]byte, lost uint64)
}

// Config is what a Server needs.
type Config struct {
	Socket  string
	Feed    *roster.Feed
	Ring    *keyring.Ring
	Records Records
	Limits  attest.Limits
	Status  func() *wire.StatusResponse
	Logger  *slog.Logger
	// LookEvery is how often the process of an open stream is attested again
	// while nothing is pushed to it and streams are few. Zero means 5 s.
	LookEvery time.Duration
	// Directory is this node's part in the registry of endpoints.
	Directory *directory.Directory
	// Changed is told that Holdings may have another answer. It must not
	// block; nil is told nothing.
	Changed func()
}

// Server serves the socket. It is safe for concurrent use.
type Server struct {
	cfg    Config
	hashes attest.Hashes
	peers  *attest.Credentials

	holdings holdings

	panics atomic.Uint64
	denied atomic.Uint64

	followed atomic.Int64 // streams that wait for changes
	searches searches
}

// socketMode lets every process connect: what it gets depends on what it is.
const socketMode = 0o777

// The limits of one connection, which any local process can open. A call
// carries nothing but records upwards, and a process needs a handful of calls.
const (
	maxStreams       = 64
	maxMessageBytes  = 2 << 20
	maxHeaderBytes   = 16 << 10
	handshakeTimeout = 10 * time.Second
)

// New returns a server that has opened nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Socket == "" || cfg.Feed == nil || cfg.Ring == nil || cfg.Records == nil || cfg.Directory == nil || cfg.Status == nil || cfg.Logger == nil {
		return nil, errors.New("endpoint: a part of the configuration is missing")
	}
	if cfg.LookEvery <= 0 {
		cfg.LookEvery = 5 * time.Second
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Server{cfg: cfg, peers: attest.NewCredentials(cfg.Limits), holdings: holdings{changed: cfg.Changed}}, nil
}

// Run opens the socket and serves it until ctx ends. Streams that are open
// then are ended.
func (s *Server) Run(ctx context.Context) error {
	l, err := socket.Listen(s.cfg.Socket, socket.File{Mode: socketMode})
	if err != nil {
		return err
	}
	g := grpc.NewServer(
		grpc.Creds(s.peers.Transport()),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(wire.MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	workload.RegisterSpiffeWorkloadAPIServer(g, &workloadAPI{s: s})
	wire.RegisterProxyServer(g, &proxies{s: s})
	wire.RegisterLocalServer(g, &local{s: s})
	reflection.Register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	s.cfg.Logger.Info("socket is open", "socket", s.cfg.Socket)
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("socket %s: %w", s.cfg.Socket, err)
	}
	g.Stop() // waits for the handlers
	return ctx.Err()
}

// Stats are the numbers of the endpoint.
type Stats struct {
	Connections int
	Denied      uint64 // calls that ended with PermissionDenied
	Panics      uint64 // calls that ended in a fault of this program
}

// Stats returns the numbers of the moment.
func (s *Server) Stats() Stats {
	return Stats{Connections: s.peers.Open(), Denied: s.denied.Load(), Panics: s.panics.Load()}
}

func (s *Server) unary(ctx context.Context, req any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer s.ended(call.FullMethod, &err)
	if err := checkHeader(ctx, call.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer s.ended(call.FullMethod, &err)
	if err := checkHeader(ss.Context(), call.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}

// ended turns a panic into an error of that one call, and counts.
func (s *Server) ended(method string, err *error) {
	if v := recover(); v != nil {
		s.panics.Add(1)
		s.cfg.Logger.Error("a call ended in a panic", "method", method, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal fault of the agent")
	}
	if status.Code(*err) == codes.PermissionDenied {
		s.denied.Add(1)
	}
}

// caller returns the process behind a call.
func caller(ctx context.Context) (*attest.Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "the call has no peer")
	}
	who, ok := p.AuthInfo.(*attest.Peer)
	if !ok {
		return nil, status.Error(codes.Internal, "the call has no attested peer")
	}
	return who, nil
}
