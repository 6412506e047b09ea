// This file holds guard: a second, stricter reader of HTTP/1 that stands in
// front of the first. It follows the framing of every request on a connection
// and lets nothing pass that two readers could divide differently (RFC 9112
// §11.2).

package request

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
)

// maxLine bounds a line, and all trailer fields of a request together. The
// limit of a whole header is the server's.
const maxLine = 1 << 20

// The first bytes of a connection that speaks HTTP/2 without asking (RFC 9113
// §3.4), cut after the first line.
const (
	prefaceLine = "PRI * HTTP/2.0"
	prefaceRest = "\r\nSM\r\n\r\n"
)

// place is where in a request the guard stands.
type place uint8

const (
	atRequestLine place = iota
	atField             // a header field or the empty line
	inBody              // of known length
	atChunkSize
	inChunk
	atChunkEnd
	atTrailer
	inPreface
	beyond // HTTP/2, or what an upgrade may have made of the connection
)

// guard reads along. One goroutine feeds it at a time.
type guard struct {
	place place
	line  []byte // the part of a line that came before
	left  uint64 // bytes of the body or chunk, or of the preface matched
	began bool   // a request has been read
	head  head
	size  int // of the trailer fields
	err   error

	// switching is set once a request asks for an upgrade. What follows it is
	// not followed any more, so that the connection must end with its answer
	// unless it is upgraded.
	switching atomic.Bool
}

// head is what decides the framing of one request.
type head struct {
	http10    bool
	get       bool
	lengths   int
	length    uint64
	encodings int
	hosts     int
	upgrade   bool // to websocket
	connUp    bool // the connection field names upgrade
}

// pass returns how many bytes of b may be read on. After an error, which
// remains, the rest of b must not be.
func (g *guard) pass(b []byte) (int, error) {
	for at := 0; at < len(b); {
		if g.place == beyond {
			return len(b), nil
		}
		n, err := g.step(b[at:])
		if err != nil {
			g.err = err
			return at, err
		}
		at += n
	}
	return len(b), nil
}

// step takes one line, or what belongs to the body, and returns its length.
func (g *guard) step(b []byte) (int, error) {
	switch g.place {
	case inBody, inChunk:
		n := min(g.left, uint64(len(b)))
		if g.left -= n; g.left == 0 {
			if g.place == inBody {
				g.next()
			} else {
				g.place = atChunkEnd
			}
		}
		return int(n), nil
	case inPreface:
		n := min(len(prefaceRest)-int(g.left), len(b))
		if !strings.HasPrefix(prefaceRest[g.left:], string(b[:n])) {
			return 0, errors.New("preface of HTTP/2 is broken")
		}
		if g.left += uint64(n); int(g.left) == len(prefaceRest) {
			g.place = beyond
		}
		return n, nil
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(g.line)+len(b) > maxLine {
			return 0, errors.New("line is too long")
		}
		g.line = append(g.line, b...)
		return len(b), nil
	}
	line := b[:end+1]
	if len(g.line) > 0 {
		g.line = append(g.line, line...)
		line = g.line
	}
	err := g.take(line)
	g.line = g.line[:0]
	return end + 1, err
}

// take reads one whole line with its end.
func (g *guard) take(line []byte) error {
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return errors.New("line ends without CR")
	}
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Errorf("line has the byte %#02x", c)
		}
	}
	switch g.place {
	case atRequestLine:
		return g.requestLine(string(line))
	case atField:
		if len(line) == 0 {
			return g.endHead()
		}
		return g.field(line)
	case atChunkSize:
		return g.chunkSize(line)
	case atChunkEnd:
		if len(line) != 0 {
			return errors.New("chunk is longer than its size")
		}
		g.place = atChunkSize
		return nil
	}
	return g.trailer(line)
}

func (g *guard) next() { g.place, g.began = atRequestLine, true }

// requestLine takes "METHOD SP origin-form SP HTTP/1.x" and nothing that is
// merely like it (RFC 9112 §3).
func (g *guard) requestLine(line string) error {
	if line == prefaceLine && !g.began {
		g.place, g.left = inPreface, 0
		return nil
	}
	method, rest, ok := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || strings.ContainsAny(line, "\t") {
		return errors.New("request line has not three parts")
	}
	if !isMethod(method) {
		return errors.New("method is not one of upper-case letters")
	}
	if target != "*" && !strings.HasPrefix(target, "/") {
		return errors.New("request target is not in origin-form")
	}
	if version != "HTTP/1.1" && version != "HTTP/1.0" {
		return errors.New("version is neither HTTP/1.1 nor HTTP/1.0")
	}
	g.head = head{http10: version == "HTTP/1.0", get: method == "GET"}
	g.place = atField
	return nil
}

// isMethod reports whether every reader takes m for the same method. Those
// that fold case would make one of policies out of another.
func isMethod(m string) bool {
	for i := range len(m) {
		c := m[i]
		if (c < 'A' || c > 'Z') && (i == 0 || c != '-' && c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return m != "" && m != "CONNECT" && m != "PRI"
}

// splitField cuts a field line (RFC 9112 §5). One that continues the line
// before it starts with a blank, which is in no name.
func splitField(line []byte) (name, value string, err error) {
	n, v, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(n) == 0 {
		return "", "", errors.New("header field has no name")
	}
	for _, c := range n {
		if !isToken(c) {
			return "", "", fmt.Errorf("name of a header field has the byte %#02x", c)
		}
	}
	return string(n), string(bytes.Trim(v, " \t")), nil
}

// isToken reports whether c may stand in a token (RFC 9110 §5.6.2).
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c != 0 && strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func (g *guard) field(line []byte) error {
	name, value, err := splitField(line)
	if err != nil {
		return err
	}
	h := &g.head
	switch {
	case strings.EqualFold(name, "content-length"):
		h.lengths++
		if h.length, err = digits(value); err != nil {
			return fmt.Errorf("content-length: %w", err)
		}
	case strings.EqualFold(name, "transfer-encoding"):
		h.encodings++
		if !strings.EqualFold(value, "chunked") {
			return errors.New("transfer-encoding is not chunked alone")
		}
	case strings.EqualFold(name, "host"):
		h.hosts++
	case strings.EqualFold(name, "upgrade"):
		h.upgrade = strings.EqualFold(value, "websocket")
	case strings.EqualFold(name, "connection"):
		h.connUp = h.connUp || hasToken(value, "upgrade")
	}
	return nil
}

// digits reads a length that every reader agrees on.
func digits(s string) (uint64, error) {
	if s == "" || len(s) > 18 {
		return 0, errors.New("length has not 1 to 18 digits")
	}
	var n uint64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, errors.New("length is not of digits")
		}
		n = n*10 + uint64(s[i]-'0')
	}
	return n, nil
}

// endHead decides where the next request begins (RFC 9112 §6.3).
func (g *guard) endHead() error {
	h := &g.head
	switch {
	case h.lengths > 1 || h.encodings > 1 || h.hosts > 1:
		return errors.New("content-length, transfer-encoding or host is there twice")
	case h.encodings > 0 && h.lengths > 0:
		return errors.New("both content-length and transfer-encoding are there")
	case h.encodings > 0 && h.http10:
		return errors.New("transfer-encoding in HTTP/1.0")
	case h.encodings > 0:
		g.place, g.size = atChunkSize, 0
	case h.length > 0:
		g.place, g.left = inBody, h.length
	case h.upgrade && h.connUp && h.get && !h.http10:
		g.switching.Store(true)
		g.place = beyond
	default:
		g.next()
	}
	return nil
}

// chunkSize reads a chunk's size and passes over its extension (RFC 9112
// §7.1).
func (g *guard) chunkSize(line []byte) error {
	size, _, _ := bytes.Cut(line, []byte(";"))
	if len(size) == 0 || len(size) > 15 {
		return errors.New("chunk size has not 1 to 15 digits")
	}
	var n uint64
	for _, c := range size {
		d := strings.IndexByte("0123456789abcdef", lower(c))
		if d < 0 {
			return errors.New("chunk size is not of hexadecimal digits")
		}
		n = n<<4 | uint64(d)
	}
	if g.place, g.left = inChunk, n; n == 0 {
		g.place = atTrailer
	}
	return nil
}

func (g *guard) trailer(line []byte) error {
	if len(line) == 0 {
		g.next()
		return nil
	}
	if g.size += len(line); g.size > maxLine {
		return errors.New("trailer is too long")
	}
	name, _, err := splitField(line)
	if err == nil && framing(name) {
		err = fmt.Errorf("trailer has %s", strings.ToLower(name))
	}
	return err
}

// framing reports whether a field says where messages end or go.
func framing(name string) bool {
	for _, n := range []string{"content-length", "transfer-encoding", "host", "connection", "trailer", "te", "upgrade"} {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// hasToken reports whether a comma-separated list has a token.
func hasToken(list, token string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(t, " \t"), token) {
			return true
		}
	}
	return false
}

// Likeness is whether a connection's first bytes are HTTP.
type Likeness uint8

const (
	Undecided Likeness = iota // more bytes are needed
	Alike                     // a method and a blank
	Unlike
)

// Like tells HTTP/1 and the preface of HTTP/2 from anything else by the first
// bytes of a connection. Applications are known to pass over empty lines, and
// to take methods of other letters than upper-case ones: what might be a
// request to one of them is alike as well, and the guard refuses it.
func Like(b []byte) Likeness {
	const longest = 24
	b = bytes.TrimLeft(b, "\r\n")
	upper := true
	for i, c := range b {
		switch {
		case c == ' ' && i > 0 && upper:
			return Alike
		case c == ' ' && i > 0:
			return likeTarget(b[i+1:])
		case i == longest || !isToken(c):
			return Unlike
		}
		upper = upper && (c >= 'A' && c <= 'Z' || i > 0 && (c == '-' || c == '_'))
	}
	return Undecided
}

// likeTarget tells a request target, in origin-form or absolute-form, from the
// second word of something else.
func likeTarget(b []byte) Likeness {
	const scheme = "http"
	switch n := min(len(b), len(scheme)); {
	case n == 0:
		return Undecided
	case b[0] == '/':
		return Alike
	case !strings.EqualFold(string(b[:n]), scheme[:n]):
		return Unlike
	case n < len(scheme):
		return Undecided
	}
	return Alike
}
