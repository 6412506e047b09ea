// This file holds Hashes, the digests of executables, kept by inode.

package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// maxHashed is how many digests are kept; the whole store is dropped when it
// is full, since digests are cheap to find again.
const maxHashed = 1024

// maxExecutable bounds what is read for a digest, in bytes. A larger
// executable has no unix.sha256.
const maxExecutable = 1 << 30

// errUnreadable says that an executable has no digest, which is no error of
// the process.
var errUnreadable = errors.New("executable may not be read")

// Hashes finds the SHA-256 of executables and keeps them by device, inode,
// size and times. The zero value is ready. It is safe for concurrent use.
type Hashes struct {
	mu   sync.Mutex
	sums map[file]string
}

// of returns the digest of the file that path leads to, which must be want.
func (h *Hashes) of(path string, want file) (string, error) {
	if want.ino == 0 || want.size > maxExecutable {
		return "", errUnreadable
	}
	h.mu.Lock()
	sum, ok := h.sums[want]
	h.mu.Unlock()
	if ok {
		return sum, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", errUnreadable
	}
	defer f.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, io.LimitReader(f, maxExecutable+1)); err != nil {
		return "", fmt.Errorf("digest of executable: %w", err)
	}
	// The file is looked at after it was read, so that a digest is never
	// kept under the times of an earlier content.
	fi, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("digest of executable: %w", err)
	}
	sum = hex.EncodeToString(digest.Sum(nil))
	if fileOf(fi) != want {
		return "", errUnreadable
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sums == nil || len(h.sums) >= maxHashed {
		h.sums = make(map[file]string)
	}
	h.sums[want] = sum
	return sum, nil
}
