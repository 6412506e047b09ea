// This file holds the reading of checkpoints that were kept elsewhere.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/aval-id/aval/agent/history"
)

// keptCheckpoints reads the signed notes of one log: out of an agent's
// directory of checkpoints, or a file that holds one note. An empty path has
// none; a path without any note of the log is an error, since a check against
// nothing proves nothing.
func keptCheckpoints(path, origin string) ([][]byte, error) {
	if path == "" {
		return nil, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, usage(fmt.Errorf("checkpoints: %w", err))
	}
	if !st.IsDir() {
		return noteFile(path, origin)
	}
	all, err := history.Load(path)
	if err != nil {
		return nil, err
	}
	var notes [][]byte
	for _, kept := range all {
		if kept.Log == origin {
			notes = append(notes, []byte(kept.Note))
		}
	}
	if len(notes) == 0 {
		return nil, usage(fmt.Errorf("checkpoints: %s holds none of the log %s", path, origin))
	}
	return notes, nil
}

func noteFile(path, origin string) ([][]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usage(fmt.Errorf("checkpoints: %w", err))
	}
	named, _, _ := bytes.Cut(text, []byte("\n"))
	if string(named) != origin {
		return nil, usage(errors.New("checkpoints: " + path + " is not a checkpoint of the log " + origin))
	}
	return [][]byte{text}, nil
}
