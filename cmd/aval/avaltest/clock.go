// This file holds Clock: a wall clock that a test sets, for all processes of
// a fleet and no other.

package avaltest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Clock is how far the wall clock of a fleet's processes is from the real
// one. Their monotonic clock, by which timers run, goes on untouched, as it
// does when an administrator or NTP sets a machine's clock.
type Clock struct{ file *os.File }

// clockVariable names the clock's file to the processes.
const clockVariable = "AVAL_TEST_CLOCK"

// clockSource goes into package time of the binary that fleets with a clock
// run: the file that the variable names is mapped, and its first eight bytes
// are seconds.
const clockSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var clockPage *atomic.Int64

func init() {
	path, ok := syscall.Getenv("` + clockVariable + `")
	if !ok {
		return
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	syscall.Close(fd)
	clockPage = (*atomic.Int64)(unsafe.Pointer(&b[0]))
}

func clockShift() int64 {
	if clockPage == nil {
		return 0
	}
	return clockPage.Load()
}
`

// clockCall is where package time reads the clock, in Now.
const clockCall = "	sec, nsec, mono := runtimeNow()\n	if mono == 0 {"

var shifted = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "avalclock")
	if err != nil {
		return "", err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	library := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(library, "time.go"))
	if err == nil && bytes.Count(source, []byte(clockCall)) != 1 {
		err = errors.New("package time reads its clock elsewhere")
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	changed := bytes.Replace(source, []byte(clockCall), []byte(strings.Replace(clockCall, "\n", "\n	sec += clockShift()\n", 1)), 1)
	replaced := map[string]string{}
	for name, text := range map[string][]byte{"time.go": changed, "clockshift.go": []byte(clockSource)} {
		replaced[filepath.Join(library, name)] = filepath.Join(dir, name)
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	overlay, failed := json.Marshal(map[string]any{"Replace": replaced})
	path := filepath.Join(dir, "overlay.json")
	if err = errors.Join(err, failed, os.WriteFile(path, overlay, 0o600), os.Chmod(dir, 0o755)); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return compile(dir, "-overlay", path)
})

// NewWithClock is New for a fleet whose clock the test sets. Its binary is
// built with a package time that knows how, which takes a minute where Go has
// not built it before.
func NewWithClock(t *testing.T) (*Fleet, *Clock) {
	t.Helper()
	binary, err := shifted()
	Must(t, err)
	f := New(t)
	f.Binary = binary
	file, err := os.Create(filepath.Join(f.Dir, "clock"))
	Must(t, err)
	t.Cleanup(func() { file.Close() })
	Must(t, os.Chmod(file.Name(), 0o644))
	t.Setenv(clockVariable, file.Name())
	c := &Clock{file}
	Must(t, c.Set(0))
	return f, c
}

// Set sets the clock to so far from the real one, in whole seconds.
func (c *Clock) Set(by time.Duration) error {
	if _, err := c.file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(by/time.Second))), 0); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}
