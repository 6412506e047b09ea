// This file holds the tests of who occupies a listener.

package sources

import (
	"net/netip"
	"testing"
)

func TestSeatsAreGivenBack(t *testing.T) {
	s := New(Limits{Handshakes: 4, SourceConnections: 4, SourceHandshakes: 1, SpareLoopback: true})
	var seats []*Seat
	for i := range 4 {
		st, err := s.Seat()
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Charge(netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 2)})); (err == nil) != (i < 2) {
			t.Errorf("%d: %v", i, err) // a quarter of the handshakes is one
		}
		seats = append(seats, st)
	}
	if _, err := s.Seat(); err == nil {
		t.Error("a fifth handshake was begun")
	}
	for _, st := range seats {
		st.Decided()
		st.Leave()
		st.Leave()
	}
	if s.shaking != 0 || len(s.shares) != 0 {
		t.Errorf("left: %d handshakes, shares %v", s.shaking, s.shares)
	}
	local, _ := s.Seat()
	if err := local.Charge(netip.MustParseAddr("127.0.0.1")); err != nil || local.charged {
		t.Errorf("loopback is charged: %v", err)
	}
	for a, b := range map[string]string{"2001:db8::1": "2001:db8::ffff:1", "fe80::1%a": "fe80::2%b", "::ffff:192.0.2.1": "192.0.2.1"} {
		if x, y := sourceOf(netip.MustParseAddr(a)), sourceOf(netip.MustParseAddr(b)); x != y || !x.IsValid() {
			t.Errorf("%s and %s are two sources: %s, %s", a, b, x, y)
		}
	}
}

func TestWhatIsNotBoundedIsUnbounded(t *testing.T) {
	s := New(Limits{})
	for range 1000 {
		seat, err := s.Seat()
		if err == nil {
			err = seat.Charge(netip.MustParseAddr("127.0.0.1"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if connections, handshakes := s.Of(netip.MustParseAddr("127.0.0.1")); connections != 1000 || handshakes != 1000 || s.InProgress() != 1000 {
		t.Fatal(connections, handshakes)
	}
}
