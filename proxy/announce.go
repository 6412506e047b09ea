// This file holds what the proxy announces to the registry of endpoints: the
// addresses and ports on which its workload takes mutual TLS.

package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

// Announce says which addresses the proxy announces its listeners under, so
// that transparent proxies know whom to expect there.
type Announce struct {
	// Off announces nothing.
	Off bool `json:"off"`
	// Within leaves out the namespace's own addresses that are in none of these
	// blocks; empty leaves out none.
	Within []Network `json:"within"`
	// Addresses are announced besides: those by which others reach this
	// namespace through a translation or a load balancer that keeps the port.
	Addresses []netip.Addr `json:"addresses"`
}

func (a Announce) check() error {
	if a.Off && len(a.Within)+len(a.Addresses) > 0 {
		return fmt.Errorf("announce: off announces no address: leave out within and addresses")
	}
	for i, one := range a.Addresses {
		if !directory.Dialable(one) {
			return fmt.Errorf("announce: addresses[%d]: %s is none that others can dial", i, one)
		}
	}
	return nil
}

// announcer is what the proxy has announced.
type announcer struct {
	due  chan struct{} // of size 1: something may have changed
	said atomic.Pointer[[]*wire.Endpoint]
}

func (a *announcer) notify() {
	select {
	case a.due <- struct{}{}:
	default:
	}
}

// announceEndpoints keeps the announcement in force from the opening of the
// listeners to the drain, or the end of ctx.
func (p *Proxy) announceEndpoints(ctx context.Context, client wire.ProxyClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-ctx.Done():
		return
	case <-p.stopping:
		return
	case <-p.started:
	}
	go func() { // ends with ctx
		if err := watchAddresses(ctx, p.announcer.notify); err != nil && ctx.Err() == nil {
			p.log.Warn("changes of addresses are not noticed", "error", err)
		}
	}()
	in := &announcement{}
	defer func() { in.end() }()
	defer p.announcer.said.Store(nil)
	for attempt := 0; ; {
		want := p.endpoints()
		if !in.says(want) {
			next, err := p.openAnnouncement(ctx, client, want)
			if err != nil && status.Code(err) == codes.Unimplemented {
				p.log.Info("the agent keeps no registry of endpoints")
				return
			}
			if err != nil {
				if attempt == 0 && ctx.Err() == nil {
					p.log.Warn("endpoints are not announced", "error", err)
				}
				p.announcer.said.Store(nil)
				in.end()
				in = &announcement{}
				if !p.pauseAnnouncing(ctx, attempt) {
					return
				}
				attempt++
				continue
			}
			in.end()
			in, attempt = next, 0
			p.announcer.said.Store(&in.said)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.stopping:
			return
		case <-p.announcer.due:
		case <-in.over:
		}
	}
}

// pauseAnnouncing waits before the next try, and reports false where there is
// none.
func (p *Proxy) pauseAnnouncing(ctx context.Context, attempt int) bool {
	timer := time.NewTimer(rotation.Backoff(attempt, retryBase, retryLimit))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.stopping:
	case <-ctx.Done():
	}
	return false
}

// announcement is one that the agent took. The zero value announces nothing.
type announcement struct {
	said   []*wire.Endpoint
	over   chan struct{} // closed when it has ended; nil where there is none
	cancel context.CancelFunc
}

// end takes it back.
func (a *announcement) end() {
	if a.over != nil {
		a.cancel()
		<-a.over
	}
}

// says reports whether these endpoints are announced.
func (a *announcement) says(want []*wire.Endpoint) bool {
	if a.over != nil {
		select {
		case <-a.over:
			return false
		default:
		}
	}
	return slices.EqualFunc(a.said, want, func(x, y *wire.Endpoint) bool { return proto.Equal(x, y) })
}

// openAnnouncement announces and waits for the agent to take it.
func (p *Proxy) openAnnouncement(ctx context.Context, client wire.ProxyClient, want []*wire.Endpoint) (*announcement, error) {
	if len(want) == 0 {
		return &announcement{}, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := client.Announce(ctx, &wire.Announcement{Identity: p.wanted(0).String(), Endpoints: want})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	a := &announcement{said: want, over: make(chan struct{}), cancel: cancel}
	go func() { // ends with the stream
		defer close(a.over)
		for err == nil {
			_, err = stream.Recv()
		}
	}()
	return a, nil
}

// endpoints is what there is to announce now.
func (p *Proxy) endpoints() []*wire.Endpoint {
	if p.cfg.Announce.Off {
		return nil
	}
	own, err := ownAddresses()
	if err != nil {
		p.log.Warn("nothing is announced", "error", err)
		return nil
	}
	if within := p.cfg.Announce.Within; len(within) > 0 {
		own = slices.DeleteFunc(own, func(a netip.Addr) bool {
			return !slices.ContainsFunc(within, func(n Network) bool { return n.Contains(a) })
		})
	}
	own = append(own, p.cfg.Announce.Addresses...)
	set := p.state.Load().set
	var out []*wire.Endpoint
	p.mu.Lock()
	ports := slices.Clone(p.ports)
	p.mu.Unlock()
	for _, port := range ports {
		switch {
		case port.direction != audit.DirectionInbound:
		case port.redirected:
			out = append(out, p.cfg.redirectedEndpoints(own, set)...)
		case port.in != nil && port.in.ProxyProtocol != ProxyProtocolRequire: // others come without a header
			out = append(out, listenerEndpoints(port, own, set)...)
		}
	}
	if len(out) > directory.MaxPerProxy {
		p.log.Warn("more endpoints than can be announced; the rest is left out", "endpoints", len(out), "most", directory.MaxPerProxy)
		out = out[:directory.MaxPerProxy]
	}
	return out
}

// listenerEndpoints are those of an explicit listener.
func listenerEndpoints(port port, own []netip.Addr, set *policy.Set) (out []*wire.Endpoint) {
	at := addrOf(port.listener.Addr())
	addresses := []netip.Addr{at.Addr().Unmap()}
	if at.Addr().IsUnspecified() {
		addresses = slices.Clone(own)
		if at.Addr().Is4() {
			addresses = slices.DeleteFunc(addresses, netip.Addr.Is6)
		}
	}
	mode, _ := set.Mode(port.in.Port)
	for _, a := range addresses {
		if directory.Dialable(a) {
			out = append(out, &wire.Endpoint{Address: a.String(), Port: uint32(at.Port()), Mode: mode.String(),
				Protocol: string(port.in.Protocol), Alpn: port.in.ALPN})
		}
	}
	return out
}

// redirectedEndpoints are those of the ports that the kernel redirects.
func (c Config) redirectedEndpoints(own []netip.Addr, set *policy.Set) (out []*wire.Endpoint) {
	in := c.Transparent.Inbound
	for _, a := range own {
		for _, port := range in.Only {
			mode, _ := set.Mode(port)
			e := &wire.Endpoint{Address: a.String(), Port: uint32(port), Mode: mode.String(), Protocol: string(ProtocolAuto)}
			if l, declared := in.declared[port]; declared {
				e.Protocol, e.Alpn = string(l.Protocol), l.ALPN
			}
			if !slices.Contains(in.Exclude.Ports, port) {
				out = append(out, e)
			}
		}
		if len(in.Only) > 0 {
			continue
		}
		whole, ports := set.Modes()
		e := &wire.Endpoint{Address: a.String(), Mode: whole.String(), Protocol: string(ProtocolAuto)}
		for port, mode := range ports {
			if mode != whole {
				if e.PortModes == nil {
					e.PortModes = make(map[uint32]string)
				}
				e.PortModes[uint32(port)] = mode.String()
			}
		}
		for _, port := range c.notRedirected() {
			e.Except = append(e.Except, uint32(port))
		}
		out = append(out, e)
	}
	return out
}

// notRedirected are the inbound ports that the kernel leaves alone.
func (c Config) notRedirected() []uint16 {
	ports := slices.Clone(c.Transparent.Inbound.Exclude.Ports)
	for _, l := range c.Inbound {
		if port, err := portOf("listen", l.Listen); err == nil && port != 0 {
			ports = append(ports, port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}
