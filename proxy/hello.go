// This file holds the reader of a client's first bytes: it tells a TLS
// ClientHello (RFC 8446 §4.1.2) from anything else, however it is split over
// records and segments, and takes out what decides where it goes.

package proxy

import (
	"slices"
	"strings"

	"github.com/aval-id/aval/identity/mtls"
)

// maxHello bounds a ClientHello with its record headers. A longer one is
// handed to the TLS handshake as it is, which refuses it.
const maxHello = 32 << 10

// hello is what a ClientHello says before any secret is used. All of it is
// the client's claim.
type hello struct {
	SNI   string
	ALPN  []string
	TLS13 bool // it offers TLS 1.3
}

// forMesh reports whether the client wants the proxy rather than the
// application: it names this workload, offers the mesh's protocol, or names
// nobody.
func (h hello) forMesh(names []string) bool {
	if h.SNI == "" || slices.Contains(h.ALPN, mtls.ALPN) {
		return true
	}
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, h.SNI) })
}

// stage is how far the reader has come.
type stage uint8

const (
	stageMore  stage = iota // more bytes are needed
	stagePlain              // not TLS
	stageHello              // a whole ClientHello
	stageBad                // TLS, but no ClientHello that can be read
)

// opening gathers a client's first bytes. Nothing is consumed: raw holds all
// of them for whoever serves the connection.
type opening struct {
	raw   []byte
	stage stage
	hello hello

	at   int    // where the next record starts in raw
	body []byte // handshake bytes so far, records removed
}

// feed takes more bytes and returns the stage reached. Bytes after a decision
// are kept in raw and not looked at.
func (o *opening) feed(b []byte) stage {
	o.raw = append(o.raw, b...)
	if o.stage == stageMore {
		o.stage = o.advance()
	}
	return o.stage
}

func (o *opening) advance() stage {
	for {
		if o.at > maxHello {
			return stageBad // many small records: their headers count too
		}
		rec := o.raw[o.at:]
		if s := recordStart(rec, o.at == 0); s != stageMore || len(rec) < 5 {
			return s
		}
		n := int(rec[3])<<8 | int(rec[4])
		if len(rec) < 5+n {
			if len(o.raw) > maxHello {
				return stageBad
			}
			return stageMore
		}
		o.body = append(o.body, rec[5:5+n]...)
		o.at += 5 + n
		if len(o.body) < 4 {
			continue
		}
		size := int(o.body[1])<<16 | int(o.body[2])<<8 | int(o.body[3])
		if size > maxHello || o.body[0] != 1 {
			return stageBad
		}
		if len(o.body) < 4+size {
			continue
		}
		h, ok := parseHello(o.body[4 : 4+size])
		if !ok {
			return stageBad
		}
		o.hello, o.body = h, nil
		return stageHello
	}
}

// recordStart judges the first bytes of a handshake record, as many as there
// are. In the first record a mismatch means that this is not TLS.
func recordStart(b []byte, first bool) stage {
	wrong := stageBad
	if first {
		wrong = stagePlain
	}
	// The version's second byte says nothing: RFC 8446 §5.1.
	if len(b) > 0 && b[0] != 22 || len(b) > 1 && b[1] != 3 {
		return wrong
	}
	if len(b) > 4 {
		if n := int(b[3])<<8 | int(b[4]); n == 0 || n > 16<<10 {
			return wrong
		}
	}
	if first && len(b) > 5 && b[5] != 1 {
		return stagePlain
	}
	return stageMore
}

// cursor reads length-prefixed fields and remembers the first failure.
type cursor struct {
	b  []byte
	ok bool
}

func (c *cursor) take(n int) []byte {
	if !c.ok || n > len(c.b) {
		c.ok = false
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) number(width int) int {
	n := 0
	for _, b := range c.take(width) {
		n = n<<8 | int(b)
	}
	return n
}

// vector reads a field prefixed by its length in width bytes.
func (c *cursor) vector(width int) cursor {
	v := c.take(c.number(width))
	return cursor{v, c.ok}
}

// parseHello reads the body of a ClientHello message.
func parseHello(body []byte) (hello, bool) {
	var h hello
	c := cursor{body, true}
	c.take(2 + 32) // legacy_version, random
	c.vector(1)    // legacy_session_id
	c.vector(2)    // cipher_suites
	c.vector(1)    // legacy_compression_methods
	if c.ok && len(c.b) == 0 {
		return h, true // extensions are absent: long before TLS 1.3
	}
	exts := c.vector(2)
	for exts.ok && len(exts.b) > 0 {
		kind := exts.number(2)
		e := exts.vector(2)
		if !exts.ok || !h.extension(kind, &e) {
			return hello{}, false
		}
	}
	return h, c.ok && exts.ok && len(c.b) == 0
}

// extension reads one extension and reports whether it is well formed.
func (h *hello) extension(kind int, e *cursor) bool {
	switch kind {
	case 0: // server_name, RFC 6066 §3
		list := e.vector(2)
		for list.ok && len(list.b) > 0 {
			nameType := list.number(1)
			name := list.vector(2)
			if !list.ok {
				return false
			}
			if nameType == 0 && h.SNI == "" {
				h.SNI = strings.TrimSuffix(string(name.b), ".")
			}
		}
		return list.ok && e.ok
	case 16: // application_layer_protocol_negotiation, RFC 7301 §3.1
		list := e.vector(2)
		for list.ok && len(list.b) > 0 {
			name := list.vector(1)
			if !list.ok {
				return false
			}
			h.ALPN = append(h.ALPN, string(name.b))
		}
		return list.ok && e.ok
	case 43: // supported_versions, RFC 8446 §4.2.1
		list := e.vector(1)
		for list.ok && len(list.b) > 0 {
			if list.number(2) == 0x0304 {
				h.TLS13 = true
			}
		}
		return list.ok && e.ok
	}
	return true
}
