// This file holds what PKCS#11 tokens, TPMs and cloud services share: a key
// manager of go.step.sm/crypto that opens, and perhaps makes, a key by name.

package keys

import (
	"context"
	"errors"
	"fmt"

	"go.step.sm/crypto/kms/apiv1"

	"github.com/aval-id/aval/identity"
)

// device is a home whose keys never leave it.
type device struct {
	name    string // for messages
	key     string // the key's URI, without secrets
	connect func(ctx context.Context) (apiv1.KeyManager, error)
	// made finishes the making of a key; nil where keys are not made here.
	made func() error
	// types are the kinds of key that the device makes.
	types []identity.KeyType
}

func (d device) open(ctx context.Context) (*Key, error) {
	m, err := d.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("key in %s: %w: %w", d.name, ErrAway, err)
	}
	signer, err := m.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: d.key})
	if err == nil {
		if signer == nil { // a nil inside the interface is the library's way to say "none"
			err = ErrNotFound
		} else {
			return NewKey(signer, m.Close), nil
		}
	}
	switch {
	case errors.Is(err, apiv1.NotFoundError{}):
		err = ErrNotFound
	case !errors.Is(err, ErrNotFound):
		err = fmt.Errorf("%w: %w", ErrAway, err)
	}
	return nil, errors.Join(fmt.Errorf("key in %s: %w", d.name, err), m.Close())
}

func (d device) create(ctx context.Context, t identity.KeyType) (*Key, error) {
	if d.made == nil {
		return nil, fmt.Errorf("key in %s: keys are not made there by aval: make it with the service's own tools", d.name)
	}
	req, err := d.request(t)
	if err != nil {
		return nil, fmt.Errorf("make key in %s: %w", d.name, err)
	}
	m, err := d.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("make key in %s: %w", d.name, err)
	}
	_, err = m.CreateKey(req)
	if err == nil {
		err = d.made()
	}
	if err := errors.Join(err, m.Close()); err != nil {
		return nil, fmt.Errorf("make key in %s: %w", d.name, err)
	}
	return d.open(ctx)
}

// request words the making of a key of type t.
func (d device) request(t identity.KeyType) (*apiv1.CreateKeyRequest, error) {
	req := &apiv1.CreateKeyRequest{Name: d.key}
	known := false
	for _, one := range d.types {
		known = known || one == t.OrDefault()
	}
	if !known {
		return nil, fmt.Errorf("a key of type %s is not made there; %v are", t.OrDefault(), d.types)
	}
	switch t.OrDefault() {
	case identity.P256:
		req.SignatureAlgorithm = apiv1.ECDSAWithSHA256
	case identity.P384:
		req.SignatureAlgorithm = apiv1.ECDSAWithSHA384
	case identity.RSA2048, identity.RSA3072, identity.RSA4096:
		req.SignatureAlgorithm, req.Bits = apiv1.SHA256WithRSA, t.Bits()
	default:
		return nil, fmt.Errorf("a key of type %s is not made there", t)
	}
	return req, nil
}
