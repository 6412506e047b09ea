// This file holds the tests of the package, on sockets and processes of this
// machine.

package neighbour

import (
	"bufio"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ends returns the client's and the server's end of a connection.
func ends(t *testing.T, network, address string) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("%s: %v", address, err)
	}
	defer l.Close()
	client, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func portOf(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func TestTheOwnEndOfAConnectionIsThisProcess(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		_, server := ends(t, "tcp", address)
		p, err := Of(portOf(server.RemoteAddr()), portOf(server.LocalAddr()), time.Now().Add(10*time.Second))
		exe, _ := os.Executable()
		if err != nil || p.UID != uint32(os.Getuid()) || p.Exe != exe {
			t.Errorf("%s: %+v, %v", address, p, err)
		}
	}
}

func TestAnotherProcessIsFoundWhileItHoldsTheSocket(t *testing.T) {
	if os.Getenv("NEIGHBOUR_DIAL") != "" {
		c, err := net.Dial("tcp", os.Getenv("NEIGHBOUR_DIAL"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		bufio.NewReader(os.Stdin).ReadString('\n')
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "NEIGHBOUR_DIAL="+l.Addr().String())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	local, remote := portOf(server.RemoteAddr()), portOf(server.LocalAddr())
	p, err := Of(local, remote, time.Now().Add(10*time.Second))
	if exe, _ := os.Executable(); err != nil || p.Exe != exe {
		t.Errorf("%+v, %v", p, err)
	}
	stdin.Close()
	cmd.Wait()
	if p, err := Of(local, remote, time.Now().Add(10*time.Second)); !errors.Is(err, ErrNotHere) {
		t.Errorf("after its end: %+v, %v", p, err)
	}
}

func TestWhatIsNotOfThisMachineIsNotNamed(t *testing.T) {
	_, server := ends(t, "tcp", "127.0.0.1:0")
	local, remote := portOf(server.RemoteAddr()), portOf(server.LocalAddr())
	for _, other := range [][2]netip.AddrPort{
		{netip.MustParseAddrPort("192.0.2.1:4242"), remote},
		{local, netip.MustParseAddrPort("192.0.2.1:4242")},
		{netip.AddrPortFrom(local.Addr(), 1), remote},
	} {
		if s, err := Find(other[0], other[1]); !errors.Is(err, ErrNotHere) {
			t.Errorf("%v: %+v, %v", other, s, err)
		}
	}
}

func TestTheSearchEndsInTime(t *testing.T) {
	_, server := ends(t, "tcp", "127.0.0.1:0")
	s, err := Find(portOf(server.RemoteAddr()), portOf(server.LocalAddr()))
	if err != nil {
		t.Fatal(err)
	}
	if found := Holders([]Socket{s}, time.Now().Add(-time.Second)); len(found) != 0 {
		t.Errorf("found after its time: %v", found)
	}
}

func TestTheUnitIsTheInnermostOne(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/batch.service\n":                                                    "batch.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service/inner\n":        "x.service",
		"0::/user.slice/user-1000.slice/session-3.scope\n":                                    "session-3.scope",
		"12:pids:/system.slice/a.service\n1:name=systemd:/system.slice/b.service\n0::/init\n": "b.service",
		"0::/\n":     "",
		"":           "",
		"0::..\n":    "",
		"nonsense\n": "",
	} {
		if got := unitOf([]byte(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestATextHasNothingThatReadsAsMore(t *testing.T) {
	for _, tt := range []struct {
		p    Process
		want string
	}{
		{Process{UID: 5}, "uid=5"},
		{Process{UID: 5, Unit: "a.service", Exe: "/usr/bin/curl"}, "uid=5 unit=a.service exe=/usr/bin/curl"},
		{Process{UID: 5, Exe: "/tmp/x unit=root.service\n"}, `uid=5 exe="/tmp/x unit=root.service\n"`},
	} {
		if got := tt.p.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")
	f.Add(question(local, remote))
	f.Add(make([]byte, answerBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parse(b, local, remote); err == nil && s.Inode == 0 {
			t.Error("a socket without an inode")
		}
	})
}

func FuzzUnit(f *testing.F) {
	f.Add([]byte("0::/system.slice/batch.service\n"))
	f.Add([]byte("1:name=systemd:/a.scope/../..\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		unit := unitOf(text)
		if strings.Contains(unit, "/") {
			t.Errorf("unit %q", unit)
		}
		if s := (Process{Unit: unit}).String(); strings.ContainsAny(s, "\n\x00") || len(s) > 5*maxText {
			t.Errorf("text %s", strconv.Quote(s))
		}
	})
}
