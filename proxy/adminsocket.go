// This file holds the admin socket and who may use it.

package proxy

import (
	"fmt"
	"net"

	"github.com/aval-id/aval/identity/wire/socket"
	"google.golang.org/grpc/credentials"
)

// listenAdmin makes the socket for its owner alone, or returns nil where none
// is set.
func (p *Proxy) listenAdmin() (net.Listener, error) {
	if p.cfg.Admin == "" {
		return nil, nil
	}
	l, err := socket.Listen(p.cfg.Admin, socket.File{})
	if err != nil {
		return nil, fmt.Errorf("admin %w", err)
	}
	return l, nil
}

// ownersOnly admits root and the proxy's own user. The socket's mode says the
// same; a descriptor that was handed on does not.
func ownersOnly(c *net.UnixConn, who socket.Peer) (net.Conn, credentials.AuthInfo, error) {
	if !who.Owner() {
		return nil, nil, fmt.Errorf("admin socket: uid %d may not use it", who.UID)
	}
	return c, who, nil
}
