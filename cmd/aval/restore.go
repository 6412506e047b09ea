// This file holds restore: a backup put in place of a stopped server's store.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/aval-id/aval/ca/server"
	"github.com/spf13/cobra"
)

func (c *cli) restoreCommand() *cobra.Command {
	var dataDir, input, identity string
	var force bool
	cmd := &cobra.Command{
		Use: "restore --data-dir DIR --input FILE", Short: "Put a backup in place of a stopped server's store", Args: takes(),
		Long: `Restore checks a backup and puts it in place of the store of a server that is
stopped. The restored store begins a new epoch, so that every agent takes a
full new snapshot. An existing store is replaced with --force alone. Where root
runs it, the files go to the owner of the data directory.

An encrypted backup needs --identity, a file with the age identity that one of its
recipients belongs to.`,
		Example: `  aval restore --data-dir /var/lib/aval/server --input aval.backup --force
  aval restore --data-dir /var/lib/aval/server --input aval.backup.age --identity key.txt --force`,
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "the server's data directory")
	cmd.Flags().StringVar(&input, "input", "", "the backup")
	cmd.Flags().StringVar(&identity, "identity", "", "file with age identities, to decrypt the backup")
	cmd.Flags().BoolVar(&force, "force", false, "replace an existing store")
	cmd.RunE = act(func(_ context.Context, _ []string) error {
		if dataDir == "" || input == "" {
			return usage(errors.New("restore: --data-dir and --input are both needed"))
		}
		return c.restore(dataDir, input, identity, force)
	})
	return cmd
}

// storeFile is where a server keeps its store in its data directory.
const storeFile = "store.db"

func (c *cli) restore(dataDir, input, identity string, force bool) error {
	if path := filepath.Join(dataDir, storeFile); !force && exists(path) {
		return hinted(fmt.Errorf("restore: %s is there already", path), exitNegative, "--force replaces it")
	}
	input, done, err := openBackup(dataDir, input, identity)
	if err != nil {
		return err
	}
	defer done()
	r, err := server.Restore(input, dataDir)
	if errors.Is(err, server.ErrLocked) {
		return hinted(err, exitNegative, "stop the server of %s first", dataDir)
	}
	if err != nil {
		return err
	}
	if err := giveToOwner(dataDir); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	fmt.Fprintf(c.out, "restored the backup of %s (epoch %d, revision %d) as epoch %d; start the server\n",
		r.Taken.Format(time.RFC3339), r.From.Epoch, r.From.Revision, r.To.Epoch)
	return nil
}

// giveToOwner hands what root just wrote in a data directory to the
// directory's owner, the user that its server runs as.
func giveToOwner(dataDir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(dataDir)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	entries, err := os.ReadDir(dataDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if err := os.Lchown(filepath.Join(dataDir, e.Name()), int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return nil
}
