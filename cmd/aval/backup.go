// This file holds backup and restore of the store.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"filippo.io/age"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

func (c *cli) backupCommand() *cobra.Command {
	var output string
	var recipients []string
	cmd := &cobra.Command{
		Use: "backup --output FILE", Short: "Save a consistent copy of the store", Args: takes(),
		Long: `Backup writes the store of a running server, as it is at one moment, with a
checksum. It holds documents, nodes and tokens' hashes; the keys and
certificates of the data directory and the logs are not in it.

With --recipient it is encrypted on its way to the disk, to one or more age
recipients (age1…); "aval restore --identity" takes it, and so does age itself.`,
		Example: `  aval backup --output aval-$(date +%F).backup
  aval backup --output aval.backup.age --recipient age1…`,
	}
	cmd.Flags().StringVar(&output, "output", "", "file to write, mode 0600; an existing file is replaced")
	cmd.Flags().StringArrayVar(&recipients, "recipient", nil, "encrypt to this age recipient; may be repeated")
	c.adminFlag(cmd)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		if output == "" {
			return usage(errors.New("backup: --output is missing"))
		}
		to, err := parseRecipients(recipients)
		if err != nil {
			return usage(fmt.Errorf("backup: %w", err))
		}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.backup(ctx, admin, output, to) })
	})
	return cmd
}

func (c *cli) backup(ctx context.Context, admin wire.AdminClient, path string, to []age.Recipient) (err error) {
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
	var out io.WriteCloser = f
	if len(to) > 0 {
		if out, err = age.Encrypt(f, to...); err != nil {
			return fmt.Errorf("backup: encrypt: %w", err)
		}
	}
	if err := receiveBackup(stream, out); err != nil {
		return err
	}
	if len(to) > 0 {
		if err := out.Close(); err != nil { // the last chunk
			return fmt.Errorf("backup: encrypt: %w", err)
		}
	}
	return c.keepBackup(f, path)
}

// receiveBackup writes what the server sends.
func receiveBackup(stream wire.Admin_BackupClient, out io.Writer) error {
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return called("backup", err)
		}
		if _, err := out.Write(resp.GetData()); err != nil {
			return fmt.Errorf("backup: %w", err)
		}
	}
}

// keepBackup gives a backup that is whole its name.
func (c *cli) keepBackup(f *os.File, path string) error {
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
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
