// This file holds the floor: the least that a Go program does to terminate
// mutual TLS in front of an application.

package bench

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"sync"
)

var floorBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// serveFloor accepts for ever.
func serveFloor(l net.Listener, cert tls.Certificate, roots *x509.CertPool, app string) error {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              roots,
		SessionTicketsDisabled: true,
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			near := tls.Server(c, config)
			if near.Handshake() != nil {
				return
			}
			far, err := net.Dial("tcp", app)
			if err != nil {
				return
			}
			defer far.Close()
			var both sync.WaitGroup
			both.Go(func() {
				floorCopy(far, near)
				far.(*net.TCPConn).CloseWrite()
			})
			floorCopy(near, far)
			near.CloseWrite()
			both.Wait()
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
