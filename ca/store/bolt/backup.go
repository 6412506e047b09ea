// This file holds backups: a consistent copy of the file between a header
// that says what it is and a checksum over all of it, and the way back.

package bolt

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/aval-id/aval/ca/store"
)

// A backup is: magic, length of the header (4 bytes, big-endian), header
// (JSON), the bbolt file, SHA-256 of all that.
const (
	backupMagic    = "aval-store-backup/1\n"
	maxHeaderBytes = 64 << 10
)

// Header says what a backup holds.
type Header struct {
	Position store.Position `json:"position"`
	Time     time.Time      `json:"time"`
	Bytes    int64          `json:"bytes"` // of the bbolt file
}

// Backup writes a consistent copy of the store. Writers go on meanwhile.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	err := s.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		head, err := json.Marshal(Header{
			Position: store.Position{Epoch: toNumber(meta.Get(keyEpoch)), Revision: toNumber(meta.Get(keyRevision))},
			Time:     time.Now().UTC(),
			Bytes:    tx.Size(),
		})
		if err != nil {
			return err
		}
		sum := sha256.New()
		out := io.MultiWriter(&contextWriter{ctx, w}, sum)
		prefix := binary.BigEndian.AppendUint32([]byte(backupMagic), uint32(len(head)))
		if _, err := out.Write(append(prefix, head...)); err != nil {
			return err
		}
		if _, err := tx.WriteTo(out); err != nil {
			return err
		}
		_, err = w.Write(sum.Sum(nil))
		return err
	})
	if err != nil {
		return fmt.Errorf("store: backup: %w", err)
	}
	return nil
}

// contextWriter stops a long copy when its asker is gone.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// Restore makes the backup the store at path, in a new epoch above its own
// and above that of a store that is there. The backup is verified whole, in a
// temporary file beside path, before anything is replaced. A store that is
// open is refused with an error that wraps store.ErrLocked.
func Restore(backup, path string, now time.Time) (Header, store.Position, error) {
	fail := func(err error) (Header, store.Position, error) {
		return Header{}, store.Position{}, fmt.Errorf("restore %s: %w", backup, err)
	}
	unlock, err := lockExisting(path)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	temp := path + ".restore"
	defer os.Remove(temp)
	head, err := extract(backup, temp)
	if err != nil {
		return fail(err)
	}
	epoch := max(uint64(now.UnixMilli()), head.Position.Epoch+1)
	if old, err := epochOf(path); err == nil {
		epoch = max(epoch, old+1)
	}
	position, err := reopen(temp, head, epoch)
	if err != nil {
		return fail(err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fail(err)
	}
	return head, position, syncDir(filepath.Dir(path))
}

// extract verifies the backup's checksum and writes the file inside it.
func extract(backup, temp string) (Header, error) {
	f, err := os.Open(backup)
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Header{}, err
	}
	sum := sha256.New()
	in := bufio.NewReaderSize(f, 1<<20)
	head, err := readHeader(io.TeeReader(in, sum))
	if err != nil {
		return Header{}, err
	}
	raw, err := json.Marshal(head)
	if err != nil {
		return Header{}, err
	}
	if want := int64(len(backupMagic)+4+len(raw)) + head.Bytes + sha256.Size; head.Bytes < 0 || fi.Size() != want {
		return Header{}, fmt.Errorf("backup is %d bytes, its header says %d: it is cut short or damaged", fi.Size(), want)
	}
	if err := writeFile(temp, in, head.Bytes, sum); err != nil {
		return Header{}, err
	}
	trailer := make([]byte, sha256.Size)
	if _, err := io.ReadFull(in, trailer); err != nil {
		return Header{}, err
	}
	if !bytes.Equal(trailer, sum.Sum(nil)) {
		return Header{}, errors.New("backup is damaged: its checksum does not agree")
	}
	return head, nil
}

func readHeader(in io.Reader) (Header, error) {
	prefix := make([]byte, len(backupMagic)+4)
	if _, err := io.ReadFull(in, prefix); err != nil || string(prefix[:len(backupMagic)]) != backupMagic {
		return Header{}, errors.New("not a backup of a store")
	}
	n := binary.BigEndian.Uint32(prefix[len(backupMagic):])
	if n > maxHeaderBytes {
		return Header{}, errors.New("backup is damaged: its header is too long")
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(in, raw); err != nil {
		return Header{}, errors.New("backup is damaged: its header is cut short")
	}
	var h Header
	if err := json.Unmarshal(raw, &h); err != nil {
		return Header{}, fmt.Errorf("backup is damaged: header: %w", err)
	}
	return h, nil
}

func writeFile(path string, in io.Reader, n int64, sum hash.Hash) error {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.MultiWriter(out, sum), in, n)
	if err == nil {
		err = out.Sync()
	}
	if closed := out.Close(); err == nil {
		err = closed
	}
	return err
}

// reopen checks the extracted file as bbolt sees it and gives it its epoch.
func reopen(path string, head Header, epoch uint64) (store.Position, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return store.Position{}, fmt.Errorf("backup is damaged: %w", err)
	}
	defer db.Close()
	position := store.Position{Epoch: epoch}
	err = db.Update(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			return fmt.Errorf("backup is damaged: %w", err)
		}
		meta := tx.Bucket(bucketMeta)
		if meta == nil || tx.Bucket(bucketEntries) == nil || tx.Bucket(bucketHistory) == nil {
			return errors.New("backup is damaged: a bucket is missing")
		}
		position.Revision = toNumber(meta.Get(keyRevision))
		if position.Revision != head.Position.Revision {
			return fmt.Errorf("backup is damaged: it is at revision %d, its header says %d", position.Revision, head.Position.Revision)
		}
		return meta.Put(keyEpoch, number(epoch))
	})
	if err != nil {
		return store.Position{}, err
	}
	return position, db.Sync()
}

// lockExisting takes bbolt's lock on a store that is there.
func lockExisting(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, store.ErrLocked)
	}
	return func() { f.Close() }, nil
}

// epochOf reads the epoch of a store whose lock is held by lockExisting. A
// damaged store has none.
func epochOf(path string) (epoch uint64, err error) {
	copied := path + ".old"
	defer os.Remove(copied)
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(copied, raw, 0o600); err != nil {
		return 0, err
	}
	db, err := bbolt.Open(copied, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		if meta := tx.Bucket(bucketMeta); meta != nil {
			epoch = toNumber(meta.Get(keyEpoch))
		}
		return nil
	})
	return epoch, err
}
