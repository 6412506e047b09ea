// This file holds PKI: intermediates signed by a pki engine.

package vault

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/aval-id/aval/identity"
)

// maxChain bounds the certificates that are taken from an answer.
const maxChain = 8

// PKIConfig says which issuer signs, and which root it must lead to.
type PKIConfig struct {
	// Mount is where the engine is mounted. Zero means pki.
	Mount string
	// Issuer is the issuer's name or ID. Zero means the engine's default.
	Issuer string
	// RootFile is the pinned root as PEM; RootHash is its hash as sha256:HEX,
	// by which the root is fetched from the engine. One of them is required.
	RootFile, RootHash string
}

// PKI has intermediates signed by a pki engine. The engine's own word on what
// the root is never counts: it is pinned by a file or a hash.
type PKI struct {
	client *Client
	cfg    PKIConfig
}

// pathForm is what a mount, an issuer and a key may be called.
var pathForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$`)

// NewPKI checks the configuration.
func NewPKI(client *Client, cfg PKIConfig) (*PKI, error) {
	if cfg.Mount == "" {
		cfg.Mount = "pki"
	}
	cfg.Mount = strings.Trim(cfg.Mount, "/")
	hash, hex := strings.CutPrefix(cfg.RootHash, "sha256:")
	switch {
	case !pathForm.MatchString(cfg.Mount):
		return nil, fmt.Errorf("vault pki: mount %q is not a path", cfg.Mount)
	case cfg.Issuer != "" && (!pathForm.MatchString(cfg.Issuer) || strings.Contains(cfg.Issuer, "/")):
		return nil, fmt.Errorf("vault pki: issuer %q is neither a name nor an ID", cfg.Issuer)
	case (cfg.RootFile == "") == (cfg.RootHash == ""):
		return nil, errors.New("vault pki: the root is pinned by exactly one of its file and its hash")
	case cfg.RootHash != "" && (!hex || len(hash) != 64 || strings.Trim(hash, "0123456789abcdef") != ""):
		return nil, errors.New("vault pki: the root's hash is not sha256: and 64 lower-case hex digits")
	}
	return &PKI{client: client, cfg: cfg}, nil
}

// String names the engine.
func (p *PKI) String() string { return "vault pki at " + p.client.Address() + "/" + p.cfg.Mount }

// signPath is an endpoint that needs no sudo.
func (p *PKI) signPath() string {
	if p.cfg.Issuer == "" {
		return p.cfg.Mount + "/root/sign-intermediate"
	}
	return p.cfg.Mount + "/issuer/" + p.cfg.Issuer + "/sign-intermediate"
}

// Sign has a request for an intermediate signed, as it asks, with no room for
// a further authority below.
func (p *PKI) Sign(ctx context.Context, csr []byte, ttl time.Duration) ([]*x509.Certificate, error) {
	body := map[string]any{
		"csr":            string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"use_csr_values": true, "max_path_length": 0, "format": "pem",
		"ttl": fmt.Sprintf("%ds", int64(ttl/time.Second)),
	}
	const act = "sign the intermediate"
	secret, err := p.client.call(ctx, act, func(ctx context.Context, l *api.Logical) (*api.Secret, error) {
		return l.WriteWithContext(ctx, p.signPath(), body)
	})
	if err != nil {
		return nil, err
	}
	chain, err := certificates(secret.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", p, act, err)
	}
	return chain, nil
}

// Root returns the pinned root, from its file or, by its hash, from the
// engine.
func (p *PKI) Root(ctx context.Context) (*x509.Certificate, error) {
	if p.cfg.RootFile != "" {
		text, err := os.ReadFile(p.cfg.RootFile)
		if err != nil {
			return nil, err
		}
		certs, err := identity.DecodeCertificates(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.cfg.RootFile, err)
		}
		if len(certs) != 1 {
			return nil, fmt.Errorf("%s holds %d certificates, and the root is one", p.cfg.RootFile, len(certs))
		}
		return certs[0], nil
	}
	issuer := p.cfg.Issuer
	if issuer == "" {
		issuer = "default"
	}
	const act = "fetch the root"
	secret, err := p.client.call(ctx, act, func(ctx context.Context, l *api.Logical) (*api.Secret, error) {
		return l.ReadWithContext(ctx, p.cfg.Mount+"/issuer/"+issuer+"/json")
	})
	if err != nil {
		return nil, err
	}
	chain, err := certificates(secret.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", p, act, err)
	}
	var seen []string
	for _, c := range chain {
		hash := identity.CertificateHash(c)
		if hash == p.cfg.RootHash {
			return c, nil
		}
		seen = append(seen, hash)
	}
	return nil, fmt.Errorf("%s: the pinned root %s is not in its chain, which holds %s", p, p.cfg.RootHash, strings.Join(seen, ", "))
}

// certificates reads certificate and ca_chain of an answer, each once.
func certificates(data map[string]any) ([]*x509.Certificate, error) {
	first, _ := data["certificate"].(string)
	texts := []string{first}
	switch above := data["ca_chain"].(type) {
	case []any:
		for _, one := range above {
			text, _ := one.(string)
			texts = append(texts, text)
		}
	case string:
		texts = append(texts, above)
	}
	var out []*x509.Certificate
	for i, text := range texts {
		if text == "" && i > 0 {
			continue
		}
		certs, err := identity.DecodeCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the answer: %w", i, err)
		}
		for _, c := range certs {
			if !slices.ContainsFunc(out, c.Equal) {
				out = append(out, c)
			}
		}
		if len(out) > maxChain {
			return nil, fmt.Errorf("the answer holds more than %d certificates", maxChain)
		}
	}
	return out, nil
}
