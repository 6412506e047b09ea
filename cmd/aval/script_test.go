// This file holds the harness of the txtar scripts: command lines as people
// and scripts write them, run as processes of the real binary.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

// scriptPatience bounds each wait of a script.
const scriptPatience = 20 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(avaltest.Tests{M: m}, map[string]func(){"aval": main})
}

func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("the scripts start servers and agents; -short leaves them out")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("UID", strconv.Itoa(os.Geteuid()))
			env.Setenv("PID", strconv.Itoa(os.Getpid()))
			// Sockets have short paths, and their directory is the script's own.
			env.Setenv("AVAL_ADMIN_SOCKET", filepath.Join(env.WorkDir, "admin.sock"))
			env.Setenv("AVAL_SOCKET", filepath.Join(env.WorkDir, "agent", "w.sock"))
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, fmt.Errorf("condition %q is not known", name)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"freeport": scriptFreePort, "ready": scriptReady, "eventually": scriptEventually, "jsonenv": scriptJSONEnv,
			"expand": scriptExpand, "flipbyte": scriptFlipByte, "mode": scriptMode, "code": scriptCode,
			"past": scriptPast, "notified": scriptNotified,
		},
	})
}

// freeport NAME... sets each variable to a free loopback address.
func scriptFreePort(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(name, l.Addr().String())
		ts.Check(l.Close())
	}
}

// until calls done until it succeeds.
func until(ts *testscript.TestScript, what string, done func() error) {
	deadline := time.Now().Add(scriptPatience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: not within %s: %v", what, scriptPatience, err)
		}
		<-tick.C
	}
}

// ready ADDRESS waits until /readyz there answers 200.
func scriptReady(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, "ready "+args[0], func() error {
		resp, err := http.Get("http://" + args[0] + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
		}
		return nil
	})
}

// eventually PROGRAM ARG... [-- PATTERN] runs a program until it succeeds
// (with !, until it fails) and its output contains the pattern.
func scriptEventually(ts *testscript.TestScript, neg bool, args []string) {
	want := ""
	if n := len(args); n > 2 && args[n-2] == "--" {
		want, args = args[n-1], args[:n-2]
	}
	until(ts, strings.Join(args, " "), func() error {
		err := ts.Exec(args[0], args[1:]...)
		out := ts.ReadFile("stdout") + ts.ReadFile("stderr")
		switch {
		case (err != nil) != neg:
			return fmt.Errorf("%v: %s", err, out)
		case !strings.Contains(out, want):
			return fmt.Errorf("%q is not in %s", want, out)
		}
		return nil
	})
}

// code N PROGRAM ARG... runs a program that must exit with N.
func scriptCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("%s exits with %d, not %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// jsonenv NAME PATH sets a variable to a field of the JSON on the standard
// output, such as items.0.serial.
func scriptJSONEnv(ts *testscript.TestScript, _ bool, args []string) {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	for step := range strings.SplitSeq(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			ts.Check(err)
			if i >= len(at) {
				ts.Fatalf("%s: only %d items", args[1], len(at))
			}
			v = at[i]
		default:
			v = nil
		}
	}
	if v == nil {
		ts.Fatalf("%s is not in %s", args[1], ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// expand FILE... replaces $NAME in files.
func scriptExpand(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		path := ts.MkAbs(name)
		text, err := os.ReadFile(path)
		ts.Check(err)
		ts.Check(os.WriteFile(path, []byte(os.Expand(string(text), ts.Getenv)), 0o600))
	}
}

// flipbyte FILE TEXT changes one byte of the first occurrence of a text.
func scriptFlipByte(ts *testscript.TestScript, _ bool, args []string) {
	matches, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	for _, path := range matches {
		data, err := os.ReadFile(path)
		ts.Check(err)
		if i := bytes.Index(data, []byte(args[1])); i >= 0 {
			data[i] ^= 1
			ts.Check(os.WriteFile(path, data, 0o600))
			return
		}
	}
	ts.Fatalf("%q is not in %s", args[1], args[0])
}

// mode PERM FILE... checks permissions.
func scriptMode(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args[1:] {
		st, err := os.Lstat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, not %s", name, got, args[0])
		}
	}
}

// past TIME waits until the time has passed.
func scriptPast(ts *testscript.TestScript, _ bool, args []string) {
	at, err := time.Parse(time.RFC3339Nano, args[0])
	ts.Check(err)
	until(ts, "past "+args[0], func() error {
		if left := time.Until(at); left >= 0 {
			return fmt.Errorf("%s left", left)
		}
		return nil
	})
}

// notified SOCKET FILE takes the notifications that come to a socket, as
// systemd would, and appends them to a file.
func scriptNotified(ts *testscript.TestScript, _ bool, args []string) {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ts.MkAbs(args[0]), Net: "unixgram"})
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintf(f, "%s\n", b[:n])
		}
	}()
	ts.Defer(func() { c.Close(); <-done; f.Close() })
}
