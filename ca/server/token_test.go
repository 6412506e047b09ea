// This file holds the test of a server whose root is in a PKCS#11 token.

//go:build full && cgo

package server

import (
	"os"
	"testing"

	"github.com/aval-id/aval/ca/keys/keystest"
	"github.com/aval-id/aval/identity"
)

func TestRootInATokenSigns(t *testing.T) {
	pin := keystest.SecretFile(t, "1234\n")
	uri := keystest.Token(t, "1234")("root", pin)
	rootInDevice(t, uri, identity.P384, func() { os.Remove(pin) })
}
