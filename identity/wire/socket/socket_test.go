// This file holds the tests of sockets, with real files, users and
// connections.

package socket

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asked makes the test binary a client that connects to the socket that is
// the variable's value, and says what came of it.
const asked = "SOCKET_TEST_DIAL"

func TestMain(m *testing.M) {
	if path := os.Getenv(asked); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			fmt.Print(errors.Is(err, fs.ErrPermission))
			os.Exit(0)
		}
		if _, err := io.Copy(os.Stdout, c); err != nil {
			fmt.Print(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// other is a user that is neither root nor the one of the tests.
const other = 65533

// asOther dials the socket as another user, who is in the groups.
func asOther(t *testing.T, path string, groups ...uint32) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("another user takes root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(filepath.Dir(path), "dial")
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, text, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Env = append(cmd.Environ(), asked+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other, Groups: groups}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// openDir is a directory that every user may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func listen(t *testing.T, path string, f File) *net.UnixListener {
	t.Helper()
	l, err := Listen(path, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// answer tells each caller who it is.
func answer(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		p, err := PeerOf(c)
		fmt.Fprint(c, p.UID, p.GID, p.Groups, p.PID > 0, p.Owner(), err)
		c.Close()
	}
}

func TestASocketIsOpenToThoseWhomItsModeLetsIn(t *testing.T) {
	group := uint32(4242)
	for _, c := range []struct {
		file   File
		groups []uint32
		want   string
	}{
		{File{}, nil, "true"},
		{File{Mode: 0o660, Group: &group}, nil, "true"},
		{File{Mode: 0o660, Group: &group}, []uint32{7, group}, "65533 65533 [7 4242] true false <nil>"},
		{File{Mode: 0o777}, nil, "65533 65533 [] true false <nil>"},
	} {
		path := filepath.Join(openDir(t), "below", "s")
		go answer(listen(t, path, c.file))
		if got := asOther(t, path, c.groups...); got != c.want {
			t.Errorf("%+v: %s, not %s", c.file, got, c.want)
		}
		fi, err := os.Stat(path)
		if want := max(c.file.Mode, 0o600); err != nil || fi.Mode().Perm() != want {
			t.Errorf("mode %v, not %v: %v", fi.Mode(), want, err)
		}
	}
}

func TestADeadSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	path := filepath.Join(openDir(t), "s")
	l := listen(t, path, File{})
	if _, err := Listen(path, File{}); err == nil || !strings.Contains(err.Error(), path+": another process serves it") {
		t.Fatalf("a live one: %v", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("nothing is left to replace: %v", err)
	}
	listen(t, path, File{}).Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a closed one left its file: %v", err)
	}
}

func TestWhatIsNoSocketStays(t *testing.T) {
	for kind, put := range map[string]func(string) error{
		"file":          func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"directory":     func(p string) error { return os.Mkdir(p, 0o700) },
		"symbolic link": func(p string) error { return os.Symlink("/nowhere", p) },
		"special file":  func(p string) error { return unix.Mkfifo(p, 0o600) },
	} {
		path := filepath.Join(openDir(t), "s")
		if err := put(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path, File{}); err == nil || !strings.Contains(err.Error(), "a "+kind+" is in its place") {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestAPathThatLinuxCannotHoldIsRefused(t *testing.T) {
	if _, err := Listen("/tmp/"+strings.Repeat("x", maxPath), File{}); err == nil || !strings.Contains(err.Error(), "112 bytes, more than the 107") {
		t.Fatal(err)
	}
}

func TestEveryDirectoryAboveASocketIsChecked(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("another user's directory takes root")
	}
	root := openDir(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"a/b/c", "loose/b/c", "group/b", "sticky/b/c", "theirs/b/c", "real/b", "sticky/mine"} {
		must(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(os.Chmod(filepath.Join(root, "loose"), 0o757))
	must(os.Chmod(filepath.Join(root, "group"), 0o775))
	must(os.Chmod(filepath.Join(root, "sticky"), 0o777|fs.ModeSticky))
	must(os.Chown(filepath.Join(root, "theirs"), other, other))
	must(os.Symlink("real", filepath.Join(root, "link")))
	must(os.Symlink("../loose/b", filepath.Join(root, "a", "out")))
	must(os.Symlink(filepath.Join(root, "theirs/b"), filepath.Join(root, "away")))
	must(os.Symlink("loop", filepath.Join(root, "loop")))
	must(os.Symlink("../../real", filepath.Join(root, "sticky", "mine", "up")))
	must(os.Symlink("mine", filepath.Join(root, "sticky", "put")))
	must(os.Lchown(filepath.Join(root, "sticky", "put"), other, other))
	for dir, want := range map[string]string{
		"a/b/c":            "",
		"sticky/b/c":       "",
		"link/b":           "",
		"sticky/mine/up/b": "",
		"loose/b/c":        "loose has mode 0757: others could replace the socket; chmod go-w it",
		"group/b":          "group has mode 0775",
		"theirs/b/c":       "theirs belongs to uid 65533, not to root or uid 0",
		"a/out/c":          "loose has mode 0757",
		"away/c":           "theirs belongs to uid 65533",
		"sticky/put":       "put belongs to uid 65533",
		"loop/x":           "more than 40 symbolic links",
	} {
		err := CheckDirectory(filepath.Join(root, dir), 0)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
		if _, listened := Listen(filepath.Join(root, dir, "s"), File{}); want != "" && listened == nil {
			t.Errorf("%s: a socket was made", dir)
		}
	}
	if err := CheckDirectory(filepath.Join(root, "theirs/b/c"), other); err != nil {
		t.Errorf("the owner's own: %v", err)
	}
	if err := CheckDirectory(filepath.Join(root, "none"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
}

func TestAPeerWithManyGroupsIsKnownWhole(t *testing.T) {
	path := filepath.Join(openDir(t), "s")
	go answer(listen(t, path, File{Mode: 0o666}))
	var groups []uint32
	for g := range uint32(3000) {
		groups = append(groups, g+1)
	}
	if got := asOther(t, path, groups...); got != fmt.Sprint(other, other, groups, true, false, nil) {
		t.Fatal(got)
	}
}
