// This file holds Server: construction, the list of its parts, and its end.

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/jwks"
	"github.com/aval-id/aval/ca/registry"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/ca/store/bolt"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/identity/wire/socket"
	"github.com/aval-id/aval/rotation"
)

// Server is one server on its data directory. New opens it, Run serves until
// its context ends, and it cannot be used again after that.
type Server struct {
	cfg        Config
	log        *slog.Logger
	started    time.Time
	adminGroup *uint32

	lock                      *os.File
	store                     store.Store
	authorityLog, connections *audit.Log
	recorder                  ca.Recorder // the authority log
	issuer                    *ca.Issuer

	nodeListener  net.Listener
	adminListener net.Listener

	trusting    sync.Mutex            // held while trust is made anew
	trust       atomic.Pointer[trust] // nil before Run has made it
	rollover    *rollover
	marks       highWater
	orders      orders
	reissues    reissues
	upstream    upstreamState
	importing   sync.Mutex // one import at a time
	checkpoints atomic.Pointer[[]*wire.Checkpoint]
	serving     atomic.Bool
	settled     atomic.Bool // the registry has heard of every node that may come back

	documents *documents
	revoker   *revoker
	keySets   *keySets
	nodes     *nodes
	live      liveIndex
	issuing   sync.RWMutex // read-held over a batch, held over a revocation
	receipts  receiptSigner
	sessions  sessions
	refusals  *refusals
	paces     nodePaces
	ledger    *ledger
	registry  *registry.Registry
	expiry    signal // claims of the registry may end soon
	// reconsidered is the revision that the registry was last judged by.
	reconsidered atomic.Uint64
	metrics      *metrics

	closing sync.Once
	closed  error
}

// New checks the configuration, takes the data directory, opens the store,
// the logs and the listeners, and refuses what is damaged, expired or of
// another trust domain. It starts nothing; the caller ends it by Run or
// Close. The error wraps ErrLocked where another server holds the directory.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	keySource, err := jwks.New(cfg.KeySources)
	if err != nil {
		return nil, fmt.Errorf("server config: %w", err)
	}
	s := &Server{cfg: cfg, log: cfg.Logger, started: time.Now(), paces: nodePaces{issue: cfg.IssuePace, record: cfg.RecordPace},
		sessions: sessions{open: map[string]*session{}, past: map[string]presence{}}}
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("server %s: %w", cfg.Name, err)
	}
	s.assemble(keySource)
	return s, nil
}

// open takes the directory and what is in it, then the listeners.
func (s *Server) open() (err error) {
	cfg := s.cfg
	if s.adminGroup, err = groupID(cfg.AdminGroup); err != nil {
		return err
	}
	for _, dir := range []string{cfg.DataDir, filepath.Join(cfg.DataDir, keysDir), filepath.Join(cfg.DataDir, auditDir)} {
		if err := secureDir(dir); err != nil {
			return err
		}
	}
	if s.lock, err = lockDir(cfg.DataDir, cfg.LockTimeout); err != nil {
		return err
	}
	root, err := readRoot(cfg, time.Now())
	if err != nil {
		return err
	}
	if root != nil {
		if err := checkKept(cfg.DataDir); err != nil {
			return err
		}
	}
	db, err := bolt.Open(bolt.Config{Path: filepath.Join(cfg.DataDir, storeFile), LockTimeout: cfg.LockTimeout})
	if err != nil {
		return err
	}
	s.store = db
	if s.authorityLog, err = openLog(cfg, AuthorityLog, audit.Config{Reserve: cfg.AuthorityReserve}); err != nil {
		return err
	}
	if s.connections, err = openLog(cfg, ConnectionsLog, audit.Config{Reserve: -1, Quota: cfg.ConnectionsQuota}); err != nil {
		return err
	}
	if s.nodeListener = cfg.Listener; s.nodeListener == nil {
		if s.nodeListener, err = net.Listen("tcp", cfg.Listen); err != nil {
			return fmt.Errorf("listen for nodes: %w", err)
		}
	}
	s.adminListener, err = listenAdmin(cfg.AdminSocket, s.adminGroup)
	return err
}

// assemble joins the parts that New opened.
func (s *Server) assemble(keySource *jwks.Source) {
	s.keySets = &keySets{
		source: keySource, store: s.store, changed: s.sessions.notifyAll, refresh: s.cfg.KeysRefresh, log: s.log,
		fetches: make(chan struct{}, fetchesAtOnce), woken: make(chan struct{}, 1), state: map[string]*followed{},
		record: func(ctx context.Context, events []audit.Event) error {
			_, err := s.recorder.RecordAll(ctx, events)
			return err
		},
		wanted: func() map[string]sought { return s.documents.soughtKeys() },
	}
	s.keySets.now.Store(&keyRing{})
	s.metrics = newMetrics(s)
	s.setRecorder(s.authorityLog)
	s.receipts.sign = s.authorityLog.Sign
	s.nodes = &nodes{store: s.store}
	s.marks.store = s.store
	s.rollover = newRollover(s)
	s.revoker = &revoker{server: s, wake: make(chan struct{}, 1)}
	s.ledger = newLedger()
	s.registry, s.expiry = s.newRegistry(), make(signal, 1)
	s.refusals = &refusals{
		logs:    map[string]ca.Recorder{AuthorityLog: s.authorityLog, ConnectionsLog: s.connections},
		metrics: s.metrics, log: s.log, signal: make(chan struct{}, 1), counts: map[refusalKey]*refusalCount{},
	}
	s.documents = &documents{
		store: s.store, recorder: s.recorder, log: s.log, changed: s.documentsChanged, settled: s.rollover.recordedLate, retry: make(chan struct{}, 1),
		recorded: func(since time.Time, fn func(audit.Event) bool) error { return readSince(s.authorityLog, since, fn) },
		parser: parser{
			trustDomain: s.cfg.TrustDomain,
			settings:    policy.Settings{TrustDomain: s.cfg.TrustDomain, RootNamespace: s.cfg.RootNamespace, DefaultDeny: s.cfg.DefaultDeny, Requests: true},
			workload:    s.profiles().Workload,
			admits:      keySource.Admits,
		},
	}
}

// setRecorder decides where authority events go: the log, or a test's fake.
func (s *Server) setRecorder(r ca.Recorder) {
	s.recorder = r
	s.issuer = ca.NewIssuer(r)
	if s.documents != nil {
		s.documents.recorder = r
	}
}

func (s *Server) logs() map[string]*audit.Log {
	return map[string]*audit.Log{AuthorityLog: s.authorityLog, ConnectionsLog: s.connections}
}

// Run makes what is missing (root, intermediate, the server's SVID), settles
// what a crash left, and serves until ctx ends or a part fails. It leaves
// nothing behind and releases the data directory.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("server %s: %w", s.cfg.Name, err)
	}
	// The logs outlive the services, which write to them to the end.
	logsCtx, stopLogs := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLogs()
	var logs, parts errgroup.Group
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	part := func(g *errgroup.Group, ctx context.Context, run func(context.Context) error) {
		g.Go(func() error {
			err := run(ctx)
			if err != nil && ctx.Err() == nil {
				fail(err)
				return err
			}
			return nil
		})
	}
	part(&logs, logsCtx, s.authorityLog.Run)
	part(&logs, logsCtx, s.connections.Run)
	part(&logs, logsCtx, s.refusals.run)
	part(&parts, ctx, s.documents.run)
	part(&parts, ctx, s.keySets.run)
	part(&parts, ctx, s.pumpCheckpoints)
	part(&parts, ctx, s.compact)
	part(&parts, ctx, s.tendRegistry)
	s.ledger.load()
	recorded := s.connections.Size() // before the first node can report
	part(&parts, ctx, func(ctx context.Context) error { return s.loadLedger(ctx, recorded) })
	part(&parts, ctx, func(ctx context.Context) error { return rotation.Loop(ctx, &keeper{server: s}, nil) })
	part(&parts, ctx, func(ctx context.Context) error { return rotation.Loop(ctx, &issuerKeeper{server: s}, nil) })
	part(&parts, ctx, func(ctx context.Context) error { return rotation.Loop(ctx, s.rollover, s.rollover.wake) })
	part(&parts, ctx, func(ctx context.Context) error { return rotation.Loop(ctx, s.revoker, s.revoker.wake) })
	part(&parts, ctx, s.serveNodes)
	part(&parts, ctx, s.serveAdmin)
	s.serving.Store(true)
	s.log.Info("server ready", "trust_domain", s.cfg.TrustDomain.String(), "listen", s.Addr().String(), "admin_socket", s.cfg.AdminSocket)
	err := parts.Wait()
	s.serving.Store(false)
	stopLogs()
	return errors.Join(err, logs.Wait(), s.Close())
}

// prepare brings the state in memory up to the disk's.
func (s *Server) prepare(ctx context.Context) error {
	now := time.Now()
	if err := s.nodes.load(); err != nil {
		return err
	}
	if err := s.marks.load(ctx, s.store, now); err != nil {
		return err
	}
	if err := s.documents.load(ctx); err != nil {
		return fmt.Errorf("documents: %w", err)
	}
	if err := s.keySets.load(); err != nil {
		return fmt.Errorf("keys of issuers: %w", err)
	}
	if err := s.rollover.load(); err != nil {
		return err
	}
	if err := s.reconcile(ctx, now); err != nil {
		return err
	}
	if err := s.establish(ctx, now); err != nil {
		return err
	}
	s.rollover.shown.Store(s.rollover.record.Load())
	err := readSince(s.authorityLog, now.Add(-s.cfg.MaxTTL), func(e audit.Event) bool {
		s.live.add(e, now)
		return true
	})
	if err != nil {
		return fmt.Errorf("index of live SVIDs: %w", err)
	}
	position := s.store.Position()
	_, err = s.recorder.RecordAll(ctx, []audit.Event{{Time: now, Kind: audit.KindServerStarted, Verdict: audit.VerdictDone,
		ServerID: s.Credentials().SVID.ID.String(), Epoch: position.Epoch, Revision: position.Revision, Detail: "version " + clip(s.cfg.Version, 100)}})
	if err != nil {
		return notRecorded("start", err)
	}
	return nil
}

// historyKept is how many revisions of the store's history stay.
const historyKept = 4096

// compact forgets the store's old history as new revisions come, until ctx
// ends.
func (s *Server) compact(ctx context.Context) error {
	var floor uint64
	// No key has this prefix: only the revisions count.
	return s.store.Watch(ctx, "none/", s.store.Position().Revision, func(b store.Batch) error {
		if b.Through < floor+2*historyKept {
			return nil
		}
		floor = b.Through - historyKept
		return s.store.Compact(ctx, floor)
	})
}

// serveNodes serves the node API until ctx ends, then lets the streams say
// goodbye.
func (s *Server) serveNodes(ctx context.Context) error {
	limit := &limitListener{Listener: s.nodeListener, limit: int64(s.cfg.MaxConnections), refuse: s.refuseConnection}
	config := mtls.OptionalServerConfig(s, mtls.NewVerifier(0), mtls.HasRole(s.cfg.TrustDomain, identity.RoleNode))
	config.NextProtos = []string{"h2"}
	g := grpc.NewServer(
		grpc.Creds(newNodeTransport(config, s.cfg, s.refuseConnection)),
		// The preface after the handshake has the same deadline.
		grpc.ConnectionTimeout(2*s.cfg.HandshakeTimeout),
		grpc.MaxRecvMsgSize(wire.MaxMessageBytes), grpc.MaxSendMsgSize(wire.MaxMessageBytes),
		grpc.MaxConcurrentStreams(16), grpc.MaxHeaderListSize(16<<10),
		// Fixed windows: no ping measures the connection with each batch.
		grpc.StaticStreamWindowSize(1<<20), grpc.StaticConnWindowSize(4<<20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unaryGuard), grpc.StreamInterceptor(s.streamGuard), grpc.WaitForHandlers(true),
	)
	wire.RegisterNodeServer(g, nodeService{Server: s})
	return s.serveGRPC(ctx, g, limit, func() {
		s.sessions.closeAll(&wire.Goodbye{Reason: "the server is stopping", RetryAfter: time.Second.Milliseconds()})
	})
}

func (s *Server) serveAdmin(ctx context.Context) error {
	g := grpc.NewServer(
		grpc.Creds(socket.Transport{}), grpc.ConnectionTimeout(s.cfg.HandshakeTimeout),
		grpc.MaxRecvMsgSize(wire.MaxMessageBytes), grpc.MaxSendMsgSize(4*wire.MaxMessageBytes),
		grpc.MaxConcurrentStreams(64), grpc.MaxHeaderListSize(16<<10),
		grpc.ChainUnaryInterceptor(s.unaryGuard, s.unaryOperator),
		grpc.ChainStreamInterceptor(s.streamGuard, s.streamOperator), grpc.WaitForHandlers(true),
	)
	wire.RegisterAdminServer(g, adminService{Server: s})
	return s.serveGRPC(ctx, g, s.adminListener, func() {})
}

// serveGRPC serves until ctx ends, then stops gracefully within the drain
// timeout, and after it hard.
func (s *Server) serveGRPC(ctx context.Context, g *grpc.Server, l net.Listener, stopping func()) error {
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stopping()
	hard := time.AfterFunc(s.cfg.DrainTimeout, g.Stop)
	defer hard.Stop()
	g.GracefulStop()
	return <-served
}

// Close releases everything that New opened. It may be called twice.
func (s *Server) Close() error {
	s.closing.Do(func() {
		var errs []error
		if s.nodeListener != nil {
			s.nodeListener.Close()
		}
		if s.adminListener != nil {
			s.adminListener.Close()
		}
		for _, log := range []*audit.Log{s.authorityLog, s.connections} {
			if log != nil {
				errs = append(errs, log.Close())
			}
		}
		if s.store != nil {
			errs = append(errs, s.store.Close())
		}
		if s.lock != nil {
			errs = append(errs, s.lock.Close())
		}
		s.closed = errors.Join(errs...)
	})
	return s.closed
}

// readyAbove is which fraction of the intermediate's life must be left for the
// server to be ready: renewal begins at half of it.
const readyAbove = 0.1

// Ready returns nil while the server serves, or why it does not.
func (s *Server) Ready() error {
	switch {
	case !s.serving.Load():
		return errors.New("the server is not serving")
	case s.authorityLog.Stats().Full:
		return fmt.Errorf("issuance is stopped: %w", audit.ErrDiskFull)
	}
	if left := s.lifetimeLeft(roleIntermediate, time.Now()); left < readyAbove {
		return fmt.Errorf("the intermediate has %.0f%% of its lifetime left, and %s has not signed another", left*100, s.upstreamName())
	}
	return nil
}

// Addr returns the address of the node listener.
func (s *Server) Addr() net.Addr { return s.nodeListener.Addr() }

// Advertised returns the address that join commands name.
func (s *Server) Advertised() string {
	if s.cfg.Advertise != "" {
		return s.cfg.Advertise
	}
	return s.Addr().String()
}

// AdminSocket returns the path of the admin socket.
func (s *Server) AdminSocket() string { return s.cfg.AdminSocket }

// Collectors returns the server's metrics.
func (s *Server) Collectors() []prometheus.Collector { return s.metrics.collectors() }
