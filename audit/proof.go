// This file holds inclusion proofs: that one entry is under a checkpoint.

package audit

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Proof proves offline that an entry is in the log that a checkpoint signs.
type Proof struct {
	Checkpoint string          `json:"checkpoint"` // the signed note
	Index      int64           `json:"index"`
	Entry      json.RawMessage `json:"entry"`  // the payload, byte for byte
	Hashes     []tlog.Hash     `json:"hashes"` // RFC 6962 §2.1.1 audit path
}

// Prove proves that an entry is under the newest checkpoint.
func (l *Log) Prove(index int64) (Proof, error) {
	return prove(l.cfg.Dir, index, l.head.Load())
}

// ProveInclusion proves that an entry is under the checkpoint of a log's
// directory, which may be a copy. VerifyInclusion is what checks it.
func ProveInclusion(dir, verifierKey string, index int64) (Proof, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: verifier key: %w", index, err)
	}
	h, err := readCheckpoint(dir, v)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", index, err)
	}
	return prove(dir, index, h)
}

// prove reads entry and path.
func prove(dir string, index int64, h *head) (Proof, error) {
	if index < 0 || index >= h.size {
		return Proof{}, fmt.Errorf("prove entry %d: the checkpoint covers %d entries", index, h.size)
	}
	payload, err := readPayload(dir, index)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", index, err)
	}
	tree := tlog.Tree{N: h.size, Hash: h.root}
	path, err := tlog.ProveRecord(h.size, index, tlog.TileHashReader(tree, tiles{dir}))
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", index, err)
	}
	return Proof{Checkpoint: string(h.note), Index: index, Entry: payload, Hashes: path}, nil
}

// readPayload reads one entry's payload.
func readPayload(dir string, index int64) (payload []byte, err error) {
	firsts, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	segment := int64(-1)
	for _, first := range firsts {
		if first <= index {
			segment = first
		}
	}
	if segment < 0 {
		return nil, ErrDropped
	}
	at := position{segment: segment, offset: segmentHead, index: segment}
	_, err = scanSegment(dir, at, index, index+1, func(_ int64, f frame) error {
		payload = append([]byte(nil), f.payload...)
		return nil
	})
	if err == nil && payload == nil {
		err = errors.New("it is missing")
	}
	return payload, err
}

// VerifyInclusion checks a proof against the log's verifier key and returns
// the entry it proves. It needs nothing but its arguments.
func VerifyInclusion(p Proof, verifierKey string) (Entry, error) {
	e, err := verifyInclusion(p, verifierKey)
	if err != nil {
		return Entry{}, fmt.Errorf("verify entry %d: %w", p.Index, err)
	}
	return e, nil
}

// verifyInclusion does the work of VerifyInclusion.
func verifyInclusion(p Proof, verifierKey string) (Entry, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Entry{}, fmt.Errorf("verifier key: %w", err)
	}
	h, err := parseCheckpoint([]byte(p.Checkpoint), v)
	if err != nil {
		return Entry{}, fmt.Errorf("checkpoint: %w", err)
	}
	if p.Index < 0 || p.Index >= h.size {
		return Entry{}, fmt.Errorf("the checkpoint covers %d entries", h.size)
	}
	if err := tlog.CheckRecord(p.Hashes, h.size, h.root, p.Index, tlog.RecordHash(p.Entry)); err != nil {
		return Entry{}, err
	}
	return decodeEntry(p.Index, p.Entry)
}
