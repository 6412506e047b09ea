// This file holds the test of a connection whose process becomes a program of
// another user.

package agent

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aval-id/aval/identity/identitytest"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// install copies a program to where every user can run it.
func install(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, mode); err != nil {
		t.Fatal(err)
	}
}

// An unprivileged process connects, gives the connection to a partner, and
// runs a set-user-ID program, which makes it root's as far as /proc tells.
func TestAConnectionIsOfTheUserThatMadeIt(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a set-user-ID program")
	}
	s := newFakeServer(t, identitytest.New(t, "example.org"))
	s.apply(registration("root", "/ns/shop/sa/root", "{unix.uid: 0}"))
	s.apply(registration("wheel", "/ns/shop/sa/wheel", "{unix.gid: 0}"))
	cfg := testConfig(t, s)
	a := start(t, cfg)
	a.ready(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	for name, bit := range map[string]os.FileMode{"set-user-ID": os.ModeSetuid, "set-group-ID": os.ModeSetgid} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "aval")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			for _, open := range []string{dir, filepath.Dir(cfg.Socket), filepath.Dir(filepath.Dir(cfg.Socket))} {
				if err := os.Chmod(open, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			install(t, os.Args[0], filepath.Join(dir, "stranger"), 0o755)
			install(t, sleep, filepath.Join(dir, "sleep"), 0o755|bit)
			cmd := exec.Command(filepath.Join(dir, "stranger"))
			cmd.Dir, cmd.Env = "/", append(os.Environ(), "PATH="+dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4321, Gid: 4321}}
			conn, cmd, tell := strangerOf(t, cmd, cfg.Socket)
			tell("exec")
			eventually(t, "exec", func() bool {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
				return err == nil && strings.TrimSpace(string(text)) == "sleep"
			})
			ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
			st, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if m, err := st.Recv(); status.Code(err) != codes.PermissionDenied {
				t.Fatal(ids(m), err)
			}
		})
	}
}
