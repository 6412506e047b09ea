// This file holds the floors, which are the least that a Go program does to
// terminate mutual TLS in front of an application, or to copy plaintext; and
// the application.

package bench

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
)

var floorBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// serveFloor terminates mutual TLS for ever.
func serveFloor(l net.Listener, config *tls.Config, app string) error {
	return serveEach(l, func(c net.Conn) {
		if near := tls.Server(c, config); near.Handshake() == nil {
			join(near, app, floorCopy)
		}
	})
}

// servePlainFloor forwards plaintext by io.Copy, which splices from the first
// byte.
func servePlainFloor(l net.Listener, app string) error {
	return serveEach(l, func(c net.Conn) {
		join(c.(*net.TCPConn), app, func(dst io.Writer, src io.Reader) { io.Copy(dst, src) })
	})
}

// halfCloser is a connection of which one direction can end.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// join dials the application and copies both ways.
func join(near halfCloser, app string, move func(io.Writer, io.Reader)) {
	c, err := net.Dial("tcp", app)
	if err != nil {
		return
	}
	defer c.Close()
	far := c.(*net.TCPConn)
	var both sync.WaitGroup
	both.Go(func() {
		move(far, near)
		far.CloseWrite()
	})
	move(near, far)
	near.CloseWrite()
	both.Wait()
}

// serveEach serves each connection in a goroutine of its own.
func serveEach(l net.Listener, serve func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

func floorCopy(dst io.Writer, src io.Reader) {
	b := floorBuffers.Get().(*[32 << 10]byte)
	defer floorBuffers.Put(b)
	for {
		n, err := src.Read(b[:])
		if n > 0 {
			if _, err := dst.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// What a client's first byte asks the application for. Any other is the
// first of what it echoes.
const (
	askSink   = 'u'
	askSource = 'd'
)

// serveApp is the application of everything but requests.
func serveApp(l net.Listener) error {
	return serveEach(l, func(c net.Conn) {
		var b [64]byte
		n, err := c.Read(b[:])
		switch {
		case err != nil:
			return
		case b[0] == askSink:
			sink := make([]byte, chunk)
			for err == nil {
				_, err = c.Read(sink)
			}
		case b[0] == askSource:
			source := make([]byte, chunk)
			for err == nil {
				_, err = c.Write(source)
			}
		}
		for err == nil {
			if _, err = c.Write(b[:n]); err == nil {
				n, err = c.Read(b[:])
			}
		}
	})
}
