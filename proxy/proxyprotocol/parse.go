// This file holds Header and the strict, bounded reader of it.

package proxyprotocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"
)

// MaxBytes bounds a header: the longest of version 1 has 107 bytes, and of
// version 2 no more than this is accepted, fields included.
const MaxBytes = 4096

// maxLine is the longest header of version 1, CR and LF included (§2.1).
const maxLine = 107

const (
	signature1 = "PROXY "
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"
)

// ErrShort says that the bytes so far are the beginning of a header, or may
// become one, and that more are needed.
var ErrShort = errors.New("PROXY protocol header is not complete")

// ErrAbsent says that the bytes begin with no header.
var ErrAbsent = errors.New("no PROXY protocol header")

// Header is what a load balancer says of a connection.
type Header struct {
	// Version is 1 or 2.
	Version int
	// Source and Destination are of the connection that the load balancer
	// took, with IPv4 in IPv6 undone. Both are zero where it speaks for
	// itself, as in a health check, or does not say (LOCAL, UNKNOWN, UNSPEC).
	Source, Destination netip.AddrPort
}

// Begins reports whether b begins with the whole signature of a header.
func Begins(b []byte) bool {
	return bytes.HasPrefix(b, []byte(signature1)) || bytes.HasPrefix(b, []byte(signature2))
}

// Parse reads the header at the beginning of b and returns how many bytes it
// takes. The error is ErrAbsent, ErrShort, or says what is wrong with the
// header. It never needs more than MaxBytes.
func Parse(b []byte) (Header, int, error) {
	for _, s := range []string{signature1, signature2} {
		n := min(len(b), len(s))
		if string(b[:n]) != s[:n] {
			continue
		}
		switch {
		case n < len(s):
			return Header{}, 0, ErrShort
		case s == signature1:
			return parse1(b)
		}
		return parse2(b)
	}
	return Header{}, 0, ErrAbsent
}

// parse1 reads the line of version 1: "PROXY TCP4 1.2.3.4 5.6.7.8 1000 443",
// one space between fields.
func parse1(b []byte) (Header, int, error) {
	line := b[:min(len(b), maxLine)]
	end := bytes.IndexByte(line, '\n')
	if end < 0 {
		if len(line) == maxLine {
			return Header{}, 0, fmt.Errorf("PROXY protocol version 1: no end of line in %d bytes", maxLine)
		}
		return Header{}, 0, ErrShort
	}
	text, found := strings.CutSuffix(string(line[:end]), "\r")
	if !found {
		return Header{}, 0, errors.New("PROXY protocol version 1: LF without CR")
	}
	h := Header{Version: 1}
	fields := strings.Split(text, " ")
	if fields[1] == "UNKNOWN" {
		return h, end + 1, nil // the rest of the line is to be ignored
	}
	if len(fields) != 6 {
		return Header{}, 0, fmt.Errorf("PROXY protocol version 1: %d fields instead of 6", len(fields))
	}
	is4 := fields[1] == "TCP4"
	if !is4 && fields[1] != "TCP6" {
		return Header{}, 0, errors.New("PROXY protocol version 1: the protocol is none of TCP4, TCP6, UNKNOWN")
	}
	var err error
	if h.Source, err = endpoint(fields[2], fields[4], is4); err != nil {
		return Header{}, 0, fmt.Errorf("PROXY protocol version 1: source: %w", err)
	}
	if h.Destination, err = endpoint(fields[3], fields[5], is4); err != nil {
		return Header{}, 0, fmt.Errorf("PROXY protocol version 1: destination: %w", err)
	}
	return h, end + 1, nil
}

// endpoint reads an address of the family and a port without leading zeroes.
func endpoint(address, port string, is4 bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Is4() != is4 || a.Zone() != "" {
		return netip.AddrPort{}, errors.New("the address is not of the family that is named")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, errors.New("the port is not a number from 0 to 65535")
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// The layout of version 2 (§2.2).
const (
	fixed2    = 16 // signature, version and command, family and protocol, length
	unspec    = 0x00
	tcp4      = 0x11
	tcp6      = 0x21
	local     = 0x20
	proxied   = 0x21
	tlvCRC32C = 0x03
)

func parse2(b []byte) (Header, int, error) {
	if len(b) < fixed2 {
		return Header{}, 0, ErrShort
	}
	command, family := b[12], b[13]
	if command != local && command != proxied {
		return Header{}, 0, fmt.Errorf("PROXY protocol version 2: version and command 0x%02x is neither 0x20 nor 0x21", command)
	}
	n := fixed2 + int(binary.BigEndian.Uint16(b[14:]))
	if n > MaxBytes {
		return Header{}, 0, fmt.Errorf("PROXY protocol version 2: %d bytes, more than %d", n, MaxBytes)
	}
	if len(b) < n {
		return Header{}, 0, ErrShort
	}
	h := Header{Version: 2}
	rest := b[fixed2:n]
	if command == local {
		return h, n, nil // the receiver ignores the rest
	}
	size := 0
	switch family {
	case unspec:
		return h, n, nil
	case tcp4:
		size = 4
	case tcp6:
		size = 16
	default:
		return Header{}, 0, fmt.Errorf("PROXY protocol version 2: family and protocol 0x%02x is not TCP", family)
	}
	if len(rest) < 2*size+4 {
		return Header{}, 0, errors.New("PROXY protocol version 2: the addresses are cut off")
	}
	source, _ := netip.AddrFromSlice(rest[:size])
	destination, _ := netip.AddrFromSlice(rest[size : 2*size])
	ports := rest[2*size:]
	h.Source = netip.AddrPortFrom(source.Unmap(), binary.BigEndian.Uint16(ports))
	h.Destination = netip.AddrPortFrom(destination.Unmap(), binary.BigEndian.Uint16(ports[2:]))
	if err := checkFields(b[:n], fixed2+2*size+4); err != nil {
		return Header{}, 0, err
	}
	return h, n, nil
}

// checkFields holds the type-length-value fields from offset at on to their
// form, and a checksum to its value (§2.2.4).
func checkFields(header []byte, at int) error {
	for rest := header[at:]; len(rest) > 0; rest = header[at:] {
		if len(rest) < 3 {
			return errors.New("PROXY protocol version 2: a field is cut off")
		}
		size := int(binary.BigEndian.Uint16(rest[1:]))
		if len(rest) < 3+size {
			return errors.New("PROXY protocol version 2: a field is cut off")
		}
		if rest[0] == tlvCRC32C {
			if size != 4 {
				return fmt.Errorf("PROXY protocol version 2: a checksum of %d bytes", size)
			}
			blank := bytes.Clone(header)
			clear(blank[at+3 : at+7])
			if crc32.Checksum(blank, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(rest[3:]) {
				return errors.New("PROXY protocol version 2: the checksum is wrong")
			}
		}
		at += 3 + size
	}
	return nil
}
