// This file holds the question to the kernel whose socket one end of a
// connection is (sock_diag(7)). It needs no privilege.

package neighbour

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is one end of a connection in this network namespace.
type Socket struct {
	UID   uint32 // of who made it
	Inode uint32
}

// ErrNotHere says that no socket of this network namespace is that end.
var ErrNotHere = errors.New("no socket of this machine")

const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	headerBytes      = unix.SizeofNlMsghdr
	requestBytes     = headerBytes + 56 // struct inet_diag_req_v2
	answerBytes      = headerBytes + 72 // struct inet_diag_msg
	// answerTime bounds the wait for the kernel, which answers at once.
	answerTime = 100 * time.Millisecond
)

// Find returns the socket whose own address is local, connected to remote.
func Find(local, remote netip.AddrPort) (Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return Socket{}, fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(answerTime.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return Socket{}, fmt.Errorf("sock_diag: %w", err)
	}
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := unix.Sendto(fd, question(local, remote), 0, kernel); err != nil {
		return Socket{}, fmt.Errorf("sock_diag: %w", err)
	}
	var answer [512]byte
	n, _, err := unix.Recvfrom(fd, answer[:], 0)
	if err != nil {
		return Socket{}, fmt.Errorf("sock_diag: %w", err)
	}
	return parse(answer[:n], local, remote)
}

// question is a request for one socket, not a dump.
func question(local, remote netip.AddrPort) []byte {
	b := make([]byte, requestBytes)
	binary.NativeEndian.PutUint32(b[0:], requestBytes)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	r := b[headerBytes:]
	r[0], r[1] = family(local.Addr()), unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[4:], 0xffffffff) // every state
	putEnds(r[8:], local, remote)
	for i := range 8 {
		r[8+40+i] = 0xff // INET_DIAG_NOCOOKIE
	}
	return b
}

func family(a netip.Addr) byte {
	if a.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// putEnds writes the ends of struct inet_diag_sockid.
func putEnds(b []byte, local, remote netip.AddrPort) {
	binary.BigEndian.PutUint16(b[0:], local.Port())
	binary.BigEndian.PutUint16(b[2:], remote.Port())
	copy(b[4:20], local.Addr().Unmap().AsSlice())
	copy(b[20:36], remote.Addr().Unmap().AsSlice())
}

// parse reads the answer, which must be about the socket that was asked for.
func parse(b []byte, local, remote netip.AddrPort) (Socket, error) {
	if len(b) < headerBytes+4 {
		return Socket{}, errors.New("sock_diag: the answer is too short")
	}
	switch kind := binary.NativeEndian.Uint16(b[4:]); kind {
	case unix.NLMSG_ERROR:
		if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(b[headerBytes:]))); errno != unix.ENOENT {
			return Socket{}, fmt.Errorf("sock_diag: %w", errno)
		}
		return Socket{}, ErrNotHere
	case sockDiagByFamily:
	default:
		return Socket{}, fmt.Errorf("sock_diag: an answer of the kind %d", kind)
	}
	if len(b) < answerBytes {
		return Socket{}, errors.New("sock_diag: the answer is too short")
	}
	m := b[headerBytes:]
	var want [36]byte
	putEnds(want[:], local, remote)
	if [4]byte(m[4:8]) != [4]byte(want[:4]) || !sameEnds(m[8:40], want[4:36], m[0]) {
		return Socket{}, ErrNotHere // a listener, say
	}
	s := Socket{UID: binary.NativeEndian.Uint32(m[64:]), Inode: binary.NativeEndian.Uint32(m[68:])}
	if s.Inode == 0 {
		return Socket{}, ErrNotHere // nobody holds it any more
	}
	return s, nil
}

// sameEnds compares two pairs of addresses. A socket of IPv6 with an IPv4 peer
// has them mapped.
func sameEnds(got, want []byte, family byte) bool {
	for _, at := range []int{0, 16} {
		g, w := netip.AddrFrom16([16]byte(got[at:at+16])), netip.AddrFrom16([16]byte(want[at:at+16]))
		if g == w || family == unix.AF_INET6 && g.Is4In6() && g.Unmap() == netip.AddrFrom4([4]byte(want[at:at+4])) {
			continue
		}
		return false
	}
	return true
}
