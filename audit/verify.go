// This file holds the verifier of a whole log, on a copy or on a directory
// that a server is writing to.

package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// VerifyOptions is what a verifier may know besides the key.
type VerifyOptions struct {
	// Checkpoints are earlier signed checkpoints of the log, as agents and
	// operators keep them. The log must be a continuation of each, which
	// shows a history rewritten even by someone who holds the key.
	Checkpoints [][]byte
}

// Report is what a verification found. The first finding ends it.
type Report struct {
	Log            string `json:"log"`              // origin
	Entries        int64  `json:"entries"`          // sound entries so far, counting dropped ones
	First          int64  `json:"first,omitempty"`  // oldest entry that is kept
	CheckpointSize int64  `json:"checkpoint_size"`  // entries that are proved, not only chained
	RootHash       string `json:"root_hash"`        // base64, of the checkpoint
	Kept           int    `json:"kept_checkpoints"` // earlier checkpoints that the log continues
	Verified       bool   `json:"verified"`
	BadIndex       *int64 `json:"bad_index,omitempty"` // the first entry that is not as it was recorded
	BadTile        string `json:"bad_tile,omitempty"`  // path of a tile that is not as it was written
	BadCheckpoint  bool   `json:"bad_checkpoint,omitempty"`
	Detail         string `json:"detail,omitempty"` // one line for a person
}

// Verify checks every entry of the log in dir: each frame against its
// checksum and the chain, all under the checkpoint against the tiles and the
// signed root, and the log against earlier checkpoints. Entries after the
// checkpoint are checked against the chain only. An error means that the
// check could not be made; what it found is in the report. A server may
// append meanwhile.
func Verify(dir, verifierKey string, opts VerifyOptions) (Report, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Report{}, fmt.Errorf("verify %s: verifier key: %w", dir, err)
	}
	var kept []*head
	for i, text := range opts.Checkpoints {
		h, err := parseCheckpoint(text, v)
		if err != nil {
			return Report{}, fmt.Errorf("verify %s: kept checkpoint %d: %w", dir, i, err)
		}
		kept = append(kept, h)
	}
	slices.SortFunc(kept, func(a, b *head) int { return int(min(max(a.size-b.size, -1), 1)) })
	const tries = 20
	for range tries {
		c := check{dir: dir, kept: kept, report: Report{Log: v.Name()}}
		err := c.run(v)
		switch {
		case !c.report.Verified && c.moved():
			// The quota dropped segments under our feet: look again.
		case err != nil:
			return Report{}, fmt.Errorf("verify %s: %w", dir, err)
		default:
			return c.report, nil
		}
	}
	return Report{}, fmt.Errorf("verify %s: the quota drops entries faster than they can be read; verify a copy", dir)
}

// check is one verification under way.
type check struct {
	dir    string
	head   *head
	kept   []*head // smallest first; those behind the tree are taken off
	first  int64   // oldest entry that is kept
	told   int64   // the log says that entries below this were dropped
	tree   tree
	odd    *oddTile // first tile that differs from the ledger
	report Report
}

// oddTile is a tile that differs from what the ledger gives.
type oddTile struct {
	tile tlog.Tile
	at   int // position of the first hash that differs, or -1: it can't be read
}

// run fills in the report.
func (c *check) run(v note.Verifier) error {
	// In this order, as what the quota drops is under a checkpoint before.
	firsts, err := listSegments(c.dir)
	if err != nil {
		return err
	}
	if err := c.readHead(v); err != nil {
		return err
	}
	if len(firsts) == 0 { // it may just have begun
		if firsts, err = listSegments(c.dir); err != nil {
			return err
		}
	}
	switch {
	case len(firsts) == 0 && c.head.size > 0:
		c.badEntry(0, "the ledger is missing")
		return nil
	case len(firsts) == 0:
		c.milestone()
		c.finish()
		return nil
	}
	c.first = firsts[0]
	c.report.First = c.first
	switch {
	case c.report.BadCheckpoint && c.first > 0:
		return nil // nothing proves the beginning
	case c.first > c.head.size:
		c.badEntry(c.head.size, fmt.Sprintf("the ledger begins with entry %d", c.first))
		return nil
	}
	t, badTile, err := loadTree(c.dir, c.first)
	if err != nil {
		c.report.BadTile, c.report.Detail = badTile, err.Error()
		return nil
	}
	c.tree = *t
	for len(c.kept) > 0 && c.kept[0].size < c.first {
		c.kept = c.kept[1:] // lies in what was dropped
	}
	if err := c.walk(); err != nil {
		return err
	}
	c.finish()
	return nil
}

// readHead reads the checkpoint. One that is not the log's is a finding.
func (c *check) readHead(v note.Verifier) (err error) {
	c.head, err = readCheckpoint(c.dir, v)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return err
	case err != nil:
		c.report.BadCheckpoint = true
		c.report.Detail = err.Error()
		c.head = &head{}
	default:
		c.report.CheckpointSize, c.report.RootHash = c.head.size, c.head.root.String()
	}
	return nil
}

// walk checks the entries one after the other.
func (c *check) walk() error {
	w, err := walkFrom(c.dir, c.first)
	if errors.Is(err, errHead) {
		c.badEntry(c.first, err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	defer w.close()
	for tries := 0; ; {
		if c.milestone(); c.bad() {
			return nil
		}
		index := w.index()
		f, leaf, err := w.next()
		switch {
		case err == nil:
			tries = 0
			c.note(index, f)
			c.tree.append(leaf, c.compare)
			continue
		case errors.Is(err, io.EOF) || errors.Is(err, errShort) && index >= c.head.size:
			return nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			return err
		case index >= c.head.size && tries < 5:
			// The server may have cut back a refused write and begun
			// another between two of our reads.
			tries++
			time.Sleep(10 * time.Millisecond)
		default:
			c.badEntry(index, err.Error())
			return nil
		}
	}
}

// note takes the log's own word on what its quota dropped, where the
// checkpoint covers it. What a node tells is not the log's own.
func (c *check) note(index int64, f frame) {
	if c.first == 0 || index >= c.head.size || !bytes.Contains(f.payload, []byte(`"kind":"loss"`)) {
		return
	}
	if e, err := decodeEntry(index, f.payload); err == nil && e.Kind == KindLoss && e.Node == "" && e.Reporter == "" {
		c.told = max(c.told, int64(e.KeptFrom))
	}
}

// milestone compares roots where a checkpoint ends at the tree's size.
func (c *check) milestone() {
	for len(c.kept) > 0 && c.kept[0].size == c.tree.size {
		if c.kept[0].root != c.tree.root() {
			c.report.Detail = fmt.Sprintf("the first %d entries are not those that an earlier checkpoint was signed over: history was rewritten by someone who holds the key, or was forked", c.tree.size)
			return
		}
		c.report.Kept++
		c.kept = c.kept[1:]
	}
	if c.tree.size != c.head.size || c.report.BadCheckpoint {
		return
	}
	c.tree.partial(c.compare)
	if c.tree.root() == c.head.root {
		if c.odd != nil {
			c.report.BadTile = tilePath(c.odd.tile)
			c.report.Detail = "the tile is not that of the ledger, and the ledger is that of the checkpoint"
		}
		return
	}
	if i, ok := c.culprit(); ok {
		c.badEntry(i, "the entry is not the one that the checkpoint was signed over")
		return
	}
	c.report.Detail = "the ledger as a whole is not the one that the checkpoint was signed over"
	if c.odd != nil {
		c.report.BadTile = tilePath(c.odd.tile)
	}
}

// compare compares a tile on disk with the ledger's.
func (c *check) compare(t tlog.Tile, hashes []tlog.Hash) {
	end := (t.N*tileWidth + int64(t.W)) << (tileHeight * t.L)
	if c.odd != nil || c.report.BadCheckpoint || end > c.head.size {
		return
	}
	if t.L == 0 && c.first > 0 && end <= c.first {
		return // went with its entries
	}
	data, err := readTile(c.dir, t)
	if err != nil {
		c.odd = &oddTile{t, -1}
		return
	}
	if at := firstDifference(data, hashes); at >= 0 {
		c.odd = &oddTile{t, at}
	}
}

// culprit names the entry that differs from the tiles, if the tile that
// tells so is proved by the checkpoint.
func (c *check) culprit() (index int64, ok bool) {
	if c.odd == nil || c.odd.tile.L != 0 || c.odd.at < 0 {
		return 0, false
	}
	index = c.odd.tile.N*tileWidth + int64(c.odd.at)
	tree := tlog.Tree{N: c.head.size, Hash: c.head.root}
	_, err := tlog.TileHashReader(tree, tiles{c.dir}).ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
	return index, err == nil
}

// finish judges what is left when the ledger has ended.
func (c *check) finish() {
	c.report.Entries = c.tree.size
	switch {
	case c.bad() || c.report.BadCheckpoint:
	case c.tree.size < c.head.size:
		c.badEntry(c.tree.size, fmt.Sprintf("the ledger ends before it, and the checkpoint covers %d entries", c.head.size))
	case c.first > c.told:
		c.badEntry(c.told, "the entry is missing, and the log does not say that the quota dropped it")
	case len(c.kept) > 0:
		c.badEntry(c.tree.size, fmt.Sprintf("the ledger ends before it, and an earlier checkpoint covers %d entries", c.kept[0].size))
	default:
		c.report.Verified = true
	}
}

// bad reports whether there is a finding.
func (c *check) bad() bool {
	r := &c.report
	return r.BadIndex != nil || r.BadTile != "" || r.Detail != "" && !r.BadCheckpoint
}

// badEntry makes an entry the finding.
func (c *check) badEntry(index int64, detail string) {
	c.report.BadIndex = &index
	c.report.Entries = c.tree.size
	c.report.Detail = fmt.Sprintf("entry %d: %s", index, detail)
}

// moved reports whether the oldest segment is another than at the start.
func (c *check) moved() bool {
	firsts, err := listSegments(c.dir)
	return err == nil && len(firsts) > 0 && firsts[0] != c.first
}
