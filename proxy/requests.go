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
	"io"
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
	if l.Protocol.speaksHTTP() && l.SendProxyProtocol != "" {
		return Inbound{}, fmt.Errorf("sendProxyProtocol: has no meaning with protocol %s, where requests of several clients share a connection to the application", l.Protocol)
	}
	if l.Protocol.speaksHTTP() && len(l.ALPN) == 0 {
		l.ALPN = []string{"h2", "http/1.1"}
	}
	return l, nil
}

// complaints are the ports whose connections other than HTTP were complained
// of, so that each is once under one set of policies.
type complaints struct {
	mu    sync.Mutex
	under *policy.Set     // guarded by mu
	ports map[uint16]bool // guarded by mu
}

// maxComplaints bounds the ports, which a client of a transparent proxy picks.
const maxComplaints = 64

// first reports whether the port has not been complained of under the set.
func (c *complaints) first(port uint16, under *policy.Set) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.under != under {
		c.under, c.ports = under, make(map[uint16]bool)
	}
	if c.ports[port] || len(c.ports) >= maxComplaints {
		return false
	}
	c.ports[port] = true
	return true
}

// newServer makes the server of requests, which serves every inbound port.
func (p *Proxy) newServer() (err error) {
	p.requestMetrics = request.NewMetrics()
	var access *slog.Logger
	if p.cfg.AccessLog {
		to := p.cfg.AccessWriter
		if to == nil {
			to = os.Stdout
		}
		access = slog.New(slog.NewJSONHandler(to, nil))
	}
	p.requests, err = request.New(request.Config{House: house{p},
		Dial:   func(ctx context.Context, address string) (net.Conn, error) { return p.dial(ctx, address) },
		Limits: p.cfg.Limits.Requests, Metrics: p.requestMetrics, Access: access, Logger: p.log})
	return err
}

// serveRequests runs the server until ctx ends and its connections have.
func (p *Proxy) serveRequests(ctx context.Context) {
	if err := p.requests.Run(ctx); err != nil {
		p.log.Error("requests are no longer served", "error", err)
	}
}

// house is what the servers of requests see of the proxy.
type house struct{ p *Proxy }

func (h house) Set() *policy.Set { return h.p.state.Load().set }

// byRequest reports whether the connection's requests are judged one by one,
// if it is HTTP: where the port is declared to be HTTP, or policies ask for what
// only HTTP has.
func (v *visit) byRequest() bool {
	return v.in.Protocol.speaksHTTP() || v.in.Protocol == ProtocolAuto && v.st.set.NeedsHTTP(v.in.Port)
}

// entrance judges a connection whose requests will be judged: as a whole
// where the policies ask for nothing else, and otherwise by the mode alone.
func entrance(set *policy.Set, c policy.Connection) policy.Decision { return set.Entrance(c) }

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

// undecidedHTTP is said of a client that waits with its first bytes. Passed on
// as it is, the connection could still become HTTP that nobody judges.
const undecidedHTTP = "before the first bytes told whether it is HTTP"

// readOn reads until what came tells whether it is HTTP. At the end of the
// connection, which is no error, nothing more can come.
func readOn(c net.Conn, b []byte) ([]byte, error) {
	var chunk [2048]byte
	for request.Like(b) == request.Undecided {
		n, err := c.Read(chunk[:])
		b = append(b, chunk[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && request.Like(b) == request.Undecided {
			return b, err
		}
	}
	return b, nil
}

// plainRequests serves a plaintext connection by request. It reports done
// false where the connection is not HTTP and is to be judged as a whole.
func (v *visit) plainRequests() (forwarded, done bool) {
	if !v.in.Protocol.speaksHTTP() {
		v.l.near.SetReadDeadline(v.deadline)
		var err error
		v.opening.raw, err = readOn(v.l.near.TCPConn, v.opening.raw)
		if isTimeout(err) {
			return v.refuse(audit.ReasonHandshakeTimeout, undecidedHTTP, v.undecided(), nil), true
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
		var err error
		if ahead, err = readOn(conn, nil); isTimeout(err) {
			e := v.established(audit.VerdictDenied, audit.ReasonHandshakeTimeout, v.undecided(), mtls.Peer{ID: a.conn.Peer, Serial: a.clientSerial}, conn)
			e.Detail = undecidedHTTP
			v.p.record(e, v.source)
			v.l.close(true)
			return false
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
	if v.p.complaints.first(v.in.Port, v.st.set) {
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
	e := v.established(audit.VerdictAllowed, d.Reason, d, mtls.Peer{ID: a.conn.Peer, Serial: a.clientSerial}, conn)
	e.ByRequest = true
	v.p.recordBeginning(v.l, e, v.source)
	v.l.near.SetDeadline(time.Time{})
	peer := request.Peer{Connection: a.conn, ID: a.conn.Peer.String(), Serial: a.clientSerial, Server: v.st.id().String(),
		Forward: v.in.Forward, H2C: v.in.ForwardProtocol == ForwardH2C}
	var nc net.Conn = v.l.near
	if conn != nil {
		nc = conn
		if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 {
			sum := sha256.Sum256(certs[0].Raw)
			peer.Hash = hex.EncodeToString(sum[:])
		}
	}
	l, now := v.l, time.Now()
	l.opened.Store(&now)
	nc = &rewound{Conn: nc, ahead: ahead, in: &l.near.moved, out: &l.served}
	v.p.requests.Serve(nc, peer, func() { v.p.finish(l) })
	return true
}

// rewound gives back what was read ahead of a connection, and counts what
// passes.
type rewound struct {
	net.Conn
	ahead   []byte
	in, out *atomic.Uint64
}

func (r *rewound) Read(b []byte) (n int, err error) {
	if len(r.ahead) > 0 {
		n = copy(b, r.ahead)
		r.ahead = r.ahead[n:]
	} else {
		n, err = r.Conn.Read(b)
	}
	r.in.Add(uint64(n))
	return n, err
}

func (r *rewound) Write(b []byte) (int, error) {
	n, err := r.Conn.Write(b)
	r.out.Add(uint64(n))
	return n, err
}

// CloseWrite tells the peer that no more will come.
func (r *rewound) CloseWrite() error {
	if w, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
