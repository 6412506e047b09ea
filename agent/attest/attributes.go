// This file holds the reading of a process's attributes from /proc.

package attest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/aval-id/aval/identity"
)

// The names of the attributes. Numbers are decimal text.
const (
	UID              = "unix.uid"               // effective user
	GID              = "unix.gid"               // effective group
	SupplementaryGID = "unix.supplementary_gid" // one value for each further group
	Path             = "unix.path"              // absolute path of the executable
	SHA256           = "unix.sha256"            // lower-case hex of the executable's content
)

// maxReads bounds how often a reading is repeated while the process changes
// under it.
const maxReads = 4

// Attributes reads the process's attributes. The digest of the executable is
// read only where hashes is not nil.
//
// The path is there only if the executable and the file of that name in the
// agent's own mount namespace are one inode of one device, so that neither a
// copy, a replaced file nor a file of a container passes for it. Everything is
// read twice and must agree, so that an exec between two reads mixes nothing;
// at the end the process must still be alive. An attribute that may not be
// read is absent.
func (p *Process) Attributes(hashes *Hashes) (identity.Attributes, error) {
	for range maxReads {
		first, err := p.read()
		if err != nil {
			return nil, fmt.Errorf("attributes of process %d: %w", p.pid, err)
		}
		out := first.attributes()
		if hashes != nil {
			sum, err := hashes.of(p.path("exe"), first.exe)
			if err == nil {
				out[SHA256] = []string{sum}
			} else if !errors.Is(err, errUnreadable) {
				return nil, fmt.Errorf("attributes of process %d: %w", p.pid, goneOr(err))
			}
		}
		second, err := p.read()
		if err != nil {
			return nil, fmt.Errorf("attributes of process %d: %w", p.pid, err)
		}
		if err := p.Alive(); err != nil {
			return nil, fmt.Errorf("attributes: %w", err)
		}
		if first.equal(second) {
			return out, nil
		}
	}
	return nil, fmt.Errorf("attributes of process %d: it changed during each of %d readings", p.pid, maxReads)
}

// Trace is what an exec or a change of user leaves different. It says nothing
// of the files that the process was started from, which may be replaced under
// a process that goes on.
type Trace struct {
	uid, gid, groups string
	dev, ino         uint64 // of the executable, zero where it may not be told
}

// Trace reads the process's trace, for about half of what Attributes
// costs.
func (p *Process) Trace() (Trace, error) {
	text, err := os.ReadFile(p.path("status"))
	if err != nil {
		return Trace{}, fmt.Errorf("trace of process %d: %w", p.pid, goneOr(err))
	}
	r, err := parseStatus(text)
	if err != nil {
		return Trace{}, fmt.Errorf("trace of process %d: %w", p.pid, err)
	}
	t := Trace{uid: r.uid, gid: r.gid, groups: strings.Join(r.groups, " ")}
	if exe, err := os.Stat(p.path("exe")); err == nil {
		f := fileOf(exe)
		t.dev, t.ino = f.dev, f.ino
	}
	if err := p.Alive(); err != nil {
		return Trace{}, fmt.Errorf("trace: %w", err)
	}
	return t, nil
}

// reading is what one look at /proc showed.
type reading struct {
	uid, gid string
	groups   []string
	path     string // "" where it may not be told
	exe      file
}

func (r reading) equal(o reading) bool {
	return r.uid == o.uid && r.gid == o.gid && r.path == o.path && r.exe == o.exe && slices.Equal(r.groups, o.groups)
}

func (r reading) attributes() identity.Attributes {
	out := identity.Attributes{UID: {r.uid}, GID: {r.gid}}
	if len(r.groups) > 0 {
		out[SupplementaryGID] = r.groups
	}
	if r.path != "" {
		out[Path] = []string{r.path}
	}
	return out
}

func (p *Process) read() (reading, error) {
	text, err := os.ReadFile(p.path("status"))
	if err != nil {
		return reading{}, goneOr(err)
	}
	r, err := parseStatus(text)
	if err != nil {
		return reading{}, err
	}
	exe, err := os.Stat(p.path("exe"))
	if err != nil {
		return r, nil // not ours to look at, or a kernel thread: no path, no digest
	}
	r.exe = fileOf(exe)
	name, err := os.Readlink(p.path("exe"))
	if err != nil || !filepath.IsAbs(name) || !utf8.ValidString(name) {
		return r, nil // no registration can name it either
	}
	if here, err := os.Stat(name); err == nil && fileOf(here).same(r.exe) {
		r.path = name
	}
	return r, nil
}

// file identifies a file's content as far as the kernel tells it.
type file struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// same reports whether both are one inode of one device.
func (f file) same(o file) bool { return f.dev == o.dev && f.ino == o.ino && f.ino != 0 }

func fileOf(fi os.FileInfo) file {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return file{}
	}
	return file{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// parseStatus takes the effective ids and the groups out of /proc/PID/status.
func parseStatus(text []byte) (reading, error) {
	var r reading
	for line := range bytes.Lines(text) {
		name, value, ok := strings.Cut(string(line), ":")
		if !ok {
			continue
		}
		fields := strings.Fields(value)
		switch name {
		case "Uid", "Gid":
			if len(fields) != 4 || !isNumber(fields[1]) {
				return reading{}, fmt.Errorf("status: %s line is not four numbers", name)
			}
			if name == "Uid" {
				r.uid = fields[1]
			} else {
				r.gid = fields[1]
			}
		case "Groups":
			for _, g := range fields {
				if !isNumber(g) {
					return reading{}, errors.New("status: Groups line has no numbers")
				}
			}
			r.groups = fields
		}
	}
	if r.uid == "" || r.gid == "" {
		return reading{}, errors.New("status: Uid or Gid line is missing")
	}
	slices.Sort(r.groups)
	r.groups = slices.Compact(r.groups)
	return r, nil
}

func isNumber(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
