// This file holds Proxy: construction, Run, and what it says of itself.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/identity/wire/sources"
	"github.com/aval-id/aval/proxy/request"
)

// Proxy serves the listeners of one workload.
type Proxy struct {
	cfg      Config
	log      *slog.Logger
	socket   string
	verifier *mtls.Verifier
	metrics  *metrics
	reporter *reporter
	callers  *callers
	sources  *sources.Sources
	memory   *memory

	state     atomic.Pointer[state]
	first     chan struct{} // closed with the first state
	started   chan struct{} // closed once every listener is open
	connected atomic.Bool   // a Watch stream has brought something and is open
	ran       atomic.Bool
	withdrawn atomic.Pointer[withdrawal] // nil while the agent grants the identity
	fault     atomic.Pointer[string]     // why the newest snapshot was refused; nil where it was taken
	most      atomic.Int64               // connections that the open files allow; 0 where they allow what is set
	draining  atomic.Bool
	stopping  chan struct{}      // closed when draining is set
	drains    chan time.Duration // of size 1: an operator asks for a drain

	open  atomic.Int64 // connections accepted and not finished
	conns sync.WaitGroup
	table table

	requests       *request.Server // of every inbound port
	requestMetrics *request.Metrics
	complaints     complaints

	dialled      dialled       // own connections, where Transparent is set
	destinations *destinations // known identities of transparent outbound
	registry     registry
	announcer    announcer

	mu    sync.Mutex
	ports []port // guarded by mu: the open listeners, inbound before outbound before transparent
}

// New checks the config and starts nothing.
func New(cfg Config) (*Proxy, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("proxy config: %w", err)
	}
	socket, err := socketPath("agent", cfg.Agent)
	if err != nil {
		return nil, fmt.Errorf("proxy config: %w", err)
	}
	p := &Proxy{
		cfg:      cfg,
		log:      cfg.Logger,
		socket:   socket,
		verifier: mtls.NewVerifier(0),
		first:    make(chan struct{}),
		started:  make(chan struct{}),
		sources:  newSources(cfg.Limits),
		memory:   newMemory(cfg.Limits),
		stopping: make(chan struct{}),
		drains:   make(chan time.Duration, 1),
		table:    table{links: make(map[*link]struct{})},
	}
	if err := cfg.checkSockets(); err != nil {
		return nil, fmt.Errorf("proxy config: %w", err)
	}
	if t := cfg.Transparent; t != nil {
		if err := t.checkOwner(); err != nil {
			return nil, fmt.Errorf("proxy config: transparent: %w", err)
		}
		if t.Outbound != nil {
			if p.destinations, err = newDestinations(t.Outbound.Destinations); err != nil {
				return nil, fmt.Errorf("proxy config: transparent: %w", err)
			}
		}
		p.dialled.from = make(map[netip.AddrPort]struct{})
	}
	p.registry.first, p.registry.resolved = make(chan struct{}), make(map[netip.AddrPort]*resolution)
	p.announcer.due = make(chan struct{}, 1)
	p.metrics = newMetrics(p)
	p.reporter = newReporter(cfg.Limits.MaxRecords, cfg.Records.Every, p.log, p.metrics)
	p.callers = newCallers(p.reporter.add)
	if err := p.newServer(); err != nil {
		return nil, fmt.Errorf("proxy config: %w", err)
	}
	return p, nil
}

// ErrDrained is what Run returns after an operator asked for a drain on the
// admin socket: the work is done, and nothing is wrong.
var ErrDrained = errors.New("drained")

// Run serves until ctx ends, and then drains: it accepts nothing more, waits
// for open connections up to Limits.Drain, closes the rest, and returns nil,
// or ErrDrained where an operator asked for it. The listeners open once the first complete snapshot is there; until then a
// client finds the port closed. An error is final. Run works once.
func (p *Proxy) Run(ctx context.Context) error {
	if p.ran.Swap(true) {
		return errors.New("proxy: Run was called before")
	}
	conn, err := dialAgent(p.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := wire.NewProxyClient(conn)
	admin, err := p.listenAdmin()
	if err != nil {
		return err
	}

	// Snapshots and records go on while connections drain.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var streams sync.WaitGroup
	streams.Go(func() { p.watch(work, client) })
	streams.Go(func() { p.reporter.run(work, client) })
	streams.Go(func() { p.announceEndpoints(work, client) })
	streams.Go(func() { p.followRegistry(work, client) })
	streams.Go(func() { p.endExemptions(work) })
	streams.Go(func() { p.sweep(work) })
	streams.Go(func() { p.serveAdmin(work, admin) })
	searching, found := context.WithCancel(work)
	p.callers.ask = func(ctx context.Context, req *wire.HolderRequest) (*wire.HolderResponse, error) {
		return client.Holder(ctx, req)
	}
	var search sync.WaitGroup
	search.Go(func() { p.callers.run(searching) })
	err = p.serve(ctx)
	found()
	search.Wait() // the last records are the reporter's
	stop()
	streams.Wait()
	return err
}

// serve opens the listeners when there is a state, accepts until ctx ends,
// and drains.
func (p *Proxy) serve(ctx context.Context) error {
	stop := ctx
	ctx, end := context.WithCancel(ctx)
	defer end()
	select {
	case <-ctx.Done():
		return nil
	case <-p.drains:
		p.stopAccepting()
		return ErrDrained
	case <-p.first:
	}
	p.bound(ctx)
	ports, err := p.listen(ctx)
	if err != nil {
		return err
	}
	close(p.started)
	// Handshakes and dials on their way may end while the proxy drains.
	lasting, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var accepting, requests sync.WaitGroup
	requests.Go(func() { p.serveRequests(ctx) })
	defer requests.Wait()
	for _, port := range ports {
		accepting.Go(func() { p.accept(ctx, lasting, port) })
	}
	deadline, ended := p.cfg.Limits.Drain, error(nil)
	select {
	case <-ctx.Done():
	case deadline = <-p.drains:
		ended = ErrDrained
	}
	p.stopAccepting()
	end()
	for _, port := range ports {
		port.listener.Close()
	}
	accepting.Wait()
	p.drain(stop, cut, deadline)
	return ended
}

// stopAccepting tells everybody that the end has begun.
func (p *Proxy) stopAccepting() {
	p.draining.Store(true)
	close(p.stopping)
}

// drain waits for open connections up to the deadline and closes the rest. An
// operator may set another deadline meanwhile, and the end of ctx brings it as
// near as Limits.Drain.
func (p *Proxy) drain(ctx context.Context, cut context.CancelFunc, deadline time.Duration) {
	done := make(chan struct{})
	go func() {
		p.conns.Wait()
		close(done)
	}()
	p.log.Info("draining", "open", p.open.Load(), "deadline", deadline)
	timer := time.NewTimer(deadline)
	defer timer.Stop()
	stopped := ctx.Done()
	for late := false; !late; {
		select {
		case <-done:
			return
		case <-timer.C:
			late = true
		case deadline = <-p.drains:
			timer.Reset(deadline)
		case <-stopped:
			stopped = nil
			timer.Reset(min(deadline, p.cfg.Limits.Drain))
		}
	}
	cut()
	left := p.table.snapshot()
	p.log.Warn("closing connections that outlived the drain", "open", len(left))
	for _, l := range left {
		l.because(audit.ReasonShuttingDown)
		l.close(false)
	}
	<-done
}

// Started is closed once every listener is open.
func (p *Proxy) Started() <-chan struct{} { return p.started }

// Draining is closed once nothing more is accepted because the proxy ends.
func (p *Proxy) Draining() <-chan struct{} { return p.stopping }

// MemoryLimit is Limits.MaxMemoryMiB in bytes. A process that is a proxy and
// nothing else gives it to the garbage collector, which then works harder
// before connections are refused.
func (p *Proxy) MemoryLimit() int64 { return int64(p.memory.most) }

// Ready returns nil while the proxy serves: its listeners are open and its
// SVID has not ended.
func (p *Proxy) Ready() error {
	s := p.state.Load()
	select {
	case <-p.started:
	default:
		if s == nil {
			return fmt.Errorf("no complete snapshot from the agent at %s yet", p.socket)
		}
		return errors.New("listeners are not open")
	}
	if p.draining.Load() {
		return errors.New("draining")
	}
	if withdrawn := p.withdrawn.Load(); withdrawn != nil {
		return errors.New(withdrawn.detail())
	}
	if s.expired(time.Now()) {
		return fmt.Errorf("SVID of %s ended at %s", s.id(), s.end().Format(time.RFC3339))
	}
	return nil
}

// Status is what a proxy says of itself.
type Status struct {
	Identity   string    `json:"identity"`
	Serial     string    `json:"serial"`
	NotAfter   time.Time `json:"not_after,omitzero"`
	Node       string    `json:"node"`
	Generation uint64    `json:"generation"` // of the policy set in force
	Connected  bool      `json:"connected"`  // to the agent
	Open       int64     `json:"open"`       // connections
	Inbound    []string  `json:"inbound"`    // addresses listened on, in the config's order
	Outbound   []string  `json:"outbound"`

	Transparent []string `json:"transparent,omitempty"` // addresses that redirected connections come to
}

// Status returns the proxy's state of the moment.
func (p *Proxy) Status() Status {
	out := Status{Connected: p.connected.Load(), Open: p.open.Load()}
	if s := p.state.Load(); s != nil {
		out.Identity, out.Serial, out.NotAfter = s.id().String(), s.serial(), s.end()
		out.Node, out.Generation = s.node, s.set.Generation()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, port := range p.ports {
		switch address := port.listener.Addr().String(); {
		case port.redirected:
			out.Transparent = append(out.Transparent, address)
		case port.direction == audit.DirectionInbound:
			out.Inbound = append(out.Inbound, address)
		default:
			out.Outbound = append(out.Outbound, address)
		}
	}
	return out
}
