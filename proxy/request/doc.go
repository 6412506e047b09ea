// Package request serves the connections of an inbound listener request by
// request: it refuses what two parsers could read differently, brings path
// and host into their canonical form, asks the policies about each request,
// says to the application who the peer is, and forwards in both directions as
// the bytes come.
//
// It owns HTTP/1.1 and HTTP/2 between a client whose identity is settled and
// the application. What a request may do is decided in identity/policy; the
// connection under it, its handshake and its record are the proxy's. It
// stands on the second floor, inside the proxy.
package request
