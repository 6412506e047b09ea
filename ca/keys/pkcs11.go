// This file holds keys in PKCS#11 tokens: hardware security modules and smart
// cards, through the vendor's library.

//go:build full && cgo

package keys

import (
	"context"
	"fmt"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/pkcs11"

	"github.com/aval-id/aval/identity"
)

func pkcs11Home(l location) (home, error) {
	pin, err := checkPKCS11(l)
	if err != nil {
		return nil, err
	}
	return device{
		name: "the PKCS#11 token", key: l.text("pin-source", "module-path", "token", "serial", "slot-id"),
		connect: func(ctx context.Context) (apiv1.KeyManager, error) {
			opts := apiv1.Options{URI: l.text("pin-source", "id", "object")}
			if !pin.IsZero() {
				text, err := pin.Read()
				if err != nil {
					return nil, fmt.Errorf("PIN: %w", err)
				}
				opts.Pin = text
			}
			return pkcs11.New(ctx, opts)
		},
		made:  func() error { return nil },
		types: []identity.KeyType{identity.P256, identity.P384, identity.RSA2048, identity.RSA3072, identity.RSA4096},
	}, nil
}
