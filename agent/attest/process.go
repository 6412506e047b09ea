// This file holds Process, the hold on one process, and its liveness.

package attest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process has ended, or is hidden from this one by a
// pid namespace.
var ErrGone = errors.New("the process is gone")

// Process is a hold on one process: its pid stays its own as long as Alive
// reports no error. Close lets go. Its methods are safe for concurrent use.
type Process struct {
	pid   int
	start string // start time in clock ticks, as a second proof of identity

	mu    sync.RWMutex
	pidfd int // -1 once closed
}

// Open takes hold of the process that has this pid now. The start time is
// read on both sides of the open, so that both belong to one process.
func Open(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	before, err := startTime(pid)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, goneOr(err))
	}
	p := &Process{pid: pid, start: before, pidfd: fd}
	if err := p.Alive(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// fromPidfd wraps a pidfd that the kernel gave for a socket's peer. It owns
// the descriptor, on errors too.
func fromPidfd(fd int) (*Process, error) {
	pid, err := pidOf(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	start, err := startTime(pid)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &Process{pid: pid, start: start, pidfd: fd}
	if err := p.Alive(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// PID returns the process's number in the agent's pid namespace.
func (p *Process) PID() int { return p.pid }

// Alive returns ErrGone unless the process held still runs under its pid.
// What was read from /proc before a nil answer belongs to this process.
func (p *Process) Alive() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.pidfd < 0 {
		return fmt.Errorf("process %d: %w", p.pid, ErrGone)
	}
	start, err := startTime(p.pid)
	if err != nil {
		return fmt.Errorf("process %d: %w", p.pid, err)
	}
	if start != p.start {
		return fmt.Errorf("process %d: %w", p.pid, ErrGone)
	}
	poll := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("process %d: poll of pidfd: %w", p.pid, err)
		}
		if n != 0 {
			return fmt.Errorf("process %d: %w", p.pid, ErrGone)
		}
		return nil
	}
}

// Close lets go of the process. It may be called more than once.
func (p *Process) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return nil
	}
	fd := p.pidfd
	p.pidfd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("process %d: close of pidfd: %w", p.pid, err)
	}
	return nil
}

// path returns a name below the process's directory in /proc.
func (p *Process) path(name string) string {
	return "/proc/" + strconv.Itoa(p.pid) + "/" + name
}

// pidOf returns the pid behind a pidfd, as the kernel tells it.
func pidOf(fd int) (int, error) {
	text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, fmt.Errorf("pid of peer: %w", err)
	}
	for line := range bytes.Lines(text) {
		value, ok := bytes.CutPrefix(line, []byte("Pid:"))
		if !ok {
			continue
		}
		pid, err := strconv.Atoi(string(bytes.TrimSpace(value)))
		if err != nil {
			return 0, fmt.Errorf("pid of peer: %w", err)
		}
		if pid <= 0 { // -1: ended; 0: in a pid namespace that is not ours
			return 0, fmt.Errorf("pid of peer: %w", ErrGone)
		}
		return pid, nil
	}
	return 0, errors.New("pid of peer: fdinfo of the pidfd has no Pid line")
}

// startTime returns field 22 of /proc/PID/stat, clock ticks since boot.
func startTime(pid int) (string, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", goneOr(err)
	}
	return parseStartTime(text)
}

// parseStartTime takes field 22 out of a stat line. The second field is the
// command in parentheses, which may hold anything, parentheses included.
func parseStartTime(stat []byte) (string, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return "", errors.New("stat has no command field")
	}
	fields := bytes.Fields(stat[end+1:])
	const after = 22 - 3 // the first field here is number 3
	if len(fields) <= after {
		return "", errors.New("stat has no start time")
	}
	return string(fields[after]), nil
}

// goneOr turns the errors of a process that has ended into ErrGone.
func goneOr(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}
