// This file holds the answer of a binary without PKCS#11, which needs cgo.

//go:build !full || !cgo

package keys

import "fmt"

func pkcs11Home(l location) (home, error) {
	if _, err := checkPKCS11(l); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("key URI: PKCS#11 is %w", ErrNotBuiltIn)
}
