// This file holds the tests of naming the process that dialled a proxy.

package agent

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOnlyWhoWasDialledLearnsByWhichProcess(t *testing.T) {
	if os.Getenv("HOLDER_LISTEN") != "" {
		listenForParent(t)
		return
	}
	td := identitytest.New(t, "example.org")
	s := newFakeServer(t, td)
	s.apply(registration("web", "/ns/shop/sa/web"))
	a := start(t, testConfig(t, s))
	a.ready(t)
	proxy := wire.NewProxyClient(a.dial(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	source, destination := client.LocalAddr().String(), client.RemoteAddr().String()
	h, err := proxy.Holder(t.Context(), &wire.HolderRequest{Source: source, Destination: destination})
	if err != nil || h.GetExe() != self || h.GetUid() != uint32(os.Getuid()) {
		t.Errorf("%v, %v", h, err)
	}
	for _, tt := range []struct {
		source, destination string
		want                codes.Code
	}{
		{"192.0.2.1:1", destination, codes.NotFound},
		{source, "127.0.0.1:1", codes.NotFound},
		{"x", destination, codes.InvalidArgument},
		{source, "", codes.InvalidArgument},
	} {
		if h, err := proxy.Holder(t.Context(), &wire.HolderRequest{Source: tt.source, Destination: tt.destination}); status.Code(err) != tt.want {
			t.Errorf("%s to %s: %v, %v", tt.source, tt.destination, h, err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("the rest needs another user")
	}
	other := dialOther(t)
	h, err = proxy.Holder(t.Context(), &wire.HolderRequest{Source: other.LocalAddr().String(), Destination: other.RemoteAddr().String()})
	if status.Code(err) != codes.NotFound {
		t.Errorf("who dialled another user is told: %v, %v", h, err)
	}
}

// dialOther connects to a process of another user, which accepts.
func dialOther(t *testing.T) net.Conn {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	cmd.Env, cmd.Dir = append(os.Environ(), "HOLDER_LISTEN=1"), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("a process of another user: %v", err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	out := bufio.NewReader(stdout)
	address, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", strings.TrimSpace(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c
}

func listenForParent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	io.WriteString(os.Stdout, l.Addr().String()+"\n")
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(os.Stdout, "accepted\n")
	io.Copy(io.Discard, os.Stdin)
}
