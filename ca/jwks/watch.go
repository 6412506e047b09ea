// This file holds Watch: the kernel's word that a directory changed.

package jwks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watched are the events of a directory that may mean other keys: a file that
// was written, or replaced by renaming, as atomic writers and Kubernetes do it.
const watched = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CREATE | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// errGone says that a watched directory is not there any more.
var errGone = errors.New("directory was removed or replaced")

// Watch calls changed once it watches a directory, and after each change in
// it, until ctx ends or the directory goes away. Changed must not block.
func Watch(ctx context.Context, dir string, changed func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, watched); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	changed() // what came before the watch was there
	buffer := make([]byte, 16<<10)
	for {
		n, err := f.Read(buffer)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		changed()
		if gone(buffer[:n]) {
			return fmt.Errorf("watch %s: %w", dir, errGone)
		}
	}
}

// gone looks for the end of the watch among events (inotify(7)).
func gone(events []byte) bool {
	const header = unix.SizeofInotifyEvent
	for len(events) >= header {
		if binary.NativeEndian.Uint32(events[4:])&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0 {
			return true
		}
		next := header + int(binary.NativeEndian.Uint32(events[12:]))
		events = events[min(next, len(events)):]
	}
	return false
}
