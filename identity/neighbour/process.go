// This file holds the way from a socket to the process that holds it, over
// /proc, as far as this process may look.

package neighbour

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxText bounds a path or a unit in a text.
const maxText = 256

// Process is what is known of who holds a socket.
type Process struct {
	UID  uint32
	Unit string // of systemd, by its cgroup; "" where there is none or it may not be seen
	Exe  string // path of the executable; "" where it may not be seen
}

// String writes "uid=1000 unit=batch.service exe=/usr/bin/curl".
func (p Process) String() string {
	text := "uid=" + strconv.FormatUint(uint64(p.UID), 10)
	if p.Unit != "" {
		text += " unit=" + printable(p.Unit)
	}
	if p.Exe != "" {
		text += " exe=" + printable(p.Exe)
	}
	return text
}

// printable quotes what would be read as something else.
func printable(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	if quoted := strconv.QuoteToASCII(s); strings.ContainsAny(s, " =") || len(quoted) != len(s)+2 {
		return quoted
	}
	return s
}

// Holders finds the processes that hold sockets. It looks at processes of
// their users alone, the youngest first, since a client has mostly just begun,
// until all are found or the time is up, and only at those that this process
// may look at: without privileges its own user's.
func Holders(sockets []Socket, until time.Time) map[Socket]Process {
	found, links := map[Socket]Process{}, map[string]Socket{}
	users := map[uint32]bool{}
	for _, s := range sockets {
		links["socket:["+strconv.FormatUint(uint64(s.Inode), 10)+"]"] = s
		users[s.UID] = true
	}
	for _, pid := range processes() {
		if len(found) == len(links) || time.Now().After(until) {
			break
		}
		lookAt("/proc/"+strconv.Itoa(pid), links, users, until, found)
	}
	return found
}

// processes returns the numbers of the processes of this machine, the highest
// first.
func processes() []int {
	procs, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer procs.Close()
	names, _ := procs.Readdirnames(-1) // what was read before an error counts
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.SortFunc(pids, func(a, b int) int { return b - a })
	return pids
}

// lookAt enters the sockets that a process holds. What is read of the process
// counts only if it still holds the socket after that: its number may have
// become another's.
func lookAt(dir string, links map[string]Socket, users map[uint32]bool, until time.Time, found map[Socket]Process) {
	info, err := os.Stat(dir)
	if err != nil {
		return
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !users[st.Uid] {
		return
	}
	fds, err := os.Open(dir + "/fd")
	if err != nil {
		return
	}
	defer fds.Close()
	for {
		names, err := fds.Readdirnames(256)
		for _, name := range names {
			link, _ := os.Readlink(dir + "/fd/" + name)
			s, ok := links[link]
			if !ok {
				continue
			}
			p := Process{UID: s.UID}
			p.Exe, _ = os.Readlink(dir + "/exe")
			if text, err := os.ReadFile(dir + "/cgroup"); err == nil {
				p.Unit = unitOf(text)
			}
			if again, _ := os.Readlink(dir + "/fd/" + name); again == link {
				found[s] = p
			}
		}
		if err != nil || time.Now().After(until) {
			return
		}
	}
}

// unitOf returns the innermost unit of systemd that a cgroup file
// (cgroups(7)) names: in the unified hierarchy, or in that of systemd.
func unitOf(text []byte) string {
	for line := range bytes.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(parts) != 3 || parts[1] != "" && parts[1] != "name=systemd" {
			continue
		}
		for dir := parts[2]; dir != "/" && dir != "." && dir != ""; dir = path.Dir(dir) {
			if name := path.Base(dir); strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
				return name
			}
		}
	}
	return ""
}

// Of finds who holds one end of a connection, as far as may be seen.
func Of(local, remote netip.AddrPort, until time.Time) (Process, error) {
	s, err := Find(local, remote)
	if err != nil {
		return Process{}, fmt.Errorf("who holds %s: %w", local, err)
	}
	if p, ok := Holders([]Socket{s}, until)[s]; ok {
		return p, nil
	}
	return Process{UID: s.UID}, nil
}
