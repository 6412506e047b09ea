// This file holds keys in a TPM 2.0: the key is sealed to the TPM, and what is
// kept of it in a directory is of no use elsewhere.

package keys

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/tpmkms"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
)

func tpmHome(l location) (home, error) {
	if err := l.only("name", "device", "storage-directory"); err != nil {
		return nil, err
	}
	if l.get("name") == "" {
		return nil, fmt.Errorf("key URI: name= of the key in the TPM is missing")
	}
	dir, err := l.path("storage-directory")
	if err != nil {
		return nil, err
	}
	return device{
		name: "the TPM", key: l.text("device", "storage-directory"),
		connect: func(ctx context.Context) (apiv1.KeyManager, error) {
			if err := audit.PrivateDir(dir); err != nil {
				return nil, err
			}
			return tpmkms.New(ctx, apiv1.Options{URI: l.text("name")})
		},
		made:  func() error { return syncTree(dir) },
		types: []identity.KeyType{identity.P256, identity.P384, identity.RSA2048},
	}, nil
}

// syncTree makes what a library wrote below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() && !e.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
}
