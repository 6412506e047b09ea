// This file holds the tests of attestation with real processes.

package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// child runs a program until the test ends.
func child(t *testing.T, attr *syscall.SysProcAttr, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func open(t *testing.T, pid int) *Process {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// until waits for what another process brings about.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within ten seconds: %s", what)
		case <-tick.C:
		}
	}
}

func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestOwnAttributes(t *testing.T) {
	var h Hashes
	a, err := open(t, os.Getpid()).Attributes(&h)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	for name, want := range map[string]string{
		UID: strconv.Itoa(os.Geteuid()), GID: strconv.Itoa(os.Getegid()), Path: self, SHA256: hex.EncodeToString(sum[:]),
	} {
		if !slices.Equal(a[name], []string{want}) {
			t.Errorf("%s is %q, not %q", name, a[name], want)
		}
	}
}

func TestEffectiveIDsAndEachSupplementaryGroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to run a process of another user")
	}
	cmd := child(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4321, Gid: 4322, Groups: []uint32{77, 5, 77}}}, "sleep", "100")
	a, err := open(t, cmd.Process.Pid).Attributes(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a[UID], []string{"4321"}) || !slices.Equal(a[GID], []string{"4322"}) || !slices.Equal(a[SupplementaryGID], []string{"5", "77"}) {
		t.Fatalf("got %v", a)
	}
	if a[SHA256] != nil {
		t.Fatal("a digest that nobody asked for")
	}
}

func TestAPathCountsOnlyForTheInodeThatRuns(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	copyFile(t, lookPath(t, "sleep"), program)
	cmd := child(t, nil, program, "100")
	p := open(t, cmd.Process.Pid)
	var h Hashes
	a, err := p.Attributes(&h)
	if err != nil || !slices.Equal(a[Path], []string{program}) {
		t.Fatal(a, err)
	}
	// The same content under the same name, in another inode.
	copyFile(t, program, program+".new")
	if err := os.Rename(program+".new", program); err != nil {
		t.Fatal(err)
	}
	b, err := p.Attributes(&h)
	if err != nil || b[Path] != nil {
		t.Fatalf("path after the file was replaced: %v %v", b[Path], err)
	}
	if !slices.Equal(a[SHA256], b[SHA256]) {
		t.Fatal("the digest is of the file that runs, which is the same")
	}
	other := child(t, nil, program, "100")
	if c, err := open(t, other.Process.Pid).Attributes(nil); err != nil || !slices.Equal(c[Path], []string{program}) {
		t.Fatal(c, err)
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if c, err := open(t, other.Process.Pid).Attributes(nil); err != nil || c[Path] != nil {
		t.Fatalf("path of a removed file: %v %v", c[Path], err)
	}
}

func TestAChangedFileHasAnotherDigest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var h Hashes
	digest := func(content string) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := h.of(path, fileOf(fi))
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	if digest("one") == digest("two!") {
		t.Fatal("a stale digest")
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	want := fileOf(fi)
	want.ino++
	if _, err := h.of(path, want); !errors.Is(err, errUnreadable) {
		t.Fatalf("digest of another file: %v", err)
	}
}

func TestAnExecShowsAtTheNextReading(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x; exec sleep 100")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	p := open(t, cmd.Process.Pid)
	a, err := p.Attributes(nil)
	if err != nil || !slices.Equal(a[Path], []string{lookPath(t, "sh")}) {
		t.Fatal(a, err)
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	sleep := lookPath(t, "sleep")
	until(t, "exec", func() bool {
		b, err := p.Attributes(nil)
		return err == nil && slices.Equal(b[Path], []string{sleep})
	})
}

func TestADeadProcessHasNoAttributesEvenAsAZombie(t *testing.T) {
	cmd := child(t, nil, "sleep", "100")
	p := open(t, cmd.Process.Pid)
	cmd.Process.Kill()
	until(t, "end", func() bool { return p.Alive() != nil })
	if _, err := p.Attributes(nil); !errors.Is(err, ErrGone) {
		t.Fatalf("zombie: %v", err)
	}
	cmd.Wait()
	if _, err := p.Attributes(nil); !errors.Is(err, ErrGone) {
		t.Fatalf("reaped: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Fatalf("open: %v", err)
	}
	p.Close()
	if err := p.Alive(); !errors.Is(err, ErrGone) {
		t.Fatalf("closed: %v", err)
	}
}

func TestAPidThatIsUsedAgainIsNotItsPredecessor(t *testing.T) {
	const last = "/proc/sys/kernel/ns_last_pid"
	if f, err := os.OpenFile(last, os.O_WRONLY, 0); err != nil {
		t.Skip("the kernel does not let the next pid be chosen: ", err)
	} else {
		f.Close()
	}
	cmd := child(t, nil, "sleep", "100")
	pid := cmd.Process.Pid
	p := open(t, pid)
	cmd.Process.Kill()
	cmd.Wait()
	for range 50 {
		if err := os.WriteFile(last, []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Skip(err)
		}
		again := child(t, nil, "sleep", "100")
		if again.Process.Pid != pid {
			continue
		}
		if a, err := p.Attributes(nil); !errors.Is(err, ErrGone) {
			t.Fatalf("the new owner of the pid passed: %v %v", a, err)
		}
		open(t, pid)
		return
	}
	t.Skip("the pid was not given out again")
}

func TestTheCommandNameCannotForgeTheStartTime(t *testing.T) {
	fields := make([]string, 0, 50)
	for i := 3; i < 53; i++ {
		fields = append(fields, strconv.Itoa(i))
	}
	for _, comm := range []string{"x", "a b", ") 1 2 3", "((", "\n"} {
		got, err := parseStartTime(fmt.Appendf(nil, "1 (%s) %s\n", comm, strings.Join(fields, " ")))
		if err != nil || got != "22" {
			t.Errorf("%q: %q %v", comm, got, err)
		}
	}
}

func FuzzStatus(f *testing.F) {
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("Uid:\t1 2 3 4\nGid:\t1 2 3 4\nGroups:\t \n"))
	f.Add([]byte("Uid:\t1\nGid:"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseStatus(text)
		if err == nil && (!isNumber(r.uid) || !isNumber(r.gid)) {
			t.Fatalf("accepted %q", text)
		}
	})
}

func FuzzStartTime(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (x) S"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := parseStartTime(text); err == nil && s == "" {
			t.Fatalf("accepted %q", text)
		}
	})
}

func TestAPathThatIsNoTextIsAbsent(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sl\xffeep")
	copyFile(t, lookPath(t, "sleep"), program)
	cmd := child(t, nil, program, "100")
	a, err := open(t, cmd.Process.Pid).Attributes(nil)
	if err != nil || a[Path] != nil {
		t.Fatal(a, err)
	}
}
