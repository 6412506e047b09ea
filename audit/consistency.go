// This file holds consistency proofs: that a log under a later checkpoint
// begins with all that it held under an earlier one.

package audit

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Consistency proves offline that the first Old entries under a checkpoint
// are those of an earlier checkpoint of that size (RFC 6962 §2.1.2).
type Consistency struct {
	Old        int64       `json:"old"`
	Checkpoint string      `json:"checkpoint"` // the later one, a signed note
	Hashes     []tlog.Hash `json:"hashes"`
}

// CheckpointSize verifies a signed checkpoint and returns how many entries it
// covers.
func CheckpointSize(checkpoint []byte, verifierKey string) (int64, error) {
	h, err := openCheckpoint(checkpoint, verifierKey)
	if err != nil {
		return 0, err
	}
	return h.size, nil
}

// ProveConsistency proves from a log's directory, which may be a copy, that
// its first entries, old of them, are unchanged under a later checkpoint of
// the log. An empty checkpoint means the newest in the directory.
func ProveConsistency(dir, verifierKey string, old int64, checkpoint []byte) (Consistency, error) {
	c, err := proveConsistency(dir, verifierKey, old, checkpoint)
	if err != nil {
		return Consistency{}, fmt.Errorf("prove consistency: %w", err)
	}
	return c, nil
}

// proveConsistency does the work of ProveConsistency.
func proveConsistency(dir, verifierKey string, old int64, checkpoint []byte) (Consistency, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Consistency{}, fmt.Errorf("verifier key: %w", err)
	}
	h, err := readCheckpoint(dir, v)
	if err == nil && len(checkpoint) > 0 {
		h, err = parseCheckpoint(checkpoint, v)
	}
	switch {
	case err != nil:
		return Consistency{}, err
	case old < 0 || old > h.size:
		return Consistency{}, fmt.Errorf("the later checkpoint covers %d entries, the earlier one %d", h.size, old)
	}
	c := Consistency{Old: old, Checkpoint: string(h.note)}
	if old == 0 || old == h.size {
		return c, nil // nothing lies between, RFC 6962 §2.1.2
	}
	tree := tlog.Tree{N: h.size, Hash: h.root}
	if c.Hashes, err = tlog.ProveTree(h.size, old, tlog.TileHashReader(tree, tiles{dir})); err != nil {
		return Consistency{}, fmt.Errorf("from %d to %d entries: %w", old, h.size, err)
	}
	return c, nil
}

// VerifyConsistency checks a proof against the earlier checkpoint and the
// log's verifier key, and returns the size of the later one. It needs nothing
// but its arguments.
func VerifyConsistency(c Consistency, earlier []byte, verifierKey string) (int64, error) {
	size, err := verifyConsistency(c, earlier, verifierKey)
	if err != nil {
		return 0, fmt.Errorf("verify consistency: %w", err)
	}
	return size, nil
}

// verifyConsistency does the work of VerifyConsistency.
func verifyConsistency(c Consistency, earlier []byte, verifierKey string) (int64, error) {
	old, err := openCheckpoint(earlier, verifierKey)
	if err != nil {
		return 0, fmt.Errorf("the earlier one: %w", err)
	}
	h, err := openCheckpoint([]byte(c.Checkpoint), verifierKey)
	switch {
	case err != nil:
		return 0, fmt.Errorf("the later one: %w", err)
	case old.size != c.Old:
		return 0, fmt.Errorf("the proof is from %d entries on, the earlier checkpoint covers %d", c.Old, old.size)
	case old.size > h.size:
		return 0, fmt.Errorf("the later checkpoint covers %d entries, the earlier one %d", h.size, old.size)
	case old.size == 0 && old.root != (&tree{}).root():
		return 0, errors.New("the earlier checkpoint has a root without entries")
	case old.size == 0, old.size == h.size && old.root == h.root:
		if len(c.Hashes) != 0 {
			return 0, errors.New("there are hashes where none are needed")
		}
		return h.size, nil
	case old.size == h.size:
		return 0, fmt.Errorf("two roots at %d entries: the log was forked", h.size)
	}
	if err := tlog.CheckTree(c.Hashes, h.size, h.root, old.size, old.root); err != nil {
		return 0, fmt.Errorf("the first %d of %d entries: %w", old.size, h.size, err)
	}
	return h.size, nil
}

// openCheckpoint verifies a checkpoint by a key in its text form.
func openCheckpoint(checkpoint []byte, verifierKey string) (*head, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return nil, fmt.Errorf("verifier key: %w", err)
	}
	h, err := parseCheckpoint(checkpoint, v)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return h, nil
}
