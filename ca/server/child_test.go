// This file holds what the test binary does as a child process: a server to
// be killed, and a caller with another uid.

package server

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/identity/wire"
)

func runChild(what string) {
	arg := os.Getenv("AVAL_TEST_ARG")
	var err error
	switch what {
	case "admin-call":
		err = childAdminCall(arg)
	case "server":
		err = childServer(arg)
	case "rollover":
		err = childRollover(arg)
	default:
		err = fmt.Errorf("no child %q", what)
	}
	if err != nil {
		fmt.Println("child:", err)
		os.Exit(1)
	}
}

// childAdminCall asks for the status over a socket and prints the code.
func childAdminCall(socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = wire.NewAdminClient(conn).ServerStatus(context.Background(), &wire.ServerStatusRequest{})
	fmt.Println("code", status.Code(err))
	return nil
}

// asUser runs a child with another uid and gid and returns what it printed.
func asUser(t *testing.T, child string, uid, gid uint32, arg string) string {
	t.Helper()
	// The test binary may lie where the user cannot look.
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	path := dir + "/child"
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = []string{"AVAL_TEST_CHILD=" + child, "AVAL_TEST_ARG=" + arg}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, NoSetGroups: false}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("child: %v: %s", err, out)
	}
	return string(out)
}

// childServer runs a server on a data directory, prints its address, and
// serves until it is killed.
func childServer(arg string) error {
	dir, port, _ := strings.Cut(arg, " ")
	if _, err := strconv.Atoi(port); err != nil {
		return err
	}
	cfg := testConfig(dir)
	cfg.Listen = "127.0.0.1:" + port
	if keys := filepath.Join(dir, "jwks"); isDir(keys) {
		cfg.KeySources.Dir = keys
	}
	s, err := New(cfg)
	if err != nil {
		return err
	}
	fmt.Println("address", s.Addr())
	return s.Run(context.Background())
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
