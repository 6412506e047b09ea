// This file holds the way of connections that are judged request by request:
// when that is so, how they are handed over, and what is recorded of it.

package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/mtls"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/proxy/request"
)

// The protocols of an inbound listener whose application speaks HTTP. Each of
// them takes HTTP/1.1 and HTTP/2; they differ in what the application gets
// where Inbound.ForwardProtocol does not say.
const (
	ProtocolHTTP  Protocol = "http"  // HTTP/1.1, calls of gRPC as HTTP/2
	ProtocolHTTP2 Protocol = "http2" // HTTP/2 without TLS
	ProtocolGRPC  Protocol = "grpc"  // the same
)

// The values of Inbound.ForwardProtocol.
const (
	ForwardHTTP1 = "http1"
	ForwardH2C   = "h2c" // HTTP/2 without TLS (RFC 9113 §3.3)
)

// speaksHTTP reports whether the protocol is declared to be HTTP.
func (p Protocol) speaksHTTP() bool {
	return p == ProtocolHTTP || p == ProtocolHTTP2 || p == ProtocolGRPC
}

// withRequests sets what HTTP implies.
func (l Inbound) withRequests() (Inbound, error) {
	switch l.ForwardProtocol {
	case "":
		if l.Protocol == ProtocolHTTP2 || l.Protocol == ProtocolGRPC {
			l.ForwardProtocol = ForwardH2C
		}
	case ForwardHTTP1, ForwardH2C:
		if !l.Protocol.speaksHTTP() && l.Protocol != ProtocolAuto {
			return Inbound{}, fmt.Errorf("forwardProtocol: has no meaning with protocol %s", l.Protocol)
		}
	default:
		return Inbound{}, fmt.Errorf("forwardProtocol: %q is neither %s nor %s", l.ForwardProtocol, ForwardHTTP1, ForwardH2C)
	}
	if l.Protocol.speaksHTTP() && len(l.ALPN) == 0 {
		l.ALPN = []string{"h2", "http/1.1"}
	}
	return l, nil
}

// httpPort is what an inbound listener that may speak HTTP has besides.
type httpPort struct {
	server *request.Server
	// warned is the set of policies that connections other than HTTP were
	// complained of under; once is enough.
	warned atomic.Pointer[policy.Set]
}

// newServers makes the server of each inbound listener that may need one.
func (p *Proxy) newServers() error {
	p.requests = make(map[*Inbound]*httpPort)
	p.requestMetrics = request.NewMetrics()
	var access *slog.Logger
	if p.cfg.AccessLog {
		to := p.cfg.AccessWriter
		if to == nil {
			to = os.Stdout
		}
		access = slog.New(slog.NewJSONHandler(to, nil))
	}
	for i := range p.cfg.Inbound {
		in := &p.cfg.Inbound[i]
		if !in.Protocol.speaksHTTP() && in.Protocol != ProtocolAuto {
			continue
		}
		s, err := request.New(request.Config{House: house{p},
			Dial:   func(ctx context.Context) (net.Conn, error) { return p.dial(ctx, in.Forward) },
			H2C:    in.ForwardProtocol == ForwardH2C,
			Limits: p.cfg.Limits.Requests, Metrics: p.requestMetrics, Access: access, Logger: p.log})
		if err != nil {
			return fmt.Errorf("inbound[%d]: %w", i, err)
		}
		p.requests[in] = &httpPort{server: s}
	}
	return nil
}

// serveRequests runs the servers until ctx ends and their connections have.
func (p *Proxy) serveRequests(ctx context.Context) {
	var all sync.WaitGroup
	for in, port := range p.requests {
		all.Go(func() {
			if err := port.server.Run(ctx); err != nil {
				p.log.Error("requests are no longer served", "forward", in.Forward, "error", err)
			}
		})
	}
	all.Wait()
}

// house is what the servers of requests see of the proxy.
type house struct{ p *Proxy }

func (h house) Set() *policy.Set { return h.p.state.Load().set }

// Refused records the request. Alike ones are counted in one record.
func (h house) Refused(r request.Refusal) {
	reason := r.Decision.Reason
	if r.Late {
		reason = audit.ReasonPolicyChanged
	}
	e := h.p.event(time.Now(), audit.DirectionInbound, audit.VerdictDenied, reason)
	c := r.Peer.Connection
	e.ClientID, e.ClientSerial, e.ServerID = c.Peer.String(), r.Peer.Serial, r.Peer.Server
	e.Transport = audit.TransportPlaintext
	if !c.Peer.IsZero() {
		e.Transport = audit.TransportMTLS
	}
	e.Source, e.Port, e.SNI = c.Source.String(), c.Port, brief(c.SNI)
	e.Detail = "request " + r.Method + " " + r.Host + r.Path
	if r.Token != nil {
		e.Detail = r.Token.Error() + ": " + e.Detail
	}
	e.Detail = brief(e.Detail)
	decided(e, r.Decision)
	h.p.reporter.add(e, c.Source)
}

// byRequest reports whether the connection's requests are judged one by one,
// if it is HTTP.
func (v *visit) byRequest() bool {
	return v.p.requests[v.in] != nil && v.mightBeHTTP()
}

// mightBeHTTP reports whether the port is declared to be HTTP, or policies ask
// for what only HTTP has. Redirected ports have no server of requests: their
// connections are judged as a whole.
func (v *visit) mightBeHTTP() bool {
	return v.in.Protocol.speaksHTTP() || v.in.Protocol == ProtocolAuto && v.st.set.NeedsHTTP(v.in.Port)
}

// entrance judges a connection whose requests will be judged: as a whole
// where the policies ask for nothing else, and otherwise by the mode alone.
func entrance(set *policy.Set, c policy.Connection) policy.Decision {
	d := set.Decide(c)
	if d.Allowed || !set.AsksRequests(c.Port) || d.Reason == policy.ReasonPlaintextRefused {
		return d
	}
	d.Allowed, d.Policy, d.Rule, d.Reason = true, "", -1, policy.ReasonAllowed
	if c.Peer.IsZero() {
		d.Reason = policy.ReasonPlaintextAllowed
	}
	return d
}

// judge is the verdict on an open connection by a newer set of policies.
func (a *admission) judge(st *state) policy.Decision {
	if a.byRequest {
		return entrance(st.set, a.conn)
	}
	d, _ := st.decide(a.conn, time.Now())
	return d
}

// judge is the verdict of the handshake, where nothing has been said yet.
func (v *visit) judge(peer identity.ID, sni string) policy.Decision {
	if v.byRequest() {
		return entrance(v.st.set, v.connection(peer, sni))
	}
	return v.st.set.Decide(v.connection(peer, sni))
}

// plainRequests serves a plaintext connection by request. It reports done
// false where the connection is not HTTP and is to be judged as a whole.
func (v *visit) plainRequests() (forwarded, done bool) {
	if !v.in.Protocol.speaksHTTP() {
		var chunk [2048]byte
		v.l.near.SetReadDeadline(v.deadline)
		for request.Like(v.opening.raw) == request.Undecided {
			n, err := v.l.near.TCPConn.Read(chunk[:])
			v.opening.raw = append(v.opening.raw, chunk[:n]...)
			if err != nil {
				break
			}
		}
		v.l.near.prefix = v.opening.raw
		if request.Like(v.opening.raw) != request.Alike {
			v.warnNotHTTP()
			return false, false
		}
	}
	conn := v.connection(identity.ID{}, "")
	d := entrance(v.st.set, conn)
	if !d.Allowed {
		return v.refuse(d.Reason, "", d, nil), true
	}
	return v.handOver(admission{conn: conn}, d, nil, nil), true
}

// secureRequests serves a connection after its handshake.
func (v *visit) secureRequests(ctx context.Context, a admission, d policy.Decision, conn *tls.Conn) bool {
	var ahead []byte
	alpn := conn.ConnectionState().NegotiatedProtocol
	if !v.in.Protocol.speaksHTTP() && alpn != "h2" && alpn != "http/1.1" {
		var chunk [2048]byte
		for request.Like(ahead) == request.Undecided {
			n, err := conn.Read(chunk[:])
			ahead = append(ahead, chunk[:n]...)
			if err != nil {
				break
			}
		}
		if request.Like(ahead) != request.Alike {
			return v.secureStream(ctx, a, conn, ahead)
		}
	}
	return v.handOver(a, d, conn, ahead)
}

// secureStream judges and forwards what turned out not to be HTTP.
func (v *visit) secureStream(ctx context.Context, a admission, conn *tls.Conn, ahead []byte) bool {
	v.warnNotHTTP()
	d := v.st.set.Decide(a.conn)
	if !d.Allowed {
		peer := mtls.Peer{ID: a.conn.Peer, Serial: a.clientSerial}
		v.p.record(v.established(audit.VerdictDenied, d.Reason, d, peer, conn), v.source)
		v.l.close(true)
		return false
	}
	return v.admit(ctx, a, d, half{raw: v.l.near, tls: conn, ahead: ahead}, nil)
}

// warnNotHTTP says where policies ask for what the connection does not have.
func (v *visit) warnNotHTTP() {
	if port := v.p.requests[v.in]; port != nil && port.warned.Swap(v.st.set) != v.st.set {
		warnFields(v.p.log, v.st.set, v.in)
	}
}

// warnDropped says it of the ports that cannot be HTTP, when policies change.
func (p *Proxy) warnDropped(set *policy.Set) {
	for i := range p.cfg.Inbound {
		if in := &p.cfg.Inbound[i]; !in.Protocol.speaksHTTP() && in.Protocol != ProtocolAuto {
			warnFields(p.log, set, in)
		}
	}
}

func warnFields(log *slog.Logger, set *policy.Set, in *Inbound) {
	if fields := set.RequestFields(in.Port); len(fields) > 0 {
		log.Warn("not HTTP, and policies ask for HTTP: ALLOW rules with these fields match nothing, DENY and AUDIT rules are read without them, and jwtRules look at no token",
			"port", in.Port, "protocol", string(in.Protocol), "fields", fields)
	}
}

// handOver makes sure that the newest policies agree, records, and gives the
// connection to the server of requests.
func (v *visit) handOver(a admission, d policy.Decision, conn *tls.Conn, ahead []byte) bool {
	a.byRequest = true
	a.source, a.destination, a.remote, a.transport = v.source, v.destination, v.remote, v.transport
	v.l.admitted.Store(&a)
	if now := v.p.state.Load(); now.set != v.st.set {
		if d = entrance(now.set, a.conn); !d.Allowed {
			v.l.admitted.Store(nil)
			return v.refuse(d.Reason, "policies changed during the handshake", d, nil)
		}
	}
	v.p.recordBeginning(v.l, v.established(audit.VerdictAllowed, d.Reason, d, mtls.Peer{ID: a.conn.Peer, Serial: a.clientSerial}, conn), v.source)
	v.l.near.SetDeadline(time.Time{})
	peer := request.Peer{Connection: a.conn, Serial: a.clientSerial, Server: v.st.id().String()}
	var nc net.Conn = v.l.near
	if conn != nil {
		nc = conn
		if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 {
			sum := sha256.Sum256(certs[0].Raw)
			peer.Hash = hex.EncodeToString(sum[:])
		}
	}
	if len(ahead) > 0 {
		nc = &rewound{Conn: nc, ahead: ahead}
	}
	l := v.l
	v.p.requests[v.in].server.Serve(nc, peer, func() { v.p.finish(l) })
	return true
}

// rewound gives back what was read ahead of a TLS connection.
type rewound struct {
	net.Conn
	ahead []byte
}

func (r *rewound) Read(b []byte) (int, error) {
	if len(r.ahead) > 0 {
		n := copy(b, r.ahead)
		r.ahead = r.ahead[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// CloseWrite tells the peer that no more will come.
func (r *rewound) CloseWrite() error {
	if w, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
