// Package proxyprotocol reads and writes the PROXY protocol, versions 1 and
// 2, by which a load balancer says at the start of a TCP connection for whom
// it opened it (haproxy.org, proxy-protocol.txt).
//
// It owns the bytes of a header and nothing else: who may send one, and what
// its addresses are good for, is the business of package proxy, whose room on
// the second floor it stands in.
package proxyprotocol
