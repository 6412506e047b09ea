// This file holds check: what is wrong, or soon will be, with what to do.

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/aval-id/aval/identity/wire/socket"
	"github.com/spf13/cobra"
)

// The results of a check, from good to bad.
const (
	checkOK   = "ok"
	checkWarn = "warning"
	checkFail = "failed"
)

// finding is the result of one check.
type finding struct {
	Group  string `json:"group"`
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// findings collects the results of one run.
type findings struct {
	all   []finding
	group string
	now   time.Time
}

func (f *findings) add(result, check, hint, format string, args ...any) {
	if result == checkOK {
		hint = ""
	}
	f.all = append(f.all, finding{Group: f.group, Check: check, Result: result, Detail: fmt.Sprintf(format, args...), Hint: hint})
}

func (f *findings) count(result string) int {
	n := 0
	for _, one := range f.all {
		if one.Result == result {
			n++
		}
	}
	return n
}

func (c *cli) checkCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use: "check", Short: "Check the server and the agent on this machine", Args: takes(),
		Long: `Check looks at the server and at the agent of this machine, whichever is there
or is named by a flag: sockets, permissions, clocks, how much of each lifetime
is left, reachability, store, record, and documents that say more than they
seem to. It exits with 1 where something failed; with --strict warnings count.`,
		Example: `  aval check
  aval check --strict --admin-socket /run/aval/server/admin.sock
  aval check --socket /run/aval/agent/workload.sock -o json`,
	}
	cmd.Flags().BoolVar(&strict, "strict", false, "let warnings fail the check")
	c.adminFlag(cmd)
	c.socketFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		server := cmd.Flags().Changed("admin-socket") || c.lookup("AVAL_ADMIN_SOCKET") != "" || exists(c.adminSocket)
		agent := cmd.Flags().Changed("socket") || c.lookup("AVAL_SOCKET") != "" || exists(c.agentSocket)
		return act(func(ctx context.Context, _ []string) error { return c.check(ctx, server, agent, strict) })(cmd, args)
	}
	return cmd
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (c *cli) check(ctx context.Context, server, agent, strict bool) error {
	if !server && !agent {
		return hinted(fmt.Errorf("check: there is neither a server at %s nor an agent at %s", c.adminSocket, c.agentSocket),
			exitUnreachable, "name their sockets with --admin-socket and --socket")
	}
	f := &findings{now: time.Now()}
	if server {
		c.checkServer(ctx, f)
	}
	if agent {
		c.checkAgent(ctx, f)
	}
	return c.conclude(f, strict)
}

// conclude shows the findings and turns them into the command's end.
func (c *cli) conclude(f *findings, strict bool) error {
	failed := f.count(checkFail) > 0 || strict && f.count(checkWarn) > 0
	out := struct {
		OK     bool      `json:"ok"`
		Checks []finding `json:"checks"`
	}{!failed, f.all}
	if err := c.show(out, func() error { c.printFindings(f); return nil }); err != nil {
		return err
	}
	if failed {
		return negative()
	}
	return nil
}

// alike is how many findings that say the same are printed one by one.
const alike = 5

func (c *cli) printFindings(f *findings) {
	group := ""
	for rest := f.all; len(rest) > 0; {
		same := 1
		for same < len(rest) && rest[same].sameAs(rest[0]) {
			same++
		}
		if rest[0].Group != group {
			group = rest[0].Group
			fmt.Fprintln(c.out, group)
		}
		c.printAlike(rest[:same])
		rest = rest[same:]
	}
	fmt.Fprintf(c.out, "%d ok, %s, %d failed\n", f.count(checkOK), plural(f.count(checkWarn), "warning"), f.count(checkFail))
}

// sameAs reports whether two findings differ in their subject alone.
func (f finding) sameAs(g finding) bool {
	f.Check, g.Check = "", ""
	return f.Hint != "" && f == g
}

// printAlike prints findings that say the same, with one hint.
func (c *cli) printAlike(all []finding) {
	marks := map[string]string{checkOK: c.paint(green, "ok  "), checkWarn: c.paint(yellow, "warn"), checkFail: c.paint(red, "FAIL")}
	for _, one := range all[:min(alike, len(all))] {
		fmt.Fprintf(c.out, "  %s  %s: %s\n", marks[one.Result], one.Check, one.Detail)
	}
	if more := len(all) - alike; more > 0 {
		fmt.Fprintf(c.out, "        and %d more; -o json names them\n", more)
	}
	if all[0].Hint != "" {
		fmt.Fprintf(c.out, "        hint: %s\n", all[0].Hint)
	}
}

// socket checks a socket's file. World access is for workload sockets alone;
// nobody but its owner may replace either.
func (f *findings) socket(path string, world bool) {
	st, err := os.Lstat(path)
	if err != nil {
		f.add(checkFail, "socket", "start the process that serves it", "%v", err)
		return
	}
	mode := st.Mode()
	switch {
	case mode.Type() != fs.ModeSocket:
		f.add(checkFail, "socket", "remove it and restart the process", "%s is not a socket", path)
	case !world && mode.Perm()&0o007 != 0:
		f.add(checkFail, "socket", "restart the server, which sets its mode", "%s has mode %04o: everyone may connect", path, mode.Perm())
	default:
		f.add(checkOK, "socket", "", "%s, mode %04o", path, mode.Perm())
	}
	owner := uint32(os.Geteuid())
	if st, ok := st.Sys().(*syscall.Stat_t); ok {
		owner = st.Uid
	}
	dir := filepath.Dir(path)
	if err := socket.CheckDirectory(dir, owner); err != nil {
		f.add(checkFail, "socket directory", "let root or the socket's owner alone write to it and to what is above it", "%s: %v", dir, err)
	}
}

// maxSkew is where clocks differ too much.
const maxSkew = 30 * time.Second

func (f *findings) skew(check string, skew time.Duration, whose string) {
	if skew.Abs() > maxSkew {
		f.add(checkWarn, check, "synchronise both clocks, such as with chrony", "%s differs by %s", whose, skew.Round(time.Millisecond))
		return
	}
	f.add(checkOK, check, "", "%s differs by %s", whose, skew.Round(time.Millisecond))
}

// lifetime judges how much of a certificate's life is left, as a fraction.
func (f *findings) lifetime(check string, notBefore, notAfter time.Time, warn, fail float64, hint string) {
	whole := notAfter.Sub(notBefore)
	left := 0.0
	if whole > 0 {
		left = max(0, float64(notAfter.Sub(f.now))/float64(whole))
	}
	result := checkOK
	switch {
	case left <= fail:
		result = checkFail
	case left < warn:
		result = checkWarn
	}
	state := "ends"
	if f.now.After(notAfter) {
		state = "ended"
	}
	f.add(result, check, hint, "%.0f%% of its lifetime left, %s %s", left*100, state, ago(notAfter, f.now))
}

// dataDir checks modes and space of a server's data directory, where it is on
// this machine and may be read.
func (f *findings) dataDir(dir string) {
	st, err := os.Stat(dir)
	if err != nil {
		f.add(checkWarn, "data directory", "run check on the server's machine, as its user or root", "%v", err)
		return
	}
	if st.Mode().Perm()&0o077 != 0 {
		f.add(checkFail, "data directory", "chmod 700 "+dir, "%s has mode %04o", dir, st.Mode().Perm())
	} else {
		f.add(checkOK, "data directory", "", "%s, mode %04o", dir, st.Mode().Perm())
	}
	f.keyFiles(filepath.Join(dir, "keys"))
	var space syscall.Statfs_t
	if err := syscall.Statfs(dir, &space); err == nil && space.Blocks > 0 {
		free, part := space.Bavail*uint64(space.Bsize), float64(space.Bavail)/float64(space.Blocks)
		switch {
		case part < 0.02 || free < 64<<20:
			f.add(checkFail, "disk", "free space: issuance stops when the record cannot be written", "%d MiB free (%.0f%%)", free>>20, part*100)
		case part < 0.1:
			f.add(checkWarn, "disk", "free space, or move the data directory", "%d MiB free (%.0f%%)", free>>20, part*100)
		default:
			f.add(checkOK, "disk", "", "%d MiB free (%.0f%%)", free>>20, part*100)
		}
	}
}

func (f *findings) keyFiles(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		f.add(checkWarn, "keys", "run check as the server's user or root", "%v", err)
		return
	}
	bad := 0
	for _, e := range entries {
		st, err := e.Info()
		if err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
			bad++
			path := filepath.Join(dir, e.Name())
			f.add(checkFail, "keys", "chmod 600 "+path, "%s has mode %04o", path, st.Mode().Perm())
		}
	}
	if bad == 0 {
		f.add(checkOK, "keys", "", "%s readable by their owner alone", plural(len(entries), "file"))
	}
}
