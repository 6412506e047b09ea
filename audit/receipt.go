// This file holds receipts: the server's signed promise that an entry has
// its place in the log.

package audit

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// receiptMagic begins what is signed. No checkpoint begins with it, as no
// log has this origin.
const receiptMagic = "aval-receipt/v1"

// Receipt says that an entry with this leaf hash is durable at this index
// of this log. Record returns it unsigned, as one signature costs more than
// the record does; Log.Sign signs one or many at the price of one.
//
// The signature is Ed25519 by the checkpoint key over five lines, each ended
// by a newline: "aval-receipt/v1", Log, First, Count, and the base64 root of
// the RFC 6962 tree over the leaf hashes of entries First to First+Count-1.
// Path leads from EntryHash to that root; it is empty where Count is 1.
type Receipt struct {
	Log       string     // the log's origin
	Index     int64      // of the entry
	EntryHash [32]byte   // RFC 6962 leaf hash of the entry's payload
	First     int64      // index of the first entry that the signature covers
	Count     int64      // entries that the signature covers; 0 while unsigned
	Path      [][32]byte // audit path of the entry among them
	Signature []byte     // 64 bytes, empty while unsigned
}

// receiptText is what a signature covers.
func receiptText(log string, first, count int64, root tlog.Hash) []byte {
	return fmt.Appendf(nil, "%s\n%s\n%d\n%d\n%s\n", receiptMagic, log, first, count, root)
}

// Sign signs receipts of this log with one signature. They must be of
// consecutive entries, as RecordAll returns them.
func (l *Log) Sign(receipts []Receipt) ([]Receipt, error) {
	if len(receipts) == 0 {
		return nil, nil
	}
	leaves := make([]tlog.Hash, len(receipts))
	for i, r := range receipts {
		if r.Log != l.signer.Name() || r.Index != receipts[0].Index+int64(i) {
			return nil, fmt.Errorf("sign receipts: entry %d of %s does not follow entry %d of %s", r.Index, r.Log, receipts[0].Index+int64(i)-1, l.signer.Name())
		}
		leaves[i] = r.EntryHash
	}
	first, count := receipts[0].Index, int64(len(receipts))
	rows := merkleRows(leaves)
	sig, err := l.signer.Sign(receiptText(l.signer.Name(), first, count, rows[len(rows)-1][0]))
	if err != nil {
		return nil, fmt.Errorf("sign receipts: %w", err)
	}
	out := make([]Receipt, len(receipts))
	for i, r := range receipts {
		r.First, r.Count, r.Signature = first, count, sig
		r.Path = rowsPath(rows, i)
		out[i] = r
	}
	return out, nil
}

// Verify reports whether the receipt is signed by the key, given as
// Log.VerifierKey returns it, and for that key's log.
func (r Receipt) Verify(verifierKey string) error {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return fmt.Errorf("verify receipt: verifier key: %w", err)
	}
	switch {
	case len(r.Signature) == 0:
		return errors.New("verify receipt: it is not signed")
	case r.Log != v.Name():
		return fmt.Errorf("verify receipt: it is of log %q, the key is of %q", r.Log, v.Name())
	case r.First < 0 || r.Count < 1 || r.Index < r.First || r.Index-r.First >= r.Count:
		return fmt.Errorf("verify receipt: entry %d is not among the %d from %d", r.Index, r.Count, r.First)
	}
	root, err := climb(r.EntryHash, r.Index-r.First, r.Count, r.Path)
	if err != nil {
		return fmt.Errorf("verify receipt: %w", err)
	}
	if !v.Verify(receiptText(r.Log, r.First, r.Count, root), r.Signature) {
		return errors.New("verify receipt: the signature is not this key's over this entry")
	}
	return nil
}

// merkleRows are the rows of the RFC 6962 tree over leaves, from the leaves
// to the root. A last hash without a sibling rises unchanged, which gives
// the same tree as the RFC's recursion.
func merkleRows(leaves []tlog.Hash) [][]tlog.Hash {
	rows := [][]tlog.Hash{leaves}
	for row := leaves; len(row) > 1; {
		up := make([]tlog.Hash, 0, (len(row)+1)/2)
		for i := 0; i+1 < len(row); i += 2 {
			up = append(up, tlog.NodeHash(row[i], row[i+1]))
		}
		if len(row)%2 == 1 {
			up = append(up, row[len(row)-1])
		}
		rows = append(rows, up)
		row = up
	}
	return rows
}

// rowsPath is the audit path of leaf i.
func rowsPath(rows [][]tlog.Hash, i int) [][32]byte {
	var path [][32]byte
	for _, row := range rows[:len(rows)-1] {
		if sibling := i ^ 1; sibling < len(row) {
			path = append(path, row[sibling])
		}
		i /= 2
	}
	return path
}

// climb computes the root from a leaf and its audit path.
func climb(leaf tlog.Hash, i, count int64, path [][32]byte) (tlog.Hash, error) {
	if len(path) > bits.Len64(uint64(count)) {
		return tlog.Hash{}, errors.New("the path is too long")
	}
	h := leaf
	for ; count > 1; i, count = i/2, (count+1)/2 {
		if i^1 >= count {
			continue
		}
		if len(path) == 0 {
			return tlog.Hash{}, errors.New("the path is too short")
		}
		if i%2 == 1 {
			h = tlog.NodeHash(path[0], h)
		} else {
			h = tlog.NodeHash(h, path[0])
		}
		path = path[1:]
	}
	if len(path) != 0 {
		return tlog.Hash{}, errors.New("the path is too long")
	}
	return h, nil
}
