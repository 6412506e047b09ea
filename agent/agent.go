// Package agent is the part of Aval on each machine: it joins the machine to
// a trust domain as a node, keeps one stream to the server, attests the
// processes that ask, and serves them their identities on a Unix socket.
//
// This package joins the parts; each of them lives in a folder of its own:
// join (the node's credential), upstream (the stream to the server), roster
// (what the server gave this node to hold), keyring (the SVIDs), attest (who
// is asking), endpoint (the socket), spool (connection records) and history
// (checkpoints of the server's logs). It stands on the second floor and
// leaves issuing to the server and enforcement to proxies.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/aval-id/aval/agent/attest"
	"github.com/aval-id/aval/agent/directory"
	"github.com/aval-id/aval/agent/endpoint"
	"github.com/aval-id/aval/agent/history"
	"github.com/aval-id/aval/agent/join"
	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/agent/spool"
	"github.com/aval-id/aval/agent/upstream"
	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
)

// Agent is one agent. Its methods are safe for concurrent use; Run may be
// called once.
type Agent struct {
	cfg     Config
	lock    *os.File
	node    *join.Node
	feed    *roster.Feed
	spool   *spool.Spool
	history *history.History
	// directory is this node's part in the registry of endpoints.
	directory *directory.Directory
	upstream  *upstream.Client
	ring      *keyring.Ring
	endpoint  *endpoint.Server
	serving   *serving
	metrics   *metrics
}

// New checks the configuration, takes the data directory for itself, and
// reads what it holds. It contacts nobody and starts nothing. Close, or the
// end of Run, gives the directory up. An error that wraps a *join.Refused
// says that the agent cannot join with what it was given.
func New(cfg Config) (a *Agent, err error) {
	cfg, err = cfg.check()
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a = &Agent{cfg: cfg, feed: &roster.Feed{}, directory: directory.New(time.Now())}
	a.serving = &serving{agent: a, changed: make(chan struct{}, 1)}
	if a.lock, err = openDataDir(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("agent: data directory %s: %w", cfg.DataDir, err)
	}
	if err := a.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("agent: %w", err), a.Close())
	}
	return a, nil
}

// build makes the parts, lowest first.
func (a *Agent) build() error {
	cfg := a.cfg
	nodeDir := filepath.Join(cfg.DataDir, "node")
	if err := os.MkdirAll(nodeDir, 0o700); err != nil {
		return err
	}
	var err error
	a.node, err = join.Open(join.Config{
		Server: cfg.Server, Token: string(cfg.JoinToken), BundleHash: cfg.BundleHash, BundleFile: cfg.BundleFile,
		TrustDomain: cfg.TrustDomain, Dir: nodeDir, Version: cfg.Version, RetryMax: cfg.RetryMax, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	a.history, err = history.Open(filepath.Join(cfg.DataDir, checkpointsDir), cfg.Logger)
	if err != nil {
		return err
	}
	a.spool, err = spool.Open(spool.Config{Dir: filepath.Join(cfg.DataDir, "spool"), Bytes: cfg.SpoolBytes, Logger: cfg.Logger, Loss: endpoint.Loss})
	if err != nil {
		return err
	}
	a.upstream, err = upstream.New(upstream.Config{
		Node: a.node, Feed: a.feed, Spool: a.spool, History: a.history, Directory: a.directory, Version: cfg.Version,
		Evaluator: policy.EvaluatorVersion, RetryMax: cfg.RetryMax, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	if a.ring, err = keyring.New(keyring.Config{Issuer: a.upstream, Logger: cfg.Logger, Changed: a.serving.note}); err != nil {
		return err
	}
	a.endpoint, err = endpoint.New(endpoint.Config{
		Socket: cfg.Socket, Feed: a.feed, Ring: a.ring, Records: a.spool, Directory: a.directory,
		Limits: attest.Limits{Connections: cfg.MaxConnections, ConnectionsPerUID: cfg.MaxConnectionsPerUID},
		Status: a.status, Logger: cfg.Logger, LookEvery: cfg.LookEvery, Changed: a.serving.note,
	})
	a.metrics = newMetrics(a)
	return err
}

// Run serves until its context ends, and then returns nil, or until a part fails for
// good, and then returns why: a server that refuses this node, a socket that
// cannot be opened. It leaves nothing behind.
func (a *Agent) Run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var parts sync.WaitGroup
	run := func(name string, part func(context.Context) error) {
		parts.Go(func() {
			if err := part(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("agent: %s: %w", name, err))
			}
		})
	}
	run("socket", a.endpoint.Run)
	run("server", func(ctx context.Context) error { return a.upstream.Run(ctx, a.serving) })
	run("node credential", a.node.Run)
	run("keyring", a.ring.Run)
	run("roster", a.prune)
	<-ctx.Done()
	parts.Wait()
	if err := a.Close(); parent.Err() != nil {
		return err
	}
	return context.Cause(ctx)
}

// Close gives up the data directory of an agent that does not run.
func (a *Agent) Close() error {
	var errs []error
	if a.lock != nil {
		errs = append(errs, a.lock.Close())
		a.lock = nil
	}
	return errors.Join(errs...)
}

// Ready returns nil once the agent holds a complete snapshot of its server
// and serves it, else what it waits for.
func (a *Agent) Ready() error {
	if view, _ := a.feed.Current(); view != nil {
		return nil
	}
	if !a.node.Valid(time.Now()) {
		return fmt.Errorf("agent: this node has no valid credential yet%s", a.lastError())
	}
	return fmt.Errorf("agent: no snapshot of server %s yet%s", a.cfg.Server, a.lastError())
}

func (a *Agent) lastError() string {
	if s := a.upstream.Status(); s.LastError != "" {
		return ": " + s.LastError
	}
	return ""
}

// prune drops SVIDs and keys whose registrations are gone, changed or revoked.
func (a *Agent) prune(ctx context.Context) error {
	for {
		view, changed := a.feed.Current()
		keep := make(map[keyring.Subject]bool)
		if view != nil {
			for _, reg := range view.Registrations {
				keep[keyring.SubjectOf(reg.Registration)] = !view.Denials.Bars(reg.ID)
			}
		}
		a.ring.Retain(func(s keyring.Subject) bool { return keep[s] })
		if view != nil && !view.Denials.Empty() {
			a.ring.Discard(func(svid identity.SVID) bool { return view.Denials.DeniesSVID(svid) != "" }, time.Now())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// status answers Local.Status.
func (a *Agent) status() *wire.StatusResponse {
	now := time.Now()
	up := a.upstream.Status()
	out := &wire.StatusResponse{
		NodeId: a.node.ID().String(), TrustDomain: a.node.TrustDomain().String(),
		Connected: up.Connected, LastError: up.LastError, Version: a.cfg.Version,
		ClockSkew: up.Skew.Milliseconds(), Identities: uint32(a.ring.Stats(now).SVIDs),
		Contradicted: a.history.Contradicted(),
	}
	if !up.LastContact.IsZero() {
		out.LastContact = up.LastContact.UnixMilli()
		out.ServerClock = now.Add(up.Skew).UnixMilli()
	}
	if c := a.node.Credentials(); c.HasSVID() {
		out.CredentialNotBefore = c.SVID.Leaf().NotBefore.UnixMilli()
		out.CredentialNotAfter = c.SVID.NotAfter().UnixMilli()
	}
	if view, _ := a.feed.Current(); view != nil {
		out.Position = view.Position.Wire()
		out.Registrations = uint32(len(view.Registrations))
	}
	return out
}

// openDataDir makes or checks the data directory and locks it.
func openDataDir(dir string) (*os.File, error) {
	if err := audit.PrivateDir(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New("another agent uses it")
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return lock, nil
}
