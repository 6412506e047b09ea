// This file holds the quota: the oldest segments go when a log is over it.

package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// prune drops whole segments, oldest first, until the log is within its
// quota; the active one stays. That they go is recorded and under a
// checkpoint before they do, so that a verifier can tell this from theft.
// Tiles above the lowest level stay: the tree goes on over what was dropped.
func (l *Log) prune(ctx context.Context) error {
	keep, lost := l.overQuota()
	if lost == 0 {
		return nil
	}
	_, err := l.Record(ctx, Event{
		Time: now(), Kind: KindLoss, Verdict: VerdictDone, Reason: "quota",
		Lost: uint64(lost), KeptFrom: uint64(keep),
		Detail: fmt.Sprintf("entries below %d were dropped to keep the log within %d bytes", keep, l.cfg.Quota),
	})
	if err != nil {
		return err
	}
	if err := l.CheckpointNow(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	var gone []segment
	for len(l.segments) > 1 && l.segments[0].first < keep {
		gone = append(gone, l.segments[0])
		l.segments = l.segments[1:]
	}
	l.mu.Unlock()
	for _, s := range gone {
		if err := os.Remove(segmentPath(l.cfg.Dir, s.first)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("drop a segment: %w", err)
		}
		if err := dropSummary(l.cfg.Dir, s.first); err != nil {
			return err
		}
	}
	if err := syncDir(filepath.Join(l.cfg.Dir, ledgerDir)); err != nil {
		return fmt.Errorf("drop a segment: %w", err)
	}
	return l.pruneTiles(gone[0].first, keep)
}

// overQuota returns the first entry to keep and how many before it go.
func (l *Log) overQuota() (keep, lost int64) {
	if l.cfg.Quota == 0 {
		return 0, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	total := int64(0)
	for _, s := range l.segments {
		total += s.bytes
	}
	n := 0
	for n < len(l.segments)-1 && total > l.cfg.Quota {
		total -= l.segments[n].bytes
		n++
	}
	if n == 0 {
		return 0, 0
	}
	return l.segments[n].first, l.segments[n].first - l.segments[0].first
}

// pruneTiles removes the lowest tiles that hold nothing but hashes of
// dropped entries, from the one of entry from on. Their roots stay in the
// tiles above.
func (l *Log) pruneTiles(from, keep int64) error {
	for n := from / tileWidth; (n+1)*tileWidth <= keep; n++ {
		t := tlog.Tile{H: tileHeight, L: 0, N: n, W: tileWidth}
		if err := os.Remove(filepath.Join(l.cfg.Dir, tilePath(t))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("drop a tile: %w", err)
		}
	}
	return nil
}
