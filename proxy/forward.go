// This file holds forwarding: bytes in both directions, half-close, and
// nothing held while a connection idles.

package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// Plaintext paths start with small copies, which splice makes dearer, and
// let the kernel move the bytes once a direction has shown that it is bulk.
const (
	bulkAfter  = 256 << 10
	bulkStride = 8 << 20
)

// half is one side of a forwarded pair: the raw connection, and the TLS on
// top of it, or nil where the side is plaintext.
type half struct {
	raw *raw
	tls *tls.Conn
	// heard is told once of the first that came from the TLS side: nil for
	// bytes, or the error that came instead. It may be nil.
	heard func(error)
	// ahead was read from the TLS side before, and goes first.
	ahead []byte
}

// closeWrite tells the peer that no more will come, and leaves the other
// direction open.
func (h half) closeWrite() {
	if h.tls != nil {
		h.tls.CloseWrite()
	}
	h.raw.CloseWrite()
}

// pump moves everything that from has to say to to, until its end, and then
// closes that direction. On an error it returns it and leaves closing to the
// caller.
func pump(to, from half) error {
	var err error
	switch {
	case from.tls != nil:
		err = decrypt(to.raw, from)
	case to.tls != nil:
		err = encrypt(to.tls, from.raw)
	default:
		err = relay(to.raw, from.raw)
	}
	if err == nil {
		to.closeWrite()
	}
	return err
}

// decrypt copies from TLS to plaintext. It reads records as long as the
// socket has some, writes them together, and waits without a buffer.
func decrypt(to *raw, from half) error {
	if len(from.ahead) > 0 {
		if _, err := to.Write(from.ahead); err != nil {
			return err
		}
		from.ahead = nil
	}
	from.raw.tryOnly = true
	for {
		b := borrow()
		moved, err := drainTLS(to, from, b)
		giveBack(b)
		if from.heard != nil && (moved || err != nil) {
			if moved {
				from.heard(nil)
			} else {
				from.heard(err)
			}
			from.heard = nil
		}
		if err == nil {
			err = from.raw.wait()
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// drainTLS moves what can be read without waiting, and reports whether that
// was anything. The error is nil when the socket is empty.
func drainTLS(to io.Writer, from half, b *buffer) (moved bool, err error) {
	const record = 16 << 10
	for {
		n := 0
		for err == nil && len(b)-n >= record {
			var m int
			m, err = from.tls.Read(b[n:])
			n += m
		}
		if n > 0 {
			moved = true
			if _, werr := to.Write(b[:n]); werr != nil {
				return moved, werr
			}
			from.raw.moved.Add(uint64(n))
		}
		if err == errAgain {
			return moved, nil
		}
		if err != nil {
			return moved, err
		}
	}
}

// encrypt copies from plaintext to TLS.
func encrypt(to io.Writer, from *raw) error {
	for {
		b, n, err := from.fill()
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				err = werr
			} else {
				from.moved.Add(uint64(n))
			}
		}
		if b != nil {
			giveBack(b)
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// relay copies plaintext to plaintext.
func relay(to, from *raw) error {
	streak := 0
	for {
		b, n, err := from.fill()
		if n > 0 {
			if _, werr := to.TCPConn.Write(b[:n]); werr != nil {
				err = werr
			} else {
				from.moved.Add(uint64(n))
			}
		}
		if b != nil {
			giveBack(b)
		}
		if err != nil {
			return ignoreEOF(err)
		}
		if streak += n; n < bufferSize/4 {
			streak = 0
		}
		if streak < bulkAfter {
			continue
		}
		streak = 0
		moved, err := to.TCPConn.ReadFrom(&io.LimitedReader{R: from.TCPConn, N: bulkStride})
		from.moved.Add(uint64(max(0, moved)))
		if err != nil {
			return err
		}
		if moved < bulkStride {
			return nil
		}
	}
}

// ignoreEOF turns the ordinary end of a direction into nil.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// tcpOf narrows what a listener or dialler returned; both are TCP by
// construction.
func tcpOf(c net.Conn) (*net.TCPConn, error) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, errors.New("connection is not TCP")
	}
	return t, nil
}
