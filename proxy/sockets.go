// This file holds the opening of listeners, by address or from sockets that
// were passed on, and the bound that open files put on connections.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/aval-id/aval/audit"
)

// port is an open listener with what serves its connections.
type port struct {
	listener  *net.TCPListener
	direction string
	name      string
	target    string   // where its connections go
	in        *Inbound // nil where it is no inbound listener of the config
	passed    bool     // it came as a socket
	// redirected says that the kernel sends it connections that were going
	// elsewhere.
	redirected bool
	serve      func(context.Context, *link) bool
}

// listen opens every listener, or none.
func (p *Proxy) listen(ctx context.Context) (ports []port, err error) {
	defer func() {
		if err != nil {
			for _, open := range ports {
				open.listener.Close()
			}
			ports = nil
		}
	}()
	for i := range p.cfg.Inbound {
		in := &p.cfg.Inbound[i]
		port := port{direction: audit.DirectionInbound, name: in.Name, target: in.Forward, in: in,
			serve: func(ctx context.Context, l *link) bool { return p.serveInbound(ctx, in, l) }}
		if err := p.open1(ctx, &port, in.Listen); err != nil {
			return ports, err
		}
		ports = append(ports, port)
	}
	for i := range p.cfg.Outbound {
		out := &p.cfg.Outbound[i]
		port := port{direction: audit.DirectionOutbound, name: out.Name, target: out.Dial,
			serve: func(ctx context.Context, l *link) bool { return p.serveOutbound(ctx, out, l) }}
		if err := p.open1(ctx, &port, out.Listen); err != nil {
			return ports, err
		}
		ports = append(ports, port)
		if a, ok := port.listener.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			p.log.Warn("outbound listener is open to other machines, which can use this workload's identity", "address", a.String())
		}
	}
	for _, r := range p.cfg.Transparent.listeners() {
		port := port{direction: r.direction, redirected: true, serve: p.serveRedirectedIn}
		if r.direction == audit.DirectionOutbound {
			port.serve = p.serveRedirectedOut
		}
		if err := p.open1(ctx, &port, r.address); err != nil {
			if r.optional && lacksFamily(err) {
				continue
			}
			return ports, err
		}
		ports = append(ports, port)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ports = ports
	return ports, nil
}

// open1 opens one listener.
func (p *Proxy) open1(ctx context.Context, port *port, address string) error {
	if i := socketFor(p.cfg.Sockets, port.name, address); i >= 0 {
		port.listener, port.passed = p.cfg.Sockets[i].Listener, true
	} else {
		var lc net.ListenConfig
		if port.redirected {
			lc.SetMultipathTCP(false) // the kernel tells no original destination of an MPTCP connection
		}
		l, err := lc.Listen(ctx, "tcp", address)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("%s listener: another process, perhaps another proxy, listens on %s already: %w", port.direction, address, err)
		case err != nil:
			return fmt.Errorf("%s listener: %w", port.direction, err)
		}
		port.listener = l.(*net.TCPListener)
	}
	p.log.Info("listening", "direction", port.direction, "address", port.listener.Addr().String(), "passed_on", port.passed)
	return nil
}

// socketFor returns the place of the socket that serves a listener, or -1. A
// name counts before an address.
func socketFor(sockets []Socket, name, address string) int {
	at := -1
	for i, s := range sockets {
		if name != "" && s.Name == name {
			return i
		}
		if at < 0 && sameAddress(address, s.Listener.Addr()) {
			at = i
		}
	}
	return at
}

// sameAddress compares what a configuration says with what a socket is bound
// to. All addresses of IPv4 and of IPv6 are one: a socket of IPv6 takes both.
func sameAddress(address string, bound net.Addr) bool {
	host, port, err := net.SplitHostPort(address)
	t, ok := bound.(*net.TCPAddr)
	if err != nil || !ok || port != strconv.Itoa(t.Port) {
		return false
	}
	at := t.AddrPort().Addr().Unmap()
	if host == "localhost" {
		return at.IsLoopback()
	}
	a, err := netip.ParseAddr(host)
	return host == "" && at.IsUnspecified() || err == nil && (a.Unmap() == at || a.IsUnspecified() && at.IsUnspecified())
}

// checkSockets reports a socket that serves none of the listeners, or one
// that others serve too: it would wait for ever.
func (c Config) checkSockets() error {
	used := map[int]bool{}
	take := func(name, listen string) error {
		i := socketFor(c.Sockets, name, listen)
		if i >= 0 && used[i] {
			return fmt.Errorf("socket %q at %s was passed on once, and two listeners want it", c.Sockets[i].Name, c.Sockets[i].Listener.Addr())
		}
		used[i] = true
		return nil
	}
	var errs []error
	for _, l := range c.Inbound {
		errs = append(errs, take(l.Name, l.Listen))
	}
	for _, l := range c.Outbound {
		errs = append(errs, take(l.Name, l.Listen))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i, s := range c.Sockets {
		if !used[i] {
			return fmt.Errorf("socket %q at %s was passed on, and no listener has its name or its address", s.Name, s.Listener.Addr())
		}
	}
	return nil
}

// spareFiles are the descriptors that a proxy needs beside connections: its
// listeners, the agent, the admin socket, logs, pipes of spliced copies.
const spareFiles = 128

// bound lowers the connections to what the limit of open files allows, at two
// for each, so that a connection too many is refused with a record rather
// than left waiting.
func (p *Proxy) bound(ctx context.Context) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return // a sandbox may forbid the question
	}
	most := max(1, (int64(min(files.Cur, 1<<30))-spareFiles)/2)
	if set := int64(p.cfg.Limits.MaxConnections); most < set {
		p.most.Store(most)
		level := slog.LevelWarn
		if set == DefaultMaxConnections {
			level = slog.LevelInfo
		}
		p.log.Log(ctx, level, "fewer connections than set, for the limit of open files", "max_connections", most, "set", set, "open_files", files.Cur)
	}
}

// mostConnections is the bound on open connections that is in force.
func (p *Proxy) mostConnections() int64 {
	if most := p.most.Load(); most > 0 {
		return most
	}
	return int64(p.cfg.Limits.MaxConnections)
}

// limitOf is how many connections of all listeners may be open for one more of
// a direction. Inbound ones leave an eighth to the workload's own calls, where
// it makes any: strangers who hold all they can get do not stop those.
func (p *Proxy) limitOf(direction string) int64 {
	all := p.mostConnections()
	if direction != audit.DirectionInbound || !p.cfg.calls() || all == 1 {
		return all
	}
	return all - max(1, all/8)
}
