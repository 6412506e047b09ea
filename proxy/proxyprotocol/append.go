// This file holds the writer of headers.

package proxyprotocol

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Append appends the header, in the version it names, to b. Addresses of two
// families are both written as IPv6. A header without addresses says that
// they are not known. A version other than 1 and 2 appends nothing.
func (h Header) Append(b []byte) []byte {
	source, destination := h.Source, h.Destination
	known := source.IsValid() && destination.IsValid()
	is4 := known && source.Addr().Unmap().Is4() && destination.Addr().Unmap().Is4()
	switch h.Version {
	case 1:
		return append1(b, source, destination, known, is4)
	case 2:
		return append2(b, source, destination, known, is4)
	}
	return b
}

func append1(b []byte, source, destination netip.AddrPort, known, is4 bool) []byte {
	if !known {
		return append(b, "PROXY UNKNOWN\r\n"...)
	}
	family := "TCP6"
	if is4 {
		family = "TCP4"
	}
	return fmt.Appendf(b, "PROXY %s %s %s %d %d\r\n", family,
		written(source.Addr(), is4), written(destination.Addr(), is4), source.Port(), destination.Port())
}

// written is an address in the family of its header.
func written(a netip.Addr, is4 bool) netip.Addr {
	if is4 {
		return a.Unmap()
	}
	return netip.AddrFrom16(a.As16())
}

func append2(b []byte, source, destination netip.AddrPort, known, is4 bool) []byte {
	b = append(b, signature2...)
	if !known {
		return append(b, local, unspec, 0, 0)
	}
	if is4 {
		b = append(b, proxied, tcp4, 0, 12)
	} else {
		b = append(b, proxied, tcp6, 0, 36)
	}
	b = append(b, written(source.Addr(), is4).AsSlice()...)
	b = append(b, written(destination.Addr(), is4).AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, source.Port())
	return binary.BigEndian.AppendUint16(b, destination.Port())
}
