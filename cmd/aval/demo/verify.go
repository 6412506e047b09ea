// This file holds the last step: both logs are verified while the server
// writes them, and a changed byte in a copy is found.

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

// verifyRecord verifies the live logs, then a copy of one, then the copy
// with one byte changed.
func (p *play) verifyRecord(ctx context.Context) error {
	out, err := p.runAval(ctx, "audit", "verify", "--data-dir", p.site.path("server"))
	p.quote(out)
	if err != nil {
		return err
	}
	keys, err := p.verifierKeys(ctx)
	if err != nil {
		return err
	}
	a := &p.result.Audit
	a.Verified = true
	for name, entries := range map[string]*int64{logAuthority: &a.Authority, logConnections: &a.Connections} {
		report, err := audit.Verify(p.site.path("server", "audit", name), keys[name], audit.VerifyOptions{})
		if err != nil {
			return fmt.Errorf("verify log %s: %w", name, err)
		}
		*entries = report.Entries
		a.Verified = a.Verified && report.Verified
		p.result.expect(report.Verified, "log %s does not verify: %s", name, report.Detail)
	}
	a.Entries = a.Authority + a.Connections
	p.out.good("%d entries verified: %d of the authority, %d connections", a.Entries, a.Authority, a.Connections)
	return p.tamper(ctx, keys[logAuthority])
}

// verifierKeys asks the server for the keys that check its logs.
func (p *play) verifierKeys(ctx context.Context) (map[string]string, error) {
	status, err := p.admin.ServerStatus(ctx, &wire.ServerStatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the server's status: %w", err)
	}
	keys := map[string]string{}
	for _, l := range status.GetLogs() {
		keys[filepath.Base(l.GetName())] = l.GetVerifierKey()
		keys[l.GetName()] = l.GetVerifierKey()
	}
	if keys[logAuthority] == "" || keys[logConnections] == "" {
		return nil, fmt.Errorf("ask the server's status: it names no key for one of its logs: %v", status.GetLogs())
	}
	return keys, nil
}

// tamper changes one byte in a copy of the authority log, in the entry of
// the leaf that web got first, and lets the verification find it.
func (p *play) tamper(ctx context.Context, key string) error {
	source, copied := p.site.path("server", "audit", logAuthority), p.site.path("copy", logAuthority)
	keyFile := p.site.path("copy", "authority.key")
	p.out.command("cp", "-r", source, copied)
	if err := copyTree(copied, source); err != nil {
		return fmt.Errorf("copy the log: %w", err)
	}
	if err := os.WriteFile(keyFile, []byte(key+"\n"), 0o600); err != nil {
		return fmt.Errorf("copy the log's key: %w", err)
	}
	whole, err := audit.Verify(copied, key, audit.VerifyOptions{})
	if err != nil {
		return fmt.Errorf("verify the copy: %w", err)
	}
	p.result.expect(whole.Verified, "the copy does not verify: %s", whole.Detail)

	entry := p.issued["web"]
	file, offset, err := findIn(filepath.Join(copied, "ledger"), []byte(entry.Serial))
	if err != nil {
		return fmt.Errorf("find the entry in the copy: %w", err)
	}
	if err := flipByte(file, offset); err != nil {
		return fmt.Errorf("change the copy: %w", err)
	}
	p.out.comment("one byte of the serial in entry %d is changed: %s, offset %d", entry.Index, filepath.Base(file), offset)
	report, err := audit.Verify(copied, key, audit.VerifyOptions{})
	if err != nil {
		return fmt.Errorf("verify the changed copy: %w", err)
	}
	if report.Verified || report.BadIndex == nil {
		return fmt.Errorf("verify the changed copy: it names no entry: %+v", report)
	}
	a := &p.result.Audit
	a.TamperedAt, a.TamperDetectedAt = entry.Index, *report.BadIndex
	p.result.expect(a.TamperedAt == a.TamperDetectedAt, "entry %d was changed and entry %d named", a.TamperedAt, a.TamperDetectedAt)
	return p.verifyByHand(ctx, copied, keyFile)
}

// verifyByHand runs the command that finds the change, which must end with
// the status of a negative finding.
func (p *play) verifyByHand(ctx context.Context, log, keyFile string) error {
	out, err := p.runAval(ctx, "audit", "verify", "--log", log, "--key", keyFile)
	p.quote(out)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return errors.New("verify the changed copy by hand: the command found nothing")
	case !errors.As(err, &exit) || exit.ExitCode() != 1:
		return fmt.Errorf("verify the changed copy by hand: %w", err)
	}
	p.out.good("the verification names entry %d", p.result.Audit.TamperDetectedAt)
	return nil
}

// copyTree copies a directory of plain files. Files come in the order of
// their names, so that a log's checkpoint is older than its ledger.
func copyTree(dst, src string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			// A file that a live log replaced while it was listed.
			if errors.Is(err, fs.ErrNotExist) && path != src {
				return nil
			}
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dst, rel), 0o700)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		if err := copyFile(filepath.Join(dst, rel), path, 0o600); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// findIn gives the file and the offset of a text in a directory's files.
func findIn(dir string, text []byte) (string, int64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return "", 0, err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", 0, err
		}
		if at := bytes.Index(data, text); at >= 0 && len(text) > 0 {
			return file, int64(at), nil
		}
	}
	return "", 0, fmt.Errorf("%q is in none of %d files", text, len(files))
}

// flipByte changes one bit of a file.
func flipByte(path string, offset int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, offset)
	return err
}
