// This file holds the operators' socket: who may use it, and what it answers.

package proxy

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/identity/wire/socket"
	"github.com/aval-id/aval/rotation"
)

const (
	adminMessageBytes = 64 << 10
	connectionsAtOnce = 500 // in one message
	drainProgress     = 100 * time.Millisecond
	adminGrace        = time.Second // for calls in progress at the end
)

// admin answers operators. Every call comes from uid 0 or the proxy's own.
type admin struct {
	wire.UnimplementedProxyAdminServer
	p *Proxy
}

// serveAdmin answers until ctx ends. A nil listener is none.
func (p *Proxy) serveAdmin(ctx context.Context, l net.Listener) {
	if l == nil {
		<-ctx.Done()
		return
	}
	s := grpc.NewServer(grpc.Creds(socket.Transport{Admit: ownersOnly}), grpc.MaxRecvMsgSize(adminMessageBytes), grpc.MaxConcurrentStreams(16),
		grpc.ConnectionTimeout(5*time.Second))
	wire.RegisterProxyAdminServer(s, &admin{p: p})
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() {
		// Who asked for the drain hears that it is done.
		defer close(stopped)
		late := time.AfterFunc(adminGrace, s.Stop)
		defer late.Stop()
		s.GracefulStop()
	})
	if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		p.log.Error("admin socket", "error", err)
		<-ctx.Done()
	}
	<-stopped
}

// ProxyStatus says how the proxy is.
func (a *admin) ProxyStatus(context.Context, *wire.ProxyStatusRequest) (*wire.ProxyStatusResponse, error) {
	p := a.p
	st := p.Status()
	out := &wire.ProxyStatusResponse{
		SpiffeId: st.Identity, Serial: st.Serial, NodeId: st.Node, Generation: st.Generation,
		Connected: st.Connected, Draining: p.draining.Load(), Open: st.Open, MaxConnections: p.mostConnections(),
		Handshakes: int64(p.sources.InProgress()), MaxHandshakes: int64(p.cfg.Limits.MaxHandshakes),
		Memory: p.memory.held.Load(), MaxMemory: p.memory.most,
		RecordsWaiting: p.reporter.waiting(), Pid: int64(os.Getpid()),
	}
	if !st.NotAfter.IsZero() {
		out.NotAfter = st.NotAfter.UnixMilli()
	}
	if withdrawn := p.withdrawn.Load(); withdrawn != nil {
		out.Withdrawn = withdrawn.detail()
	}
	if fault := p.fault.Load(); fault != nil {
		out.Fault = *fault
	}
	if err := p.Ready(); err != nil {
		out.NotReady = err.Error()
	}
	out.Listeners = p.listeners()
	out.Registry, out.Resolved = &wire.ProxyRegistry{Wanted: p.wantsRegistry()}, p.registry.describe()
	if said := p.announcer.said.Load(); said != nil {
		out.Registry.Announced = *said
	}
	if held := p.registry.held.Load(); held != nil {
		out.Registry.Held, out.Registry.Endpoints, out.Registry.Revision = true, uint32(held.set.Len()), held.revision
	}
	return out, nil
}

// listeners describes the open listeners.
func (p *Proxy) listeners() []*wire.ProxyListener {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.state.Load()
	var all []*wire.ProxyListener
	outbound := 0
	for _, port := range p.ports {
		l := &wire.ProxyListener{Name: port.name, Direction: port.direction, Address: port.listener.Addr().String(),
			Target: port.target, PassedOn: port.passed}
		switch {
		case port.in != nil:
			l.Port = uint32(port.in.Port)
			mode, source := st.set.Mode(port.in.Port)
			l.Mode, l.ModeSource = mode.String(), source
		case port.direction == audit.DirectionOutbound && outbound < len(p.cfg.Outbound):
			l.Upstream = p.cfg.Outbound[outbound].ID.String()
			outbound++
		}
		all = append(all, l)
	}
	return all
}

// Connections lists what is open, in no order.
func (a *admin) Connections(req *wire.ConnectionsRequest, stream wire.ProxyAdmin_ConnectionsServer) error {
	switch req.GetDirection() {
	case "", audit.DirectionInbound, audit.DirectionOutbound:
	default:
		return status.Errorf(codes.InvalidArgument, "direction %q is neither inbound nor outbound", req.GetDirection())
	}
	now := time.Now()
	var batch wire.ConnectionsResponse
	for _, l := range a.p.table.snapshot() {
		if d := req.GetDirection(); d != "" && d != l.direction {
			continue
		}
		batch.Connections = append(batch.Connections, l.describe(now))
		if len(batch.Connections) == connectionsAtOnce {
			if err := stream.Send(&batch); err != nil {
				return err
			}
			batch = wire.ConnectionsResponse{}
		}
	}
	return stream.Send(&batch)
}

// describe says what is known of a connection.
func (l *link) describe(now time.Time) *wire.ProxyConnection {
	c := &wire.ProxyConnection{Direction: l.direction, State: "handshake", Source: l.source.String(), Target: l.target,
		Began: l.began.UnixMilli(), Idle: min(l.silence(), now.Sub(l.began)).Milliseconds()}
	if l.opened.Load() != nil {
		c.State, c.Transport = "open", audit.TransportPlaintext
	}
	if peer := l.peer.Load(); peer != nil {
		c.PeerId, c.PeerSerial, c.PeerNotAfter = peer.ID.String(), peer.Serial, peer.NotAfter.UnixMilli()
		c.Transport, c.Sni, c.Alpn = audit.TransportMTLS, brief(peer.sni), peer.alpn
	}
	if a := l.admitted.Load(); a != nil {
		c.Transport, c.Port, c.Sni = a.transport, uint32(a.conn.Port), brief(a.conn.SNI)
		if a.remote != a.source {
			c.Remote = a.remote.String()
		}
	}
	near, _ := l.sides()
	if info, err := near.info(); err == nil {
		c.BytesIn, c.BytesOut = info.Bytes_received, info.Bytes_acked
	}
	return c
}

// Drain makes the proxy accept nothing more, and tells how many connections
// are open until the deadline has passed or none is. The proxy ends then. The
// drain goes on without the caller; another call sets another deadline.
func (a *admin) Drain(req *wire.DrainRequest, stream wire.ProxyAdmin_DrainServer) error {
	p := a.p
	deadline := time.Duration(req.GetDeadline()) * time.Millisecond
	if deadline < 0 || deadline > 24*time.Hour {
		return status.Errorf(codes.InvalidArgument, "deadline %s is not between 0 and 24h", deadline)
	}
	orDefault(&deadline, p.cfg.Limits.Drain)
	p.log.Warn("an operator asks for a drain", "deadline", deadline)
	select {
	case p.drains <- deadline:
	default:
		return status.Error(codes.FailedPrecondition, "another drain is just being begun")
	}
	for {
		open := p.open.Load()
		done := p.draining.Load() && open == 0
		if err := stream.Send(&wire.DrainResponse{Open: open, Done: done}); err != nil || done {
			return err
		}
		if !rotation.Pause(stream.Context(), drainProgress) {
			return stream.Context().Err()
		}
	}
}
