// This file holds the demo's processes: how they are started so that none
// outlives the demo, how the death of one is noticed, and how all are
// stopped.

package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// stopGrace is how long a process may take to end by itself.
	stopGrace = 3 * time.Second
	// lastWords is how many lines a process that died is quoted with.
	lastWords = 8
	// readyPause is between two looks at whether a process is ready.
	readyPause = 2 * time.Millisecond
)

// Stopped is the death of one of the demo's processes before its time.
type Stopped struct {
	Part string   // server, agent, web, web's proxy, ...
	PID  int      // it was
	Why  error    // how it ended; nil where it ended with status 0
	Last []string // the last lines it wrote
}

// Error says which process ended, how, and its last words.
func (s *Stopped) Error() string {
	how := "ended by itself"
	if s.Why != nil {
		how = "died: " + s.Why.Error()
	}
	text := fmt.Sprintf("%s (pid %d) %s", s.Part, s.PID, how)
	if len(s.Last) == 0 {
		return text + "; it wrote nothing"
	}
	return text + "; its last lines:\n    " + strings.Join(s.Last, "\n    ")
}

// Unwrap gives how the process ended.
func (s *Stopped) Unwrap() error { return s.Why }

// part is one running process.
type part struct {
	name    string
	command *exec.Cmd
	log     string
	done    chan struct{} // closed when the process has ended and was waited for
}

// cast is all processes of one demo. Its methods are called by one goroutine.
type cast struct {
	site     *site
	fail     context.CancelCauseFunc // called with a *Stopped
	parts    []*part
	stopping atomic.Bool
	waiters  sync.WaitGroup
}

func newCast(s *site, fail context.CancelCauseFunc) *cast {
	return &cast{site: s, fail: fail}
}

// start runs a program of the site's bin directory as the given user. The
// process gets a signal group of its own, so that Ctrl-C reaches the demo
// alone, and dies with the demo.
func (c *cast) start(name, program string, uid int, args ...string) (*part, error) {
	path := c.site.path("log", strings.ReplaceAll(name, " ", "-")+".log")
	log, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	command := exec.Command(c.site.path("bin", program), args...)
	command.Dir = c.site.dir
	command.Env = plainEnvironment()
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if uid != os.Geteuid() {
		command.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &part{name: name, command: command, log: path, done: make(chan struct{})}
	c.parts = append(c.parts, p)
	c.waiters.Go(func() { c.watch(p) })
	return p, nil
}

// watch waits for one process, and ends the demo where it was not told to.
func (c *cast) watch(p *part) {
	err := p.command.Wait()
	if !c.stopping.Load() {
		c.fail(&Stopped{Part: p.name, PID: p.pid(), Why: err, Last: tail(p.log, lastWords)})
	}
	close(p.done)
}

func (p *part) pid() int { return p.command.Process.Pid }

// stop ends all processes, the newest first, and returns when all are gone.
func (c *cast) stop() {
	c.stopping.Store(true)
	for _, p := range slices.Backward(c.parts) {
		p.stop()
	}
	c.waiters.Wait()
}

// stop asks the process to end, and kills it when it takes too long.
func (p *part) stop() {
	// A process that has ended needs no signal: the error says only that.
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		_ = p.command.Process.Kill()
		<-p.done
	}
}

// plainEnvironment is the demo's own without the settings of another Aval.
func plainEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "AVAL_") || strings.HasPrefix(v, "SPIFFE_ENDPOINT_SOCKET=")
	})
}

// aval runs the binary as a person would in the demo's directory, and
// returns what it printed. The error holds what it said on its standard
// error.
func (s *site) aval(ctx context.Context, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, s.path("bin", "aval"), args...)
	command.Dir = s.dir
	command.Env = append(plainEnvironment(), "AVAL_ADMIN_SOCKET="+s.adminSocket(), "AVAL_SOCKET="+s.agentSocket())
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var out, complaint bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaint
	if err := command.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("aval %s: %w: %s", strings.Join(args[:min(2, len(args))], " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.Bytes(), nil
}

// tail reads the last lines of a log.
func tail(path string, lines int) []string {
	const most = 8 << 10
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, err = f.Seek(max(0, size-most), io.SeekStart)
		if err != nil {
			return nil
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return nil
	}
	all := strings.Split(text, "\n")
	return all[max(0, len(all)-lines):]
}

// ready looks again and again until probe holds, the context ends or limit
// is over; what it waits for is told in the error.
func ready(ctx context.Context, limit time.Duration, what string, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(readyPause)
	defer ticker.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait %s for %s: %w", limit, what, err)
		case <-ticker.C:
		}
	}
}
