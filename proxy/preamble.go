// This file holds what stands before the first bytes of a connection: the
// PROXY protocol header that a load balancer sends, and the one that is sent
// on.

package proxy

import (
	"errors"
	"net/netip"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/proxy/proxyprotocol"
)

// preamble reads the header where the listener knows headers, and settles for
// whom the connection is: it is counted for that address. It reports false
// where the connection was refused.
func (v *visit) preamble() bool {
	v.remote = v.source
	if v.in.ProxyProtocol == ProxyProtocolOff {
		return true // it was counted when it was accepted
	}
	trusted := v.in.trusts(v.source.Addr())
	if !trusted && v.in.ProxyProtocol == ProxyProtocolRequire {
		return v.spurn("this source may not speak for others, and a header is required")
	}
	until := v.deadline
	patient := v.in.Protocol == ProtocolServerFirst && v.in.ProxyProtocol == ProxyProtocolAccept
	if patient {
		until = time.Now().Add(v.p.cfg.Limits.ServerFirstWait)
	}
	h, got, err := v.l.near.readHeader(until)
	v.l.near.SetReadDeadline(v.deadline)
	switch {
	case err == nil && !trusted:
		return v.spurn("this source may not speak for others")
	case err == nil:
		v.told = true
		if h.Source.IsValid() {
			v.remote = h.Source
		} else {
			return true // the load balancer speaks for itself
		}
	case errors.Is(err, proxyprotocol.ErrAbsent), patient && got == 0 && isTimeout(err):
		if v.in.ProxyProtocol == ProxyProtocolRequire {
			return v.spurn("a header is required")
		}
	case isTimeout(err), isEnd(err):
		return v.refuse(reasonOf(err), "before the PROXY protocol header was complete", v.undecided(), nil)
	default:
		return v.spurn(err.Error())
	}
	if trusted {
		if err := v.l.seat.Charge(v.remote.Addr()); err != nil {
			return v.refuse(audit.ReasonLimit, err.Error(), v.undecided(), nil)
		}
	}
	return true
}

// spurn refuses a connection for its header, or for the lack of one.
func (v *visit) spurn(detail string) bool {
	return v.refuse(audit.ReasonProxyProtocol, brief(detail), v.undecided(), nil)
}

// readHeader reads a PROXY protocol header until a deadline. What it read
// beyond it, or all where there is none, is given back by the next reads. got
// is how many bytes came.
func (r *raw) readHeader(until time.Time) (h proxyprotocol.Header, got int, err error) {
	r.SetReadDeadline(until)
	b := make([]byte, 0, 256)
	for {
		var n int
		h, n, err = proxyprotocol.Parse(b)
		if !errors.Is(err, proxyprotocol.ErrShort) {
			r.prefix = b[n:]
			return h, len(b), err
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)] // Parse asks for no more than MaxBytes
		}
		m, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+m]
		if m == 0 && err != nil {
			r.prefix = b
			return h, len(b), err
		}
	}
}

// announce sends a header in front of everything else that goes to far.
func (p *Proxy) announce(far *raw, v ProxyProtocolVersion, source, destination netip.AddrPort) error {
	header := v.header(source, destination)
	if header == nil {
		return nil
	}
	far.SetWriteDeadline(time.Now().Add(p.cfg.Limits.DialTimeout))
	defer far.SetWriteDeadline(time.Time{})
	_, err := far.TCPConn.Write(header)
	return err
}
