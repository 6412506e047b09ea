// This file holds the way back from a backup, and what a server makes of the
// difference between a restored store and the log.

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/ca/store/bolt"
	"github.com/aval-id/aval/identity"
)

// Restored says what Restore did.
type Restored struct {
	// From is the position that the backup was taken at, To the new one.
	From store.Position `json:"from"`
	To   store.Position `json:"to"`
	// Taken is when the backup was made.
	Taken time.Time `json:"taken"`
}

// Restore replaces the store in a data directory by a backup, in a new epoch,
// so that every node takes everything anew. The backup is verified first; no
// server may run. Keys, certificates and logs are not part of a backup and
// stay as they are. The next start records the act, keeps evictions that the
// log holds and the backup does not, and the keys that nodes have used since, and
// voids every join token.
func Restore(backup, dataDir string) (Restored, error) {
	if err := secureDir(dataDir); err != nil {
		return Restored{}, err
	}
	lock, err := lockDir(dataDir, time.Second)
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	defer lock.Close()
	marker := filepath.Join(dataDir, restoredFile)
	// The marker of an earlier restore that no start has seen yet must
	// outlive this one's failure.
	earlier, err := os.ReadFile(marker)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	// The marker comes first: without it a crash would hide the restore.
	if err := audit.WriteFile(marker, []byte("{}\n"), 0o600); err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	head, to, err := bolt.Restore(backup, filepath.Join(dataDir, storeFile), time.Now())
	if err != nil {
		if earlier != nil {
			return Restored{}, errors.Join(err, audit.WriteFile(marker, earlier, 0o600))
		}
		return Restored{}, errors.Join(err, os.Remove(marker))
	}
	r := Restored{From: head.Position, To: to, Taken: head.Time}
	text, err := json.Marshal(r)
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	if err := audit.WriteFile(marker, append(text, '\n'), 0o600); err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	return r, nil
}

// reconcile brings the nodes of a restored store up to the log, which a
// restore does not touch, and records the restore.
func (s *Server) reconcile(ctx context.Context, now time.Time) error {
	marker := filepath.Join(s.cfg.DataDir, restoredFile)
	text, err := os.ReadFile(marker)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("restored store: %w", err)
	}
	var r Restored
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("restored store: %s: %w", marker, err)
	}
	latest, err := s.nodesOfLog()
	if err != nil {
		return fmt.Errorf("restored store: %w", err)
	}
	if err := s.reconcileRollover(ctx, now); err != nil {
		return fmt.Errorf("restored store: %w", err)
	}
	if err := s.reconcileRevocations(ctx, now); err != nil {
		return fmt.Errorf("restored store: %w", err)
	}
	// A token that was used since the backup is unused again in it: whoever
	// finds it could join with another key.
	if err := s.nodes.dropGrants(ctx); err != nil {
		return fmt.Errorf("restored store: %w", err)
	}
	for id, seen := range latest {
		if err := s.reconcileNode(ctx, id, seen); err != nil {
			return fmt.Errorf("restored store: %w", err)
		}
	}
	position := s.store.Position()
	_, err = s.recorder.RecordAll(ctx, []audit.Event{{Time: now, Kind: audit.KindStoreRestored, Verdict: audit.VerdictDone,
		Epoch: position.Epoch, Revision: position.Revision,
		Detail: fmt.Sprintf("from the backup of %s taken at %s", r.From, r.Taken.UTC().Format(time.RFC3339))}})
	if err != nil {
		return notRecorded("restore", err)
	}
	if err := os.Remove(marker); err != nil {
		return fmt.Errorf("restored store: %w", err)
	}
	return nil
}

// loggedNode is what the log says of a node last.
type loggedNode struct {
	keys    []string
	evicted time.Time
	invited bool      // a join token was made after the eviction
	until   time.Time // when the last of what it was issued ends
}

// nodesOfLog reads all of the authority log. Only a restore pays for that.
func (s *Server) nodesOfLog() (map[string]loggedNode, error) {
	latest := map[string]loggedNode{}
	err := s.authorityLog.Read(s.authorityLog.Stats().First, func(e audit.Entry) error {
		n := latest[e.Node]
		switch e.Kind {
		case audit.KindTokenCreated:
			n.invited = true
		case audit.KindNodeAttested:
			// The record comes first: an attestation that was under way when
			// its node was evicted stands in the log, and admitted nobody.
			if !n.evicted.IsZero() && !n.invited {
				return nil
			}
			n = loggedNode{keys: []string{e.KeySHA256}, until: n.until}
		case audit.KindNodeRenewed:
			// The same goes for a renewal by a key that counted no more.
			if by, ok := strings.CutPrefix(e.Detail, renewedBy); ok && !slices.Contains(n.keys, by) {
				return nil
			}
			n.keys = append(slices.Clone(n.keys[max(0, len(n.keys)-1):]), e.KeySHA256)
		case audit.KindNodeEvicted:
			n.evicted, n.invited = e.Time, false
		case audit.KindIssuance:
			if e.Node == "" || !e.NotAfter.After(n.until) {
				return nil
			}
			n.until = e.NotAfter
		default:
			return nil
		}
		latest[e.Node] = n
		return nil
	})
	return latest, err
}

func (s *Server) reconcileNode(ctx context.Context, text string, seen loggedNode) error {
	id, err := identity.ParseID(text)
	if err != nil {
		return nil // not a node of ours; nothing to bring up to date
	}
	node, ok := s.nodes.byID(id)
	if !ok {
		return nil
	}
	if !seen.evicted.IsZero() {
		_, err := s.evict(ctx, node.Name, seen.evicted)
		return err
	}
	if len(seen.keys) == 0 {
		seen.keys = node.Keys
	}
	if slices.Equal(node.Keys, seen.keys) && !seen.until.After(node.NotAfter) {
		return nil
	}
	_, err = s.nodes.update(ctx, node.Name, func(current ca.Node, _ bool) (ca.Node, bool, error) {
		if current.Evicted {
			return current, true, nil
		}
		current.Keys = seen.keys
		if seen.until.After(current.NotAfter) {
			current.NotAfter = seen.until
		}
		return current, false, nil
	})
	return err
}
