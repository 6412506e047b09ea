// This file holds the proxy as a process of its own, for the tests that
// exhaust what a process has.

package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aval-id/aval/identity"
)

const childVariable = "AVAL_PROXY_CHILD"

// job is what a child is told.
type job struct {
	Agent, ID, Listen, Forward, Admin string
	Files                             uint64 // limit of open files
	Protocol                          Protocol
}

// runChild runs a proxy until its standard input ends. The line "exhaust"
// makes it open all files that it may, and "release" closes them.
func runChild(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: j.Files, Max: j.Files}); err != nil {
		return err
	}
	id, err := identity.ParseID(j.ID)
	if err != nil {
		return err
	}
	p, err := New(Config{Agent: j.Agent, Identity: id, Admin: j.Admin,
		Inbound: []Inbound{{Listen: j.Listen, Forward: j.Forward, Port: 8080, Protocol: j.Protocol}}, Limits: Limits{Drain: time.Second}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	select {
	case <-p.Started():
	case err := <-ended:
		return err
	}
	fmt.Println(p.Status().Inbound[0])
	var held []*os.File
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		for lines.Text() == "exhaust" {
			f, err := os.Open(os.DevNull)
			if err != nil {
				break
			}
			held = append(held, f)
		}
		if lines.Text() == "release" {
			for _, f := range held {
				f.Close()
			}
			held = nil
		}
		fmt.Println("done")
	}
	cancel()
	return <-ended
}

// child is a running one.
type child struct {
	address string
	in      io.Writer
	out     *bufio.Reader
	cmd     *exec.Cmd
}

// startChild runs api's proxy in a process of its own until the test ends.
func startChild(t *testing.T, s *scene, j job) *child {
	t.Helper()
	j.Agent, j.ID, j.Listen = s.agent.socket, s.api.ID.String(), "127.0.0.1:0"
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])}
	c.cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("the child: %v", err)
		}
	})
	c.in, c.out = in, bufio.NewReader(out)
	c.address = c.line(t)
	return c
}

func (c *child) line(t *testing.T) string {
	t.Helper()
	text, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(text)
}

// tell sends a line and waits until it is done.
func (c *child) tell(t *testing.T, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		t.Fatal(err)
	}
	c.line(t)
}

// resident is how much memory the process holds, in bytes.
func (c *child) resident(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// raceDetector reports whether this binary was built with it.
func raceDetector() bool {
	build, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
