// This file holds the data directory: its layout, its lock, and the checks of
// who may look into it.

package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aval-id/aval/audit"
)

// Layout of a data directory. Everything in it belongs to one server.
const (
	lockFile         = "lock"
	rootFile         = "root.pem"
	storeFile        = "store.db"
	restoredFile     = "restored"
	keysDir          = "keys"
	rootKeyFile      = "root.key"
	intermediateFile = "intermediate.pem" // in keysDir: key and chain together
	requestFile      = "requested.key"    // in keysDir: waits for its certificate
	importFile       = "imported.pem"     // in keysDir: waits for the next start
	auditDir         = "audit"

	// AuthorityLog and ConnectionsLog name the two logs: their directories
	// under DataDir/audit, and the log keys log-NAME.key under DataDir/keys.
	AuthorityLog   = "authority"
	ConnectionsLog = "connections"
)

// LogDir returns the directory of a log in a data directory.
func LogDir(dataDir, log string) string { return filepath.Join(dataDir, auditDir, log) }

// LogKeyFile returns the file of a log's private key in a data directory.
func LogKeyFile(dataDir, log string) string {
	return filepath.Join(dataDir, keysDir, "log-"+log+".key")
}

// LogVerifierFile returns the file that holds a log's verifier key as text.
func LogVerifierFile(dataDir, log string) string {
	return filepath.Join(dataDir, auditDir, log+".vkey")
}

// ErrLocked means that another server runs on the data directory.
var ErrLocked = errors.New("another server holds the data directory")

// secureDir makes dir, or checks that it is this user's alone.
func secureDir(dir string) error {
	if err := audit.PrivateDir(dir); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// checkKept refuses a directory that has a root, and so had a store and an
// authority log, where one of these is gone: a server that began with an empty
// one would forget evictions, or history, without a word.
func checkKept(dataDir string) error {
	for _, kept := range []struct{ name, path, mend string }{
		{"store", filepath.Join(dataDir, storeFile),
			"put it back or restore a backup; an empty file there begins with an empty store, and every node must join again"},
		{"authority log", filepath.Join(dataDir, auditDir, AuthorityLog),
			"put it back; an empty directory there begins a new log, which agents and earlier checkpoints will contradict"},
	} {
		_, err := os.Stat(kept.path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s %s is missing, and the root that belongs to it is there: %s", kept.name, kept.path, kept.mend)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", kept.name, err)
		}
	}
	return nil
}

// lockDir takes the directory's lock, waiting up to timeout for its holder.
func lockDir(dir string, timeout time.Duration) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-deadline.C:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
		case <-again.C:
		}
	}
}

// openLog opens one of the two logs with its key, and leaves its verifier key
// beside it for those who check it offline.
func openLog(cfg Config, name string, settings audit.Config) (*audit.Log, error) {
	key, err := audit.LoadOrCreateKey(LogKeyFile(cfg.DataDir, name))
	if err != nil {
		return nil, fmt.Errorf("%s log: %w", name, err)
	}
	settings.Dir = LogDir(cfg.DataDir, name)
	settings.Origin = cfg.TrustDomain.String() + "/" + name + "/" + cfg.Name
	settings.Key = key
	settings.Logger = cfg.Logger.With("log", name)
	log, err := audit.Open(settings)
	if err != nil {
		return nil, fmt.Errorf("%s log: %w", name, err)
	}
	path := LogVerifierFile(cfg.DataDir, name)
	text := []byte(log.VerifierKey() + "\n")
	if old, err := os.ReadFile(path); err == nil && string(old) == string(text) {
		return log, nil
	}
	if err := audit.WriteFile(path, text, 0o600); err != nil {
		log.Close()
		return nil, fmt.Errorf("%s log: %w", name, err)
	}
	return log, nil
}
