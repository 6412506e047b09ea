// This file holds Proxy: construction, Run, and what it says of itself.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/wire"
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

	state     atomic.Pointer[state]
	first     chan struct{} // closed with the first state
	started   chan struct{} // closed once every listener is open
	connected atomic.Bool   // a Watch stream has brought something and is open
	ran       atomic.Bool

	open  atomic.Int64 // connections accepted and not finished
	conns sync.WaitGroup
	table table

	requests       map[*Inbound]*httpPort // of listeners that may speak HTTP; does not change
	requestMetrics *request.Metrics

	mu        sync.Mutex
	addresses []string // guarded by mu: of the listeners, inbound before outbound
}

// New checks the config and starts nothing.
func New(cfg Config) (*Proxy, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("proxy config: %w", err)
	}
	socket, err := socketPath(cfg.Agent)
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
		table:    table{links: make(map[*link]struct{})},
	}
	p.metrics = newMetrics(p)
	p.reporter = newReporter(cfg.Limits.MaxRecords, p.log, p.metrics)
	if err := p.newServers(); err != nil {
		return nil, fmt.Errorf("proxy config: %w", err)
	}
	return p, nil
}

// Run serves until ctx ends, and then drains: it accepts nothing more, waits
// for open connections up to Limits.Drain, closes the rest, and returns nil.
// The listeners open once the first complete snapshot is there; until then a
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

	// Snapshots and records go on while connections drain.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var streams sync.WaitGroup
	streams.Go(func() { p.watch(work, client) })
	streams.Go(func() { p.reporter.run(work, client) })
	err = p.serve(ctx)
	stop()
	streams.Wait()
	return err
}

// serve opens the listeners when there is a state, accepts until ctx ends,
// and drains.
func (p *Proxy) serve(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.first:
	}
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
	<-ctx.Done()
	for _, port := range ports {
		port.listener.Close()
	}
	accepting.Wait()
	p.drain(cut)
	return nil
}

// drain waits for open connections up to the deadline and closes the rest.
func (p *Proxy) drain(cut context.CancelFunc) {
	done := make(chan struct{})
	go func() {
		p.conns.Wait()
		close(done)
	}()
	p.log.Info("draining", "open", p.open.Load(), "deadline", p.cfg.Limits.Drain)
	timer := time.NewTimer(p.cfg.Limits.Drain)
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	}
	cut()
	left := p.table.snapshot()
	p.log.Warn("closing connections that outlived the drain", "open", len(left))
	for _, l := range left {
		l.close(false)
	}
	<-done
}

// port is an open listener with what serves its connections.
type port struct {
	listener  *net.TCPListener
	direction string
	limit     int64 // of open connections of all listeners
	serve     func(context.Context, *link) bool
}

// inboundLimit leaves an eighth of the connections to the workload's own
// calls, where it makes any: strangers who hold all they can get do not stop
// those.
func (p *Proxy) inboundLimit() int64 {
	all := int64(p.cfg.Limits.MaxConnections)
	if len(p.cfg.Outbound) == 0 || all == 1 {
		return all
	}
	return all - max(1, all/8)
}

// listen opens every listener, or none.
func (p *Proxy) listen(ctx context.Context) ([]port, error) {
	var ports []port
	var addresses []string
	add := func(address, direction string, limit int64, serve func(context.Context, *link) bool) error {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			for _, open := range ports {
				open.listener.Close()
			}
			return fmt.Errorf("%s listener: %w", direction, err)
		}
		ports = append(ports, port{l.(*net.TCPListener), direction, limit, serve})
		addresses = append(addresses, l.Addr().String())
		p.log.Info("listening", "direction", direction, "address", l.Addr().String())
		return nil
	}
	for i := range p.cfg.Inbound {
		in := &p.cfg.Inbound[i]
		err := add(in.Listen, "inbound", p.inboundLimit(), func(ctx context.Context, l *link) bool { return p.serveInbound(ctx, in, l) })
		if err != nil {
			return nil, err
		}
	}
	for i := range p.cfg.Outbound {
		out := &p.cfg.Outbound[i]
		err := add(out.Listen, "outbound", int64(p.cfg.Limits.MaxConnections), func(ctx context.Context, l *link) bool { return p.serveOutbound(ctx, out, l) })
		if err != nil {
			return nil, err
		}
		if a, ok := ports[len(ports)-1].listener.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			p.log.Warn("outbound listener is open to other machines, which can use this workload's identity", "address", a.String())
		}
	}
	p.mu.Lock()
	p.addresses = addresses
	p.mu.Unlock()
	return ports, nil
}

// Started is closed once every listener is open.
func (p *Proxy) Started() <-chan struct{} { return p.started }

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
	if len(p.addresses) > 0 {
		out.Inbound, out.Outbound = p.addresses[:len(p.cfg.Inbound)], p.addresses[len(p.cfg.Inbound):]
	}
	return out
}
