// Package history keeps the signed checkpoints of the servers' logs that this
// agent was shown, so that a log that is cut, forked or rewritten later,
// even by a server that holds the key, contradicts what is kept here.
//
// It owns the files below one directory: one for each log, of JSON lines,
// thinned as they grow. It leaves to package audit what a log must prove. It
// stands on the second floor, inside the agent's room.
package history

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
	"golang.org/x/mod/sumdb/note"
)

const (
	// maxKept is how many checkpoints of one log are kept before they are
	// thinned.
	maxKept = 512
	// recent is how many of the newest thinning leaves alone.
	recent = 128
	// maxNoteBytes bounds one checkpoint.
	maxNoteBytes = 16 << 10

	suffix = ".jsonl"
)

// ErrContradiction says that a log contradicts what it said before: it was
// cut, forked or rewritten, or its key changed.
var ErrContradiction = errors.New("the log contradicts its earlier checkpoint")

// Checkpoint is one signed statement of a log, as it was shown.
type Checkpoint struct {
	Time        time.Time `json:"time"` // when it was seen first
	Log         string    `json:"log"`
	VerifierKey string    `json:"verifier_key"`
	Note        string    `json:"note"` // signed note, C2SP tlog-checkpoint
	Size        int64     `json:"size"`
	root        string
}

// History keeps checkpoints in a directory. It is safe for concurrent use.
type History struct {
	dir string

	mu   sync.Mutex
	logs map[string][]Checkpoint // oldest first, guarded by mu
}

// Open reads the directory and makes it if it is absent. A torn last line is
// cut off. A file that cannot be read for another reason is set aside under
// the suffix ".damaged", with a warning, so that it never keeps an agent from
// starting.
func Open(dir string, logger *slog.Logger) (*History, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("checkpoints: %w", err)
	}
	names, err := files(dir)
	if err != nil {
		return nil, err
	}
	h := &History{dir: dir, logs: make(map[string][]Checkpoint)}
	for _, name := range names {
		kept, whole, err := read(name)
		if err == nil {
			err = cut(name, whole)
		} else {
			logger.Warn("kept checkpoints are damaged and set aside", "file", name, "error", err)
			err = os.Rename(name, name+".damaged")
		}
		if err != nil {
			return nil, fmt.Errorf("checkpoints: %w", err)
		}
		for _, c := range kept {
			h.logs[c.Log] = append(h.logs[c.Log], c)
		}
	}
	return h, nil
}

// Load reads every checkpoint of a directory, by log and in the order in
// which they were seen. A torn last line is left out, as is a directory that
// is not there.
func Load(dir string) ([]Checkpoint, error) {
	names, err := files(dir)
	if err != nil {
		return nil, err
	}
	var out []Checkpoint
	for _, name := range names {
		kept, _, err := read(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("checkpoints: %w", err)
		}
		out = append(out, kept...)
	}
	return out, nil
}

func files(dir string) ([]string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("checkpoints: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// read parses one file and returns how many of its bytes are whole lines.
// After an error there are no checkpoints.
func read(name string) (kept []Checkpoint, whole int64, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, 0, err
	}
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte{'\n'}) {
			break
		}
		c, err := parseLine(line)
		if err != nil {
			return nil, 0, fmt.Errorf("%s:%d: %w", name, len(kept)+1, err)
		}
		kept = append(kept, c)
		whole += int64(len(line))
	}
	return kept, whole, nil
}

// cut shortens a file to its whole lines, so that the next is not appended to
// a torn one.
func cut(name string, whole int64) error {
	fi, err := os.Stat(name)
	if err != nil || fi.Size() == whole {
		return err
	}
	return os.Truncate(name, whole)
}

// Keep verifies a checkpoint's signature and keeps it if it is new. The first
// key seen for a log is its key for good. A contradiction is kept as well, as
// evidence, and returned as ErrContradiction.
func (h *History) Keep(log string, text []byte, verifierKey string, now time.Time) error {
	c, err := verify(log, text, verifierKey)
	if err != nil {
		return fmt.Errorf("checkpoint of log %s: %w", log, err)
	}
	c.Time = now.UTC()
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.logs[log]
	if len(kept) > 0 && kept[0].VerifierKey != verifierKey {
		return fmt.Errorf("checkpoint of log %s: its key was %s and is %s: %w", log, kept[0].VerifierKey, verifierKey, ErrContradiction)
	}
	var contradiction error
	for _, k := range slices.Backward(kept) {
		if k.Size == c.Size && k.root == c.root {
			return nil
		}
		if k.Size == c.Size && contradiction == nil {
			contradiction = fmt.Errorf("checkpoint of log %s: two roots at size %d: %w", log, c.Size, ErrContradiction)
		}
		if k.Size > c.Size && contradiction == nil {
			contradiction = fmt.Errorf("checkpoint of log %s: it had %d entries and has %d: %w", log, k.Size, c.Size, ErrContradiction)
		}
	}
	h.logs[log] = append(kept, c)
	if err := h.save(log); err != nil {
		return errors.Join(contradiction, err)
	}
	return contradiction
}

// save appends the newest checkpoint of a log, or writes the thinned rest
// anew.
func (h *History) save(log string) error {
	kept := h.logs[log]
	path := filepath.Join(h.dir, url.PathEscape(log)+suffix)
	if len(kept) <= maxKept {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("checkpoints: %w", err)
		}
		_, err = f.Write(kept[len(kept)-1].line())
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("checkpoints: %w", err)
		}
		return nil
	}
	kept = thin(kept)
	h.logs[log] = kept
	var text []byte
	for _, c := range kept {
		text = append(text, c.line()...)
	}
	return audit.WriteFile(path, text, 0o600)
}

// thin keeps the first, the newest, and every second of the rest, so that
// what is kept grows sparse with age. A checkpoint after which the log shrank
// or forked is evidence and stays with its neighbour.
func thin(all []Checkpoint) []Checkpoint {
	cut := len(all) - recent
	var out []Checkpoint
	for i, c := range all {
		evidence := contradicts(all, i) || i+1 < len(all) && contradicts(all, i+1)
		if i == 0 || i >= cut || i%2 == 0 || evidence {
			out = append(out, c)
		}
	}
	return out
}

// contradicts reports whether checkpoint i takes back what the one before it
// said.
func contradicts(all []Checkpoint, i int) bool { return i > 0 && all[i].Size <= all[i-1].Size }

// Contradicted returns the logs whose kept checkpoints contradict each other,
// in order.
func (h *History) Contradicted() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for log, kept := range h.logs {
		for i := range kept {
			if contradicts(kept, i) {
				out = append(out, log)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

func (c Checkpoint) line() []byte {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings, a number and a time always encode
	}
	return append(text, '\n')
}

func parseLine(line []byte) (Checkpoint, error) {
	var c Checkpoint
	if err := json.Unmarshal(line, &c); err != nil {
		return Checkpoint{}, err
	}
	v, err := verify(c.Log, []byte(c.Note), c.VerifierKey)
	if err != nil {
		return Checkpoint{}, err
	}
	v.Time = c.Time
	return v, nil
}

// verify checks the signature and takes origin, size and root out of a
// checkpoint.
func verify(log string, text []byte, verifierKey string) (Checkpoint, error) {
	if len(text) > maxNoteBytes {
		return Checkpoint{}, fmt.Errorf("it has %d bytes, more than %d", len(text), maxNoteBytes)
	}
	key, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Checkpoint{}, err
	}
	n, err := note.Open(text, note.VerifierList(key))
	if err != nil {
		return Checkpoint{}, err
	}
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) != 4 || lines[0] != log {
		return Checkpoint{}, errors.New("it is not origin, size and root of this log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 {
		return Checkpoint{}, fmt.Errorf("size %q is no number of entries", lines[1])
	}
	if root, err := base64.StdEncoding.DecodeString(lines[2]); err != nil || len(root) != 32 {
		return Checkpoint{}, errors.New("root is no SHA-256 in base64")
	}
	return Checkpoint{Log: log, VerifierKey: verifierKey, Note: string(text), Size: size, root: lines[2]}, nil
}
