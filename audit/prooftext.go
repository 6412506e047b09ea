// This file holds proofs as text: the C2SP forms, which other tools read too.
//
// An inclusion proof is a C2SP tlog-proof. Its extra data is the entry's
// payload, so that one file and the verifier key are enough. A consistency
// proof has the form in which C2SP tlog-witness sends one: the line "old" and
// the earlier size, the hashes, an empty line, the later checkpoint.

package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	proofMagic = "c2sp.org/tlog-proof@v1"
	// maxProofBytes bounds a proof's text: an entry in base64, 63 hashes and a
	// checkpoint with its cosignatures.
	maxProofBytes  = 256 << 10
	maxProofHashes = 63 // RFC 6962 §2.1.1, of 2⁶³ entries
)

// Text is the proof as a C2SP tlog-proof. ParseProof reads it back.
func (p Proof) Text() []byte {
	b := fmt.Appendf(nil, "%s\nextra %s\nindex %d\n", proofMagic, base64.StdEncoding.EncodeToString(p.Entry), p.Index)
	return appendHashes(b, p.Hashes, p.Checkpoint)
}

// Text is the proof in the form of a C2SP tlog-witness request.
// ParseConsistency reads it back.
func (c Consistency) Text() []byte {
	return appendHashes(fmt.Appendf(nil, "old %d\n", c.Old), c.Hashes, c.Checkpoint)
}

// appendHashes ends a proof: a line for each hash, an empty one, the
// checkpoint.
func appendHashes(b []byte, hashes []tlog.Hash, checkpoint string) []byte {
	for _, h := range hashes {
		b = append(append(b, h.String()...), '\n')
	}
	return append(append(b, '\n'), checkpoint...)
}

// IsConsistency reports whether a proof's text is one of consistency.
func IsConsistency(text []byte) bool { return bytes.HasPrefix(text, []byte("old ")) }

// ParseProof parses a C2SP tlog-proof whose extra data is the entry, as Text
// writes it. It proves nothing, see VerifyInclusion.
func ParseProof(text []byte) (Proof, error) {
	p, err := parseProof(text)
	if err != nil {
		return Proof{}, fmt.Errorf("proof: %w", err)
	}
	return p, nil
}

// parseProof does the work of ParseProof.
func parseProof(text []byte) (p Proof, err error) {
	head, checkpoint, err := cutProof(text)
	if err != nil {
		return p, err
	}
	switch {
	case head[0] != proofMagic:
		return p, fmt.Errorf("the first line is not %q", proofMagic)
	case len(head) < 2 || !strings.HasPrefix(head[1], "extra "):
		return p, errors.New(`line 2 is not "extra" and the entry in base64`)
	case len(head) < 3:
		return p, errors.New(`line 3 is not "index" and a number`)
	}
	p.Checkpoint = checkpoint
	if p.Entry, err = base64.StdEncoding.Strict().DecodeString(head[1][len("extra "):]); err != nil {
		return p, fmt.Errorf("line 2: the entry: %w", err)
	}
	if len(p.Entry) > MaxEventBytes {
		return p, fmt.Errorf("line 2: the entry has %d bytes, more than %d", len(p.Entry), MaxEventBytes)
	}
	if p.Index, err = proofNumber(head[2], "index "); err != nil {
		return p, fmt.Errorf("line 3: %w", err)
	}
	p.Hashes, err = proofHashes(head[3:], 4)
	return p, err
}

// ParseConsistency parses the text of a consistency proof. It proves nothing,
// see VerifyConsistency.
func ParseConsistency(text []byte) (Consistency, error) {
	c, err := parseConsistency(text)
	if err != nil {
		return Consistency{}, fmt.Errorf("consistency proof: %w", err)
	}
	return c, nil
}

// parseConsistency does the work of ParseConsistency.
func parseConsistency(text []byte) (c Consistency, err error) {
	head, checkpoint, err := cutProof(text)
	if err != nil {
		return c, err
	}
	c.Checkpoint = checkpoint
	if c.Old, err = proofNumber(head[0], "old "); err != nil {
		return c, fmt.Errorf("line 1: %w", err)
	}
	c.Hashes, err = proofHashes(head[1:], 2)
	return c, err
}

// cutProof parts the lines before the empty one from the checkpoint.
func cutProof(text []byte) (head []string, checkpoint string, err error) {
	if len(text) > maxProofBytes {
		return nil, "", fmt.Errorf("it has %d bytes, more than %d", len(text), maxProofBytes)
	}
	lines, checkpoint, ok := strings.Cut(string(text), "\n\n")
	if !ok || checkpoint == "" {
		return nil, "", errors.New("there is no empty line with a checkpoint after it")
	}
	if strings.ContainsRune(lines, '\r') { // which base64 would pass over
		return nil, "", errors.New("lines end in a carriage return; they must end in a newline alone")
	}
	head = strings.Split(lines, "\n")
	if len(head) > maxProofHashes+3 {
		return nil, "", fmt.Errorf("more than %d hashes", maxProofHashes)
	}
	return head, checkpoint, nil
}

// proofNumber reads a decimal without sign and leading zeros.
func proofNumber(line, prefix string) (int64, error) {
	digits, ok := strings.CutPrefix(line, prefix)
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n < 0 || strconv.FormatInt(n, 10) != digits {
		return 0, fmt.Errorf("%q is not %q and a number", line, strings.TrimSpace(prefix))
	}
	return n, nil
}

// proofHashes reads one hash a line; first is the number of the first line.
func proofHashes(lines []string, first int) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for i, line := range lines {
		raw, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(raw) != tlog.HashSize || len(line) != 44 {
			return nil, fmt.Errorf("line %d: %q is not a SHA-256 hash in base64", first+i, line)
		}
		out = append(out, tlog.Hash(raw))
	}
	return out, nil
}
