// This file holds checkpoints: their text, their making, and the loop that
// makes them.

package audit

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const checkpointFile = "checkpoint"

// checkpointText is the body of a C2SP tlog-checkpoint.
func checkpointText(origin string, size int64, root tlog.Hash) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, root)
}

// sign makes a checkpoint.
func (l *Log) sign(size int64, root tlog.Hash) (*head, error) {
	text, err := note.Sign(&note.Note{Text: checkpointText(l.signer.Name(), size, root)}, l.signer)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return &head{note: text, size: size, root: root}, nil
}

// parseCheckpoint parses a signed checkpoint that the verifier's key signed
// for the verifier's log. Anything but the three lines that checkpointText
// writes is refused.
func parseCheckpoint(text []byte, v note.Verifier) (*head, error) {
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return nil, err
	}
	for _, sig := range n.Sigs {
		// The note format leaves unused bits of the base64 alone; here no
		// byte of a checkpoint is free.
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
			return nil, fmt.Errorf("signature: %w", err)
		}
	}
	var origin, root string
	var size int64
	if _, err := fmt.Sscanf(n.Text, "%s\n%d\n%s\n", &origin, &size, &root); err != nil {
		return nil, errors.New("it is not origin, size and root")
	}
	h, err := tlog.ParseHash(root)
	if err != nil || size < 0 || checkpointText(origin, size, h) != n.Text {
		return nil, errors.New("it is not origin, size and root")
	}
	if origin != v.Name() {
		return nil, fmt.Errorf("it is of log %q, the key is of %q", origin, v.Name())
	}
	return &head{note: text, size: size, root: h}, nil
}

// CheckpointNow writes the tiles and a signed checkpoint over everything
// that is durable at the time of the call, unless the newest covers it.
func (l *Log) CheckpointNow(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("checkpoint: %w", context.Cause(ctx))
	}
	l.treeMu.Lock()
	defer l.treeMu.Unlock()
	for {
		err := l.advance()
		if noSpace(err) && l.giveUpReserve() {
			l.setFull(true, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		return nil
	}
}

// advance moves tree, tiles and checkpoint to the durable end. What it
// could not write stays for the next call. The caller holds treeMu.
func (l *Log) advance() error {
	if err := l.growTree(); err != nil {
		return err
	}
	if l.tree.size == l.head.Load().size {
		return nil
	}
	dirs := map[string]bool{}
	for len(l.unsaved) > 0 {
		t := l.unsaved[0]
		if err := l.saveTile(t.Tile, t.hashes, dirs); err != nil {
			return err
		}
		t.W = 1
		l.stale = append(l.stale, filepath.Dir(filepath.Join(l.cfg.Dir, tilePath(t.Tile))))
		l.unsaved = l.unsaved[1:]
	}
	l.unsaved = nil
	var err error
	l.tree.partial(func(t tlog.Tile, hashes []tlog.Hash) {
		if err == nil {
			err = l.saveTile(t, hashes, dirs)
		}
	})
	if err != nil {
		return err
	}
	for dir := range dirs {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	h, err := l.sign(l.tree.size, l.tree.root())
	if err != nil {
		return err
	}
	if err := WriteFile(filepath.Join(l.cfg.Dir, checkpointFile), h.note, 0o600); err != nil {
		return err
	}
	h.made = now()
	l.head.Store(h)
	for _, dir := range l.stale {
		// No checkpoint needs them any more; a reader of an older one takes
		// the beginning of the full tile.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	l.stale = nil
	return nil
}

// growTree appends the leaves of everything durable to the tree.
func (l *Log) growTree() error {
	l.mu.Lock()
	size, hashes := l.durable, l.pending
	l.pending = nil
	l.treeEnd = l.tree.size + int64(len(hashes))
	l.mu.Unlock()
	for _, h := range hashes {
		l.tree.append(h, l.keepTile)
	}
	if l.tree.size == size {
		return nil
	}
	// More came than is kept in memory: read the rest back.
	err := l.scan(l.tree.size, size, func(index int64, f frame) error {
		l.tree.append(tlog.RecordHash(f.payload), l.keepTile)
		return nil
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = l.pending[:0]
	l.treeEnd = l.tree.size
	return err
}

// saveTile writes a tile and notes its directory for a sync.
func (l *Log) saveTile(t tlog.Tile, hashes []tlog.Hash, dirs map[string]bool) error {
	path := filepath.Join(l.cfg.Dir, tilePath(t))
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		for up := filepath.Dir(dir); len(up) >= len(l.cfg.Dir); up = filepath.Dir(up) {
			dirs[up] = true
		}
	}
	dirs[dir] = true
	return replaceFile(path, tileData(hashes), 0o600)
}

// Run makes a checkpoint within Config.CheckpointEvery of each append and
// keeps the log within its quota. It returns when the context ends, after a
// last checkpoint, or when the log can't be written any more. A full disk
// ends nothing: the checkpoint follows when there is space. Beside it Run
// keeps the summaries that searches use.
func (l *Log) Run(ctx context.Context) error {
	beside, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { l.summaries(beside) })
	defer wg.Wait()
	defer cancel()
	pause := l.cfg.CheckpointEvery / 2 // the other half is for the writing
	for {
		stop := l.Wait(ctx, l.head.Load().size)
		if ctx.Err() == nil && stop != nil {
			return stop
		}
		if stop == nil {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
		// The last checkpoint is made although the context has ended.
		err := l.CheckpointNow(context.WithoutCancel(ctx))
		if err == nil {
			err = l.prune(context.WithoutCancel(ctx))
		}
		switch {
		case err != nil && !noSpace(err) && !errors.Is(err, ErrDiskFull):
			return err
		case err != nil:
			l.cfg.Logger.Warn("audit checkpoint waits for disk space", "dir", l.cfg.Dir, "error", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}
