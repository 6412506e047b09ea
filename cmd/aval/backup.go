// This file holds backup and restore of the store.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

func (c *cli) backupCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "backup --output FILE", Short: "Save a consistent copy of the store", Args: takes(),
		Long: `Backup writes the store of a running server, as it is at one moment, with a
checksum. It holds documents, nodes and tokens' hashes; the keys and
certificates of the data directory and the logs are not in it.`,
		Example: "  aval backup --output aval-$(date +%F).backup",
	}
	cmd.Flags().StringVar(&output, "output", "", "file to write, mode 0600; an existing file is replaced")
	c.adminFlag(cmd)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		if output == "" {
			return usage(errors.New("backup: --output is missing"))
		}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.backup(ctx, admin, output) })
	})
	return cmd
}

func (c *cli) backup(ctx context.Context, admin wire.AdminClient, path string) (err error) {
	stream, err := admin.Backup(ctx, &wire.BackupRequest{})
	if err != nil {
		return called("backup", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".aval-backup-*") // mode 0600
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	size := 0
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return called("backup", err)
		}
		size += len(resp.GetData())
		if _, err := f.Write(resp.GetData()); err != nil {
			return fmt.Errorf("backup: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	fmt.Fprintf(c.out, "%s written, %d bytes\n", path, size)
	return nil
}
