// This file holds the commands that write proofs for others to check, audit
// prove and audit consistency, and the check of such a proof.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/aval-id/aval/audit"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
)

func (c *cli) auditProveCommand() *cobra.Command {
	var t proofTarget
	cmd := &cobra.Command{
		Use: "prove SERIAL|LOG/INDEX", Short: "Write the proof that a certificate is in the record", Args: takes("SERIAL"),
		Long: `Prove writes the proof that a certificate's entry, or the entry at an index, is
in the log that the newest checkpoint signs: a C2SP tlog-proof whose extra data
is the entry. "aval audit verify --proof" checks it by the verifier key alone. It
reads the server's data directory, while the server runs, or a copy. An entry is
under a checkpoint within a second.`,
		Example: `  aval audit prove 5f3c0a9be1d24c7f8a6b1e2d3c4f5a6b --data-dir /var/lib/aval/server > web.tlog-proof
  aval audit prove connections/7 --data-dir /var/lib/aval/server
  aval audit prove 5F:3C:0A --log /copy/authority --key authority.vkey`,
	}
	t.flags(cmd)
	cmd.RunE = act(func(ctx context.Context, args []string) error { return c.prove(t, args[0]) })
	return cmd
}

// proofTarget is the log that the flags of prove and consistency name.
type proofTarget struct{ dataDir, log, key string }

func (t *proofTarget) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.dataDir, "data-dir", "", "the server's data directory")
	cmd.Flags().StringVar(&t.log, "log", "", "the directory of one log, or of a copy")
	cmd.Flags().StringVar(&t.key, "key", "", "file with the log's key (default: key.pub beside the log)")
	cmd.MarkFlagsMutuallyExclusive("data-dir", "log")
	cmd.MarkFlagsMutuallyExclusive("data-dir", "key")
	cmd.MarkFlagsOneRequired("data-dir", "log")
}

// target returns the log of that name in a data directory, or the one that
// --log names.
func (t *proofTarget) target(name string) logTarget {
	if t.log != "" {
		return logTarget{name, t.log, t.key}
	}
	return logTarget{name, logDir(t.dataDir, name), keyOrNone(logKey(t.dataDir, name))}
}

func (c *cli) prove(t proofTarget, what string) error {
	name, digits, indexed := strings.Cut(what, "/")
	if !indexed {
		name = logAuthority
	}
	target := t.target(name)
	key, err := verifierKey(target)
	if err != nil {
		return err
	}
	var index int64
	if indexed {
		index, err = strconv.ParseInt(digits, 10, 64)
		if err != nil || index < 0 || name != logAuthority && name != logConnections {
			return usage(fmt.Errorf("audit prove: %q is not authority or connections, a slash and an index", what))
		}
	} else if index, err = certificateEntry(target.dir, what); err != nil {
		return err
	}
	proof, err := audit.ProveInclusion(target.dir, key, index)
	if err != nil {
		return hinted(fmt.Errorf("audit prove: %w", err), exitNegative,
			"aval audit verify says whether the log is whole; a new entry is under the checkpoint within a second")
	}
	if _, err := audit.VerifyInclusion(proof, key); err != nil {
		return fmt.Errorf("audit prove: %w", err)
	}
	_, err = c.out.Write(proof.Text())
	return err
}

// certificateEntry finds the entry that a certificate was issued with.
func certificateEntry(dir, text string) (int64, error) {
	serial, err := serialOf(text)
	if err != nil {
		return 0, usage(fmt.Errorf("audit prove: %w", err))
	}
	for e, err := range audit.SearchDir(dir, audit.Filter{Serial: serial}) {
		if err != nil {
			return 0, fmt.Errorf("audit prove: %w", err)
		}
		if e.Serial == serial && e.LeafSHA256 != "" {
			return e.Index, nil
		}
	}
	return 0, hinted(fmt.Errorf("audit prove: no certificate with the serial %s is in the log %s", serial, dir), exitNegative,
		"each server has a log of its own; aval svid fetch and openssl x509 -serial print serials")
}

// serialOf reads a certificate's serial as people copy it: in hexadecimal of
// either case, with colons or without, with zeros before it or without.
func serialOf(text string) (string, error) {
	digits := strings.ToLower(strings.ReplaceAll(text, ":", ""))
	if digits == "" || strings.Trim(digits, "0123456789abcdef") != "" || len(digits) > 64 {
		return "", fmt.Errorf("%q is not a serial in hexadecimal", text)
	}
	digits = strings.TrimLeft(digits, "0")
	if len(digits)%2 == 1 {
		digits = "0" + digits // the record has whole bytes
	}
	return digits, nil
}

func (c *cli) auditConsistencyCommand() *cobra.Command {
	var t proofTarget
	name := logAuthority
	cmd := &cobra.Command{
		Use: "consistency OLD [NEW]", Short: "Write the proof that a log continues an earlier checkpoint", Args: takes("OLD", "[NEW]"),
		Long: `Consistency writes the proof that a log under the checkpoint NEW begins with all
that it held under OLD (RFC 6962 §2.1.2). OLD is a file with an earlier
checkpoint, or a number of entries, for somebody who has the checkpoint of that
size; NEW is a file with a later checkpoint, by default the newest of the log.
"aval audit verify --proof" checks it against OLD by the verifier key alone. An
OLD that the log contradicts is said at once, with exit code 1.`,
		Example: `  aval audit consistency may.checkpoint --data-dir /var/lib/aval/server > since-may.proof
  aval audit consistency 1000 --data-dir /var/lib/aval/server
  aval audit consistency may.checkpoint june.checkpoint --log /copy/authority --key authority.vkey`,
	}
	t.flags(cmd)
	cmd.Flags().Var(&choice{&name, []string{logAuthority, logConnections}}, "of", "authority or connections, with --data-dir")
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		later := ""
		if len(args) > 1 {
			later = args[1]
		}
		return c.proveConsistency(t.target(name), args[0], later)
	})
	return cmd
}

func (c *cli) proveConsistency(t logTarget, earlier, later string) error {
	key, err := verifierKey(t)
	if err != nil {
		return err
	}
	var oldNote, newNote []byte
	old, err := strconv.ParseInt(earlier, 10, 64)
	if err != nil {
		if oldNote, err = os.ReadFile(earlier); err != nil {
			return usage(fmt.Errorf("audit consistency: OLD is neither a number of entries nor a checkpoint: %w", err))
		}
		if old, err = audit.CheckpointSize(oldNote, key); err != nil {
			return fmt.Errorf("audit consistency: %s: %w", earlier, err)
		}
	}
	if later != "" {
		if newNote, err = os.ReadFile(later); err != nil {
			return usage(fmt.Errorf("audit consistency: NEW: %w", err))
		}
	}
	proof, err := audit.ProveConsistency(t.dir, key, old, newNote)
	if err != nil {
		return fmt.Errorf("audit consistency: %w", err)
	}
	if oldNote != nil {
		if _, err := audit.VerifyConsistency(proof, oldNote, key); err != nil {
			return hinted(fmt.Errorf("audit consistency: %w", err), exitNegative,
				"keep %s: with the log's own checkpoint it shows that the log was cut, forked or rewritten", earlier)
		}
	}
	_, err = c.out.Write(proof.Text())
	return err
}

// provenResult is what the check of a proof found, in JSON and YAML.
type provenResult struct {
	Verified bool         `json:"verified"`
	Log      string       `json:"log"`
	Entries  int64        `json:"entries"`           // under the proof's checkpoint
	Entry    *audit.Entry `json:"entry,omitempty"`   // that is proven
	Earlier  *int64       `json:"earlier,omitempty"` // entries that are unchanged since
}

// verifyProof checks a proof from a file. What doesn't verify is an error
// that says why.
func (c *cli) verifyProof(path, keyFile, checkpoints string) error {
	if keyFile == "" {
		return usage(errors.New("audit verify: --proof needs --key, the file with the log's verifier key"))
	}
	text, err := readProof(path)
	if err != nil {
		return usage(fmt.Errorf("audit verify: proof: %w", err))
	}
	raw, err := os.ReadFile(keyFile)
	if err != nil {
		return usage(fmt.Errorf("audit verify: key: %w", err))
	}
	key := strings.TrimSpace(string(raw))
	v, err := note.NewVerifier(key)
	if err != nil {
		return usage(fmt.Errorf("audit verify: --key %s is not a verifier key, such as DATA/audit/authority.vkey: %w", keyFile, err))
	}
	out := provenResult{Verified: true, Log: v.Name()}
	if audit.IsConsistency(text) {
		err = out.continues(text, key, checkpoints)
	} else {
		err = out.includes(text, key)
	}
	if err != nil {
		return fmt.Errorf("audit verify: %w", err)
	}
	return c.show(out, func() error {
		if out.Earlier != nil {
			fmt.Fprintf(c.out, "%s  %s: the first %d of %d entries are unchanged\n", c.paint(green, "verified"), out.Log, *out.Earlier, out.Entries)
			return nil
		}
		fmt.Fprintf(c.out, "%s  %s: entry %d of %d\n", c.paint(green, "verified"), out.Log, out.Entry.Index, out.Entries)
		return c.printEntryLine(out.Log, out.Entry.AppendJSON(nil))
	})
}

// includes checks a proof of inclusion.
func (r *provenResult) includes(text []byte, key string) error {
	proof, err := audit.ParseProof(text)
	if err != nil {
		return err
	}
	e, err := audit.VerifyInclusion(proof, key)
	if err != nil {
		return err
	}
	r.Entry = &e
	r.Entries, err = audit.CheckpointSize([]byte(proof.Checkpoint), key)
	return err
}

// continues checks a proof of consistency against the earlier checkpoint.
func (r *provenResult) continues(text []byte, key, checkpoints string) error {
	proof, err := audit.ParseConsistency(text)
	if err != nil {
		return err
	}
	if checkpoints == "" {
		return usage(errors.New("a proof of consistency needs --checkpoints, a file or directory with the earlier checkpoint"))
	}
	kept, err := keptCheckpoints(checkpoints, r.Log)
	if err != nil {
		return err
	}
	for _, earlier := range kept {
		if size, err := audit.CheckpointSize(earlier, key); err != nil || size != proof.Old && len(kept) > 1 {
			continue
		}
		r.Earlier = &proof.Old
		if r.Entries, err = audit.VerifyConsistency(proof, earlier, key); err != nil {
			return err
		}
	}
	if r.Earlier == nil {
		return fmt.Errorf("%s has no checkpoint of this key over %d entries", checkpoints, proof.Old)
	}
	return nil
}

// readProof reads a proof, of which only so much as one can have.
func readProof(path string) ([]byte, error) {
	const most = 1 << 20
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s is longer than a proof can be", path)
	}
	return text, err
}
