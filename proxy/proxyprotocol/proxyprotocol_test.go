// This file holds the tests and the fuzz test of the header.

package proxyprotocol

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// v2 makes a header of version 2 from its parts.
func v2(command, family byte, rest ...byte) string {
	return signature2 + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + string(rest)
}

var four = []byte{192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x01, 0xbb}

func TestHeaderIsReadWhole(t *testing.T) {
	six := append(slices.Concat(netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("2001:db8::2").AsSlice()), 0, 1, 0, 2)
	sum := v2(proxied, tcp4, append(slices.Clone(four), tlvCRC32C, 0, 4, 0, 0, 0, 0)...)
	summed := binary.BigEndian.AppendUint32([]byte(sum[:len(sum)-4]), crc32.Checksum([]byte(sum), crc32.MakeTable(crc32.Castagnoli)))
	for _, tt := range []struct {
		in   string
		want Header
	}{
		{"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\n", Header{1, at("192.0.2.1:4660"), at("198.51.100.2:443")}},
		{"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", Header{1, at("[2001:db8::1]:1"), at("[2001:db8::2]:2")}},
		{"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 65535\r\n", Header{1, at("192.0.2.1:1"), at("[2001:db8::2]:65535")}},
		{"PROXY UNKNOWN\r\n", Header{Version: 1}},
		{"PROXY UNKNOWN ffff:f...f:ffff whatever 1\r\n", Header{Version: 1}},
		{v2(proxied, tcp4, four...), Header{2, at("192.0.2.1:4660"), at("198.51.100.2:443")}},
		{v2(proxied, tcp6, six...), Header{2, at("[2001:db8::1]:1"), at("[2001:db8::2]:2")}},
		{v2(proxied, tcp4, append(slices.Clone(four), 4, 0, 2, 'h', 'i')...), Header{2, at("192.0.2.1:4660"), at("198.51.100.2:443")}},
		{string(summed), Header{2, at("192.0.2.1:4660"), at("198.51.100.2:443")}},
		{v2(local, unspec), Header{Version: 2}},
		{v2(local, tcp4, four...), Header{Version: 2}},
		{v2(proxied, unspec, 1, 2, 3), Header{Version: 2}},
	} {
		for n := range len(tt.in) {
			if _, _, err := Parse([]byte(tt.in[:n])); !errors.Is(err, ErrShort) {
				t.Fatalf("%q: %v", tt.in[:n], err)
			}
		}
		got, n, err := Parse([]byte(tt.in + "GET /"))
		if err != nil || n != len(tt.in) || got != tt.want {
			t.Errorf("%q: %+v, %d bytes, %v", tt.in, got, n, err)
		}
	}
}

func TestWrongHeaderIsRefused(t *testing.T) {
	for _, in := range []string{
		"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\n",
		"PROXY TCP4  192.0.2.1 198.51.100.2 4660 443\r\n",
		"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443 \r\n",
		"PROXY TCP4 192.0.2.1 198.51.100.2 04660 443\r\n",
		"PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
		"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
		"PROXY TCP4 192.0.2.01 198.51.100.2 1 443\r\n",
		"PROXY TCP4 2001:db8::1 198.51.100.2 1 443\r\n",
		"PROXY TCP6 192.0.2.1 198.51.100.2 1 443\r\n",
		"PROXY TCP6 fe80::1%eth0 2001:db8::1 1 443\r\n",
		"PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n",
		"PROXY \r\n",
		"PROXY UNKNOWN" + strings.Repeat("x", 200),
		v2(0x11, tcp4, four...),
		v2(0x22, tcp4, four...),
		v2(proxied, 0x12, four...),
		v2(proxied, 0x31, make([]byte, 216)...),
		v2(proxied, tcp4, four[:11]...),
		v2(proxied, tcp6, four...),
		v2(proxied, tcp4, append(slices.Clone(four), 4, 0)...),
		v2(proxied, tcp4, append(slices.Clone(four), 4, 0, 9, 1)...),
		v2(proxied, tcp4, append(slices.Clone(four), tlvCRC32C, 0, 4, 1, 2, 3, 4)...),
		v2(proxied, tcp4, append(slices.Clone(four), tlvCRC32C, 0, 1, 1)...),
		v2(local, unspec, make([]byte, MaxBytes)...)[:fixed2], // refused before the rest comes
	} {
		if h, _, err := Parse([]byte(in)); err == nil || errors.Is(err, ErrShort) || errors.Is(err, ErrAbsent) {
			t.Errorf("%q: %+v, %v", in, h, err)
		}
	}
	for _, in := range []string{"GET / HTTP/1.1\r\n", "\x16\x03\x01", "PROXZ", "PROXY\r\n", "\r\n\r\n\x01"} {
		if _, _, err := Parse([]byte(in)); !errors.Is(err, ErrAbsent) || Begins([]byte(in)) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestMixedFamiliesAreWrittenAsIPv6(t *testing.T) {
	for _, version := range []int{1, 2} {
		h := Header{version, at("192.0.2.1:5"), at("[2001:db8::1]:6")}
		got, _, err := Parse(h.Append(nil))
		if err != nil || got != h {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if b := (Header{Version: 3}).Append(nil); len(b) > 0 {
		t.Errorf("%q", b)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte(v2(proxied, tcp4, four...)))
	f.Add([]byte(v2(local, unspec)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if err != nil {
			if errors.Is(err, ErrShort) && len(b) >= MaxBytes {
				t.Error("more than MaxBytes is asked for")
			}
			return
		}
		if n > len(b) || n > MaxBytes || h.Source.IsValid() != h.Destination.IsValid() || !Begins(b) {
			t.Fatalf("%+v of %d bytes", h, n)
		}
		again, _, err := Parse(h.Append(nil))
		if err != nil || again != h {
			t.Errorf("%+v printed and read is %+v, %v", h, again, err)
		}
	})
}
