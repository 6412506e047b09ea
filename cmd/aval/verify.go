// This file holds audit verify: the check of a whole log, offline.

package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
)

// logDir returns where a server keeps a log in its data directory.
func logDir(dataDir, log string) string { return filepath.Join(dataDir, "audit", log) }

// logKey returns where a server keeps a log's signing key.
func logKey(dataDir, log string) string { return filepath.Join(dataDir, "keys", "log-"+log+".key") }

// verification is what verify found, in JSON and YAML. The fields of the
// first finding stand at the top.
type verification struct {
	Verified      bool           `json:"verified"`
	Entries       int64          `json:"entries"`
	BadLog        string         `json:"bad_log,omitempty"`
	BadIndex      *int64         `json:"bad_index,omitempty"`
	BadTile       string         `json:"bad_tile,omitempty"`
	BadCheckpoint bool           `json:"bad_checkpoint,omitempty"`
	Detail        string         `json:"detail,omitempty"`
	Logs          []audit.Report `json:"logs"`
}

func (c *cli) auditVerifyCommand() *cobra.Command {
	var dataDir, log, key, checkpoints, proof string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that nothing in the record was changed", Args: takes(),
		Long: `Verify checks each entry, the hash chain, the Merkle tiles and the signed
checkpoint, on a data directory (while the server runs, too) or on a copy of a
log. It names the first bad entry's index, or the tile, and exits with 1.

With --checkpoints it also checks the log against earlier checkpoints, such as
those that an agent kept (DATA/checkpoints): whoever rewrote history, key and
all, is shown by them.

With --proof it checks a file that "aval audit prove" or "aval audit consistency"
wrote, by the verifier key alone: neither server nor log is needed. A proof of
consistency is checked against the earlier checkpoint, named by --checkpoints.`,
		Example: `  aval audit verify --data-dir /var/lib/aval/server
  aval audit verify --log /copy/authority --key authority.pub -o json
  aval audit verify --data-dir /var/lib/aval/server --checkpoints /var/lib/aval/agent/checkpoints
  aval audit verify --proof web.tlog-proof --key authority.vkey
  aval audit verify --proof since-may.proof --key authority.vkey --checkpoints may.checkpoint`,
	}
	cmd.Flags().StringVar(&proof, "proof", "", "file with a proof to check instead of a log; - is the standard input")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "the server's data directory: both of its logs")
	cmd.Flags().StringVar(&log, "log", "", "the directory of one log, or of a copy")
	cmd.Flags().StringVar(&key, "key", "", "file with the log's key: the verifier key's text, or the server's key file (default: key.pub beside the log)")
	cmd.Flags().StringVar(&checkpoints, "checkpoints", "", "directory or file with earlier checkpoints of the log")
	cmd.MarkFlagsMutuallyExclusive("data-dir", "log", "proof")
	cmd.MarkFlagsMutuallyExclusive("data-dir", "key")
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(context.Context, []string) error {
		if proof != "" {
			return c.verifyProof(proof, key, checkpoints)
		}
		if dataDir == "" && log == "" {
			return usage(errors.New("audit verify: name the record: --data-dir, --log for one log, or --proof for one proof"))
		}
		targets := []logTarget{{name: filepath.Base(log), dir: log, key: key}}
		if dataDir != "" {
			targets = []logTarget{
				{logAuthority, logDir(dataDir, logAuthority), keyOrNone(logKey(dataDir, logAuthority))},
				{logConnections, logDir(dataDir, logConnections), keyOrNone(logKey(dataDir, logConnections))},
			}
		}
		return c.verify(targets, checkpoints)
	})
	return cmd
}

// logTarget is one log to verify.
type logTarget struct{ name, dir, key string }

// keyOrNone drops the path of a key that is not there, as in a copy without
// keys; the public key beside the log serves then.
func keyOrNone(path string) string {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return path
}

func (c *cli) verify(targets []logTarget, checkpoints string) error {
	v := verification{Verified: true, Logs: []audit.Report{}}
	for _, t := range targets {
		report, err := verifyLog(t, checkpoints)
		if err != nil {
			return err
		}
		v.Logs = append(v.Logs, report)
		v.Entries += report.Entries
		if !report.Verified && v.Verified {
			v.Verified, v.BadLog = false, t.name
			v.BadIndex, v.BadTile, v.BadCheckpoint, v.Detail = report.BadIndex, report.BadTile, report.BadCheckpoint, report.Detail
		}
	}
	if err := c.show(v, func() error { c.printVerification(v); return nil }); err != nil {
		return err
	}
	if !v.Verified {
		return negative()
	}
	return nil
}

func verifyLog(t logTarget, checkpoints string) (audit.Report, error) {
	verifier, err := verifierKey(t)
	if err != nil {
		return audit.Report{}, err
	}
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return audit.Report{}, usage(fmt.Errorf("audit verify: key of %s: %w", t.dir, err))
	}
	kept, err := keptCheckpoints(checkpoints, v.Name())
	if err != nil {
		return audit.Report{}, err
	}
	report, err := audit.Verify(t.dir, verifier, audit.VerifyOptions{Checkpoints: kept})
	if err != nil {
		return audit.Report{}, fmt.Errorf("audit verify: %w", err)
	}
	return report, nil
}

// verifierKey reads the key that a log is verified by. A private key serves
// too: its public half is taken, under the origin that the checkpoint names.
func verifierKey(t logTarget) (string, error) {
	if st, err := os.Stat(t.dir); err != nil || !st.IsDir() {
		return "", usage(fmt.Errorf("record: there is no log in %s", t.dir))
	}
	path := t.key
	if path == "" {
		path = filepath.Join(t.dir, "key.pub")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", usage(fmt.Errorf("record: key: %w", err))
	}
	if !bytes.Contains(text, []byte("PRIVATE KEY")) {
		return strings.TrimSpace(string(text)), nil
	}
	key, err := identity.DecodeKey(text)
	if err != nil {
		return "", fmt.Errorf("record: key %s: %w", path, err)
	}
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("record: key %s is not an Ed25519 key", path)
	}
	origin, err := originOf(t.dir)
	if err != nil {
		return "", err
	}
	return note.NewEd25519VerifierKey(origin, public)
}

// originOf reads which log it is from its checkpoint, or where that is
// destroyed from its public key. The signature that is checked later covers
// the name.
func originOf(dir string) (string, error) {
	if text, err := os.ReadFile(filepath.Join(dir, "checkpoint")); err == nil {
		origin, _, _ := strings.Cut(string(text), "\n")
		if origin != "" && !strings.ContainsAny(origin, " +\x00") {
			return origin, nil
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		return "", fmt.Errorf("record: neither checkpoint nor key.pub of %s says which log it is: %w", dir, err)
	}
	origin, _, _ := strings.Cut(string(text), "+")
	return origin, nil
}

func (c *cli) printVerification(v verification) {
	for _, r := range v.Logs {
		if r.Verified {
			fmt.Fprintf(c.out, "%s  %s: %d entries, %d under the signed checkpoint", c.paint(green, "verified"), r.Log, r.Entries, r.CheckpointSize)
			if r.First > 0 {
				fmt.Fprintf(c.out, ", from entry %d on (older ones were dropped for the quota)", r.First)
			}
			fmt.Fprintln(c.out)
			continue
		}
		where := "the log"
		switch {
		case r.BadIndex != nil:
			where = fmt.Sprintf("entry %d", *r.BadIndex)
		case r.BadTile != "":
			where = "tile " + r.BadTile
		case r.BadCheckpoint:
			where = "the checkpoint"
		}
		detail := strings.TrimPrefix(r.Detail, where+": ")
		fmt.Fprintf(c.out, "%s  %s: %s: %s\n", c.paint(red, "BROKEN"), r.Log, where, detail)
	}
}
