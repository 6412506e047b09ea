// This file holds the network namespace that commands and look-ups happen in,
// and the running of commands.

package intercept

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// runner runs a command with the given standard input and returns its
// standard output. An error carries what the command complained of.
type runner func(ctx context.Context, input, name string, args ...string) (string, error)

// command is the runner of the calling thread's namespace.
func command(ctx context.Context, input, name string, args ...string) (string, error) {
	path, err := find(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if said := lines(complaint.String()); len(said) > 0 {
			return "", fmt.Errorf("%s: %s: %w", name, strings.Join(said[:min(len(said), 3)], "; "), err)
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return out.String(), nil
}

// find looks where administration's commands are, too: not every PATH has
// their directories.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// inside calls f on a thread of the namespace: the process's own where the
// name is empty, one that "ip netns" made, or that of a path such as
// /proc/4242/ns/net.
func inside(namespace string, f func() error) error {
	if namespace == "" {
		return f()
	}
	path := namespace
	if !strings.HasPrefix(path, "/") {
		if strings.Contains(path, "/") || path == "." || path == ".." {
			return fmt.Errorf("network namespace %q is neither a name nor an absolute path", namespace)
		}
		path = filepath.Join("/run/netns", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", namespace, err)
	}
	defer file.Close()
	result := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with this goroutine, and
		// nothing else ever runs in the other namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace %s: %w", namespace, os.NewSyscallError("setns", err))
			return
		}
		result <- f()
	}()
	return <-result
}

// isPermission reports whether a command or call lacked a privilege.
func isPermission(err error) bool {
	return errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "not permitted") || strings.Contains(err.Error(), "Permission denied")
}
