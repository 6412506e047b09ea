// This file holds the right edge of the Merkle tree (RFC 6962 §2.1) and the
// tiles that it leaves behind (C2SP tlog-tiles, height 8).

package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	tileDir    = "tile"
)

// tree is the part of a Merkle tree that still grows: at each level the
// hashes of the last tile, which is not full yet. Level 0 holds leaves, a
// hash at level n stands for 256ⁿ of them.
type tree struct {
	size   int64
	levels [][]tlog.Hash
}

// append adds a leaf. Tiles that become full are handed to full, lowest
// level first; the hashes are theirs to keep.
func (t *tree) append(h tlog.Hash, full func(tlog.Tile, []tlog.Hash)) {
	t.size++
	for level := 0; ; level++ {
		if level == len(t.levels) {
			t.levels = append(t.levels, nil)
		}
		t.levels[level] = append(t.levels[level], h)
		if len(t.levels[level]) < tileWidth {
			return
		}
		hashes := t.levels[level]
		t.levels[level] = nil
		n := t.size>>(tileHeight*(level+1)) - 1
		full(tlog.Tile{H: tileHeight, L: level, N: n, W: tileWidth}, hashes)
		h = perfectRoot(hashes)
	}
}

// partial returns the tiles that are begun and not full.
func (t *tree) partial(visit func(tlog.Tile, []tlog.Hash)) {
	for level, hashes := range t.levels {
		if len(hashes) > 0 {
			n := t.size >> (tileHeight * (level + 1))
			visit(tlog.Tile{H: tileHeight, L: level, N: n, W: len(hashes)}, hashes)
		}
	}
}

// root is the tree's head.
func (t *tree) root() tlog.Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	var head tlog.Hash
	begun := false
	for _, hashes := range t.levels {
		for end := len(hashes); end > 0; {
			width := end & -end // the smallest complete subtree at the end
			h := perfectRoot(hashes[end-width : end])
			if begun {
				h = tlog.NodeHash(h, head)
			}
			head, begun = h, true
			end -= width
		}
	}
	return head
}

// perfectRoot is the root over a power of two of hashes.
func perfectRoot(hashes []tlog.Hash) tlog.Hash {
	var row [tileWidth]tlog.Hash
	for n := copy(row[:], hashes); n > 1; n /= 2 {
		for i := range n / 2 {
			row[i] = tlog.NodeHash(row[2*i], row[2*i+1])
		}
	}
	return row[0]
}

// tilePath is a tile's path under the log's directory, as C2SP tlog-tiles
// names it: the height is not in it.
func tilePath(t tlog.Tile) string {
	rest, ok := strings.CutPrefix(t.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	if !ok {
		panic("audit: a tile of another height: " + t.Path())
	}
	return tileDir + "/" + rest
}

// tileData is a tile's content.
func tileData(hashes []tlog.Hash) []byte {
	b := make([]byte, 0, len(hashes)*tlog.HashSize)
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	return b
}

// readTile reads a tile's content. A partial tile that is gone is the
// beginning of the full one.
func readTile(dir string, t tlog.Tile) ([]byte, error) {
	want := t.W * tlog.HashSize
	b, err := os.ReadFile(filepath.Join(dir, tilePath(t)))
	if errors.Is(err, fs.ErrNotExist) && t.W < tileWidth {
		whole := t
		whole.W = tileWidth
		if b, err = os.ReadFile(filepath.Join(dir, tilePath(whole))); err == nil && len(b) == tileWidth*tlog.HashSize {
			b = b[:want]
		}
	}
	if err != nil {
		return nil, err
	}
	if len(b) != want {
		return nil, fmt.Errorf("%s: %d bytes, not %d", tilePath(t), len(b), want)
	}
	return b, nil
}

// loadTree reads the right edge of a tree of that size from the tiles. It
// proves nothing: the caller compares the root. The tile that could not be
// read is named.
func loadTree(dir string, size int64) (t *tree, bad string, err error) {
	t = &tree{size: size}
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		width := int(size>>(tileHeight*level)) % tileWidth
		var hashes []tlog.Hash
		if width > 0 {
			tile := tlog.Tile{H: tileHeight, L: level, N: size >> (tileHeight * (level + 1)), W: width}
			data, err := readEdge(dir, tile)
			if err != nil {
				return nil, tilePath(tile), err
			}
			for b := range chunks(data) {
				hashes = append(hashes, b)
			}
		}
		t.levels = append(t.levels, hashes)
	}
	return t, "", nil
}

// readEdge reads the beginning of a tile, from whichever wider version of
// it there is.
func readEdge(dir string, t tlog.Tile) ([]byte, error) {
	data, err := readTile(dir, t)
	if !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	for w := t.W + 1; w < tileWidth; w++ {
		wider := t
		wider.W = w
		b, wideErr := os.ReadFile(filepath.Join(dir, tilePath(wider)))
		if wideErr == nil && len(b) == w*tlog.HashSize {
			return b[:t.W*tlog.HashSize], nil
		}
	}
	return nil, err
}

// chunks yields the hashes in a tile's content.
func chunks(data []byte) func(yield func(tlog.Hash) bool) {
	return func(yield func(tlog.Hash) bool) {
		for len(data) >= tlog.HashSize {
			if !yield(tlog.Hash(data[:tlog.HashSize])) {
				return
			}
			data = data[tlog.HashSize:]
		}
	}
}

// firstDifference is the position of the first hash in which data differs
// from hashes, or -1.
func firstDifference(data []byte, hashes []tlog.Hash) int {
	for i := range hashes {
		lo := i * tlog.HashSize
		if lo+tlog.HashSize > len(data) || !bytes.Equal(data[lo:lo+tlog.HashSize], hashes[i][:]) {
			return i
		}
	}
	return -1
}

// tiles reads a log's tiles for x/mod's proofs.
type tiles struct{ dir string }

// Height implements tlog.TileReader.
func (tiles) Height() int { return tileHeight }

// ReadTiles implements tlog.TileReader.
func (t tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(want))
	for i, tile := range want {
		data, err := readTile(t.dir, tile)
		if err != nil {
			return nil, err
		}
		out[i] = data
	}
	return out, nil
}

// SaveTiles implements tlog.TileReader: the tiles are there already.
func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}
