// This file holds Transit: the key of a root in a transit engine. The root's
// certificate is made here; the key never leaves Vault.

package vault

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/identity"
)

// TransitConfig says which key signs.
type TransitConfig struct {
	// Mount is where the engine is mounted. Zero means transit.
	Mount string
	// Key is the key's name. Required.
	Key string
	// Version is the key's version. Zero means 1, so that a rotation in Vault
	// does not change the root's key underneath.
	Version int
}

// Transit opens the key of a root in a transit engine.
type Transit struct {
	client *Client
	cfg    TransitConfig
}

// NewTransit checks the configuration.
func NewTransit(client *Client, cfg TransitConfig) (*Transit, error) {
	if cfg.Mount == "" {
		cfg.Mount = "transit"
	}
	cfg.Mount = strings.Trim(cfg.Mount, "/")
	if cfg.Version == 0 {
		cfg.Version = 1
	}
	switch {
	case !pathForm.MatchString(cfg.Mount):
		return nil, fmt.Errorf("vault transit: mount %q is not a path", cfg.Mount)
	case !pathForm.MatchString(cfg.Key) || strings.Contains(cfg.Key, "/"):
		return nil, errors.New("vault transit: the key's name is missing, or is not one")
	case cfg.Version < 0:
		return nil, fmt.Errorf("vault transit: key version %d", cfg.Version)
	}
	return &Transit{client: client, cfg: cfg}, nil
}

// String names the key.
func (t *Transit) String() string {
	return "vault transit key " + t.client.Address() + "/" + t.cfg.Mount + "/" + t.cfg.Key
}

// Open asks for the public key. The key signs within ctx, since a
// crypto.Signer has no context of its own. The error wraps keys.ErrNotFound
// where there is no such key, and keys.ErrAway where Vault does not answer.
func (t *Transit) Open(ctx context.Context) (*keys.Key, error) {
	secret, err := t.client.call(ctx, "read the key", func(ctx context.Context, l *api.Logical) (*api.Secret, error) {
		return l.ReadWithContext(ctx, t.cfg.Mount+"/keys/"+t.cfg.Key)
	})
	if errors.Is(err, keys.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w: make it with `vault write -f %s/keys/%s type=ecdsa-p256`", t, keys.ErrNotFound, t.cfg.Mount, t.cfg.Key)
	}
	if err != nil {
		return nil, err
	}
	pub, err := publicKey(secret.Data, t.cfg.Version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t, err)
	}
	return keys.NewKey(&transitSigner{transit: t, pub: pub, sign: func(body map[string]any) (*api.Secret, error) {
		return t.client.call(ctx, "sign", func(ctx context.Context, l *api.Logical) (*api.Secret, error) {
			return l.WriteWithContext(ctx, t.cfg.Mount+"/sign/"+t.cfg.Key, body)
		})
	}}, nil), nil
}

// publicKey reads one version of a key.
func publicKey(data map[string]any, version int) (crypto.PublicKey, error) {
	kind, _ := data["type"].(string)
	versions, _ := data["keys"].(map[string]any)
	one, ok := versions[strconv.Itoa(version)].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("it has no version %d with a public key; its type is %q", version, kind)
	}
	text, _ := one["public_key"].(string)
	var pub crypto.PublicKey
	if kind == "ed25519" {
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, errors.New("its public key is not Ed25519")
		}
		pub = ed25519.PublicKey(raw)
	} else {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, fmt.Errorf("its type %q has no public key: a root needs ecdsa-p256, ecdsa-p384, ed25519 or rsa-2048 to rsa-4096", kind)
		}
		var err error
		if pub, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return nil, fmt.Errorf("its public key: %w", err)
		}
	}
	if _, err := identity.KeyTypeOf(pub); err != nil {
		return nil, err
	}
	return pub, nil
}

// transitSigner is a crypto.Signer on transit/sign.
type transitSigner struct {
	transit *Transit
	pub     crypto.PublicKey
	sign    func(body map[string]any) (*api.Secret, error)
}

// Public returns the public key.
func (s *transitSigner) Public() crypto.PublicKey { return s.pub }

// Sign has a digest signed, or for Ed25519 the message.
func (s *transitSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	body := map[string]any{"input": base64.StdEncoding.EncodeToString(digest), "key_version": s.transit.cfg.Version}
	if _, pure := s.pub.(ed25519.PublicKey); !pure {
		names := map[crypto.Hash]string{crypto.SHA256: "sha2-256", crypto.SHA384: "sha2-384", crypto.SHA512: "sha2-512"}
		name, ok := names[opts.HashFunc()]
		if !ok || len(digest) != opts.HashFunc().Size() {
			return nil, fmt.Errorf("%s: a digest of %s is not signed", s.transit, opts.HashFunc())
		}
		body["prehashed"], body["hash_algorithm"], body["marshaling_algorithm"] = true, name, "asn1"
		if _, ok := s.pub.(*rsa.PublicKey); ok {
			body["signature_algorithm"] = "pkcs1v15"
			if _, pss := opts.(*rsa.PSSOptions); pss {
				body["signature_algorithm"] = "pss"
			}
		}
	} else if opts.HashFunc() != 0 {
		return nil, fmt.Errorf("%s: Ed25519 signs messages, not digests", s.transit)
	}
	secret, err := s.sign(body)
	if err != nil {
		return nil, err
	}
	text, _ := secret.Data["signature"].(string)
	parts := strings.SplitN(text, ":", 3)
	if len(parts) != 3 || parts[1] != "v"+strconv.Itoa(s.transit.cfg.Version) {
		return nil, fmt.Errorf("%s: the answer is not a signature by version %d", s.transit, s.transit.cfg.Version)
	}
	signature, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, fmt.Errorf("%s: the signature is not base64", s.transit)
	}
	return signature, nil
}
