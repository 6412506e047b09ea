// This file holds raw, the TCP connection under every path: it gives back
// bytes that were read ahead, and waits for more without holding a buffer.

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// bufferSize is the copy buffer: four TLS records, so that several are
// decrypted for one write.
const bufferSize = 64 << 10

type buffer [bufferSize]byte

// buffers lends copy buffers to connections that have something to move. An
// idle connection holds none.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

func borrow() *buffer    { return buffers.Get().(*buffer) }
func giveBack(b *buffer) { buffers.Put(b) }

// errAgain says that the socket has nothing to read now. It is a temporary
// net.Error, which crypto/tls does not remember: the same tls.Conn reads on
// once there is more.
var errAgain net.Error = again{}

type again struct{}

func (again) Error() string   { return "nothing to read yet" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// raw is a TCP connection with read-ahead bytes. One goroutine reads at a
// time and one writes; Close may come from anywhere.
type raw struct {
	*net.TCPConn
	sys syscall.RawConn
	// closing is called when the connection closes, possibly more than once;
	// nil calls nothing.
	closing func()
	prefix  []byte // read ahead, given back first; owned by the reader
	// moved counts the application's bytes that were read here and written to
	// the other side.
	moved atomic.Uint64

	// The rest is the reader's too. tryOnly makes Read return errAgain
	// instead of waiting, and dry says that the last read emptied the socket.
	tryOnly bool
	dry     bool
	woken   bool
	dst     []byte
	n       int
	err     error
	lent    *buffer

	readFn, peekFn, fillFn func(fd uintptr) bool // bound once, so that waiting allocates nothing
}

func newRaw(c *net.TCPConn, prefix []byte) (*raw, error) {
	sys, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &raw{TCPConn: c, sys: sys, prefix: prefix}
	r.readFn, r.peekFn, r.fillFn = r.readOnce, r.peekOnce, r.fillOnce
	return r, nil
}

// Read gives back what was read ahead, then reads from the socket. It waits
// for data unless tryOnly is set.
func (r *raw) Read(b []byte) (int, error) {
	if len(r.prefix) > 0 {
		n := copy(b, r.prefix)
		if r.prefix = r.prefix[n:]; len(r.prefix) == 0 {
			r.prefix = nil
		}
		return n, nil
	}
	if !r.tryOnly {
		return r.TCPConn.Read(b)
	}
	if r.dry {
		return 0, errAgain
	}
	r.dst = b
	if err := r.sys.Read(r.readFn); err != nil {
		r.dst = nil
		return 0, err
	}
	r.dst = nil
	if r.err != nil {
		return 0, r.err
	}
	if r.n == 0 {
		return 0, io.EOF
	}
	r.dry = r.n < len(b)
	return r.n, nil
}

// wait returns once a read has something to say, holding no buffer
// meanwhile.
func (r *raw) wait() error {
	if len(r.prefix) > 0 {
		return nil
	}
	r.woken, r.dry = false, false
	return r.sys.Read(r.peekFn)
}

// fill waits for data without a buffer, and then reads into a borrowed one,
// which the caller gives back where it is not nil.
func (r *raw) fill() (*buffer, int, error) {
	if len(r.prefix) > 0 {
		b := borrow()
		n, err := r.Read(b[:])
		return b, n, err
	}
	err := r.sys.Read(r.fillFn)
	b := r.lent
	r.lent = nil
	switch {
	case err != nil:
		return b, 0, err
	case r.err != nil:
		return b, 0, r.err
	case r.n == 0:
		return b, 0, io.EOF
	}
	return b, r.n, nil
}

func (r *raw) readOnce(fd uintptr) bool {
	if !r.readInto(fd, r.dst) {
		r.err = errAgain
	}
	return true
}

// readInto reads into b and reports false where the socket has nothing.
func (r *raw) readInto(fd uintptr, b []byte) bool {
	for {
		n, err := syscall.Read(int(fd), b)
		switch err {
		case nil:
			r.n, r.err = n, nil
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			r.n, r.err = 0, nil
			return false
		default:
			r.n, r.err = 0, os.NewSyscallError("read", err)
			return true
		}
	}
}

// peekOnce looks before it lets the poller wait: readiness that came before
// this call is not announced again.
func (r *raw) peekOnce(fd uintptr) bool {
	if r.woken {
		return true
	}
	r.woken = true
	var one [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err == syscall.EINTR {
			continue
		}
		return err != syscall.EAGAIN
	}
}

func (r *raw) fillOnce(fd uintptr) bool {
	b := borrow()
	if !r.readInto(fd, b[:]) {
		giveBack(b)
		return false
	}
	r.lent = b
	return true
}

// Close closes the connection.
func (r *raw) Close() error {
	if r.closing != nil {
		r.closing()
	}
	return r.TCPConn.Close()
}

// abort closes the connection so that the peer sees a reset.
func (r *raw) abort() {
	r.SetLinger(0)
	r.Close()
}

// interrupt ends a read that is waiting now; resume lets reads wait again.
func (r *raw) interrupt() { r.SetReadDeadline(time.Unix(1, 0)) }
func (r *raw) resume()    { r.SetReadDeadline(time.Time{}) }

// isReset reports whether the other side cut the connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
