// This file holds the check of the directories above a socket.

package socket

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links the kernel follows in one path
// (path_resolution(7)).
const maxLinks = 40

// CheckDirectory refuses a directory in which anybody but root and the owner
// could put something else in a socket's place: it, each directory above it,
// and each symbolic link on the way must belong to one of them, and be
// writable by nobody else. A sticky directory such as /tmp may be writable,
// since nobody can replace what is another's in there.
func CheckDirectory(dir string, owner uint32) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	at, rest, links := "/", elements(dir), 0
	for {
		fi, err := os.Lstat(at)
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && st.Uid != owner {
			return fmt.Errorf("%s belongs to uid %d, not to root or uid %d: its owner could replace the socket; chown it, or put the socket elsewhere", at, st.Uid, owner)
		}
		switch {
		case fi.Mode().Type() == fs.ModeSymlink:
			if links++; links > maxLinks {
				return fmt.Errorf("%s: more than %d symbolic links", dir, maxLinks)
			}
			to, err := os.Readlink(at)
			if err != nil {
				return err
			}
			rest = slices.Concat(elements(to), rest)
			if at = filepath.Dir(at); filepath.IsAbs(to) {
				at = "/"
			}
			continue // what the link is in was seen
		case !fi.IsDir():
			return fmt.Errorf("%s is not a directory", at)
		case fi.Mode().Perm()&0o022 != 0 && fi.Mode()&fs.ModeSticky == 0:
			return fmt.Errorf("%s has mode %04o: others could replace the socket; chmod go-w it", at, fi.Mode().Perm())
		}
		if len(rest) == 0 {
			return nil
		}
		at, rest = filepath.Join(at, rest[0]), rest[1:]
	}
}

// elements splits a path. What ".." leaves was seen on the way in, so that
// joining may resolve it by name: no element before it is a link any more.
func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(e string) bool { return e == "" || e == "." })
}
