// This file holds the reading of the checkpoints that an agent keeps.

package agent

import (
	"path/filepath"

	"github.com/aval-id/aval/agent/history"
)

// checkpointsDir is the folder below the data directory.
const checkpointsDir = "checkpoints"

// Checkpoints reads the checkpoints of servers' logs that the agent with this
// data directory was shown, by log and in the order in which it saw them. The
// agent may be running. They are what `audit.VerifyOptions` takes.
func Checkpoints(dataDir string) ([]history.Checkpoint, error) {
	return history.Load(filepath.Join(dataDir, checkpointsDir))
}
