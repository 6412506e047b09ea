// This file holds the settings of who signs the server's intermediates, and
// the switch that makes it.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/server"
	"github.com/aval-id/aval/ca/vault"
)

// The upstreams that a server knows besides its own root key.
const (
	upstreamOffline = "offline"
	upstreamPKI     = "vault-pki"
	upstreamTransit = "vault-transit"
)

// upstreamSettings says who signs the server's intermediates.
type upstreamSettings struct {
	Kind    string        `json:"kind" flag:"upstream" usage:"who signs the intermediates instead of a root key of this server: vault-pki, vault-transit or offline"`
	Timeout time.Duration `json:"timeout" flag:"upstream-timeout" usage:"bound of one signature by the root's key or the upstream (default 30s)"`
	Vault   vaultSettings `json:"vault"`
}

// vaultSettings says where Vault or OpenBao is, how to log in, and what signs.
type vaultSettings struct {
	Address   string        `json:"address" flag:"vault-address" usage:"https URL of Vault or OpenBao"`
	Namespace string        `json:"namespace" flag:"vault-namespace" usage:"namespace in Vault or OpenBao"`
	CAFile    string        `json:"caFile" flag:"vault-ca-file" usage:"PEM certificates that Vault's own leads to (default: the system's)"`
	Timeout   time.Duration `json:"timeout" flag:"vault-timeout" usage:"bound of one call (default 10s)"`
	Mount     string        `json:"mount" flag:"vault-mount" usage:"where the secrets engine is mounted (default pki or transit)"`
	Issuer    string        `json:"issuer" flag:"vault-issuer" usage:"name or ID of the issuer in a pki engine (default: the engine's default)"`
	RootFile  string        `json:"rootFile" flag:"vault-root-file" usage:"the pinned root as PEM, for vault-pki"`
	RootHash  string        `json:"rootHash" flag:"vault-root-hash" usage:"the pinned root by its hash, sha256:HEX, for vault-pki; it is fetched at the first start"`
	Key       string        `json:"key" flag:"vault-key" usage:"name of the root's key in a transit engine"`
	Version   int           `json:"keyVersion" flag:"vault-key-version" usage:"version of that key (default 1)"`
	Auth      struct {
		Method         string `json:"method" flag:"vault-auth" usage:"how to log in: token, approle, kubernetes, cert or jwt"`
		Mount          string `json:"mount" flag:"vault-auth-mount" usage:"where that is mounted (default: its name)"`
		Role           string `json:"role" flag:"vault-role" usage:"role to take, for kubernetes, jwt and cert"`
		TokenSource    string `json:"tokenSource" flag:"vault-token-source" usage:"where the token is: file:PATH, credential:NAME or env:NAME"`
		RoleID         string `json:"roleID" flag:"vault-role-id" usage:"role ID, for approle"`
		SecretIDSource string `json:"secretIDSource" flag:"vault-secret-id-source" usage:"where the secret ID is, for approle"`
		JWTSource      string `json:"jwtSource" flag:"vault-jwt-source" usage:"where the token is, for jwt and kubernetes (kubernetes: default the pod's)"`
		CertFile       string `json:"certFile" flag:"vault-cert-file" usage:"client certificate as PEM, for cert"`
		KeyFile        string `json:"keyFile" flag:"vault-key-file" usage:"its key as PEM, for cert"`
	} `json:"auth"`
}

// join puts the upstream into the server's configuration. It returns the
// client of Vault where there is one, whose login must be kept alive.
func (u *upstreamSettings) join(cfg *server.Config, log *slog.Logger) (*vault.Client, error) {
	cfg.SigningTimeout = u.Timeout
	if u.Kind != upstreamPKI && u.Kind != upstreamTransit && u.Vault != (vaultSettings{}) {
		return nil, errors.New("vault is configured, and nothing uses it: set --upstream to vault-pki or vault-transit")
	}
	switch u.Kind {
	case "":
		return nil, nil
	case upstreamOffline:
		cfg.Upstream = server.Offline{}
		return nil, nil
	case upstreamPKI, upstreamTransit:
	default:
		return nil, fmt.Errorf("upstream %q is none of %s, %s, %s", u.Kind, upstreamPKI, upstreamTransit, upstreamOffline)
	}
	if cfg.RootKey != "" {
		return nil, fmt.Errorf("--root-key is set, and --upstream %s signs: one of them only", u.Kind)
	}
	client, err := u.Vault.client(log)
	if err != nil {
		return nil, err
	}
	v := u.Vault
	if u.Kind == upstreamPKI {
		if v.Key != "" || v.Version != 0 {
			return nil, errors.New("--vault-key and --vault-key-version are of vault-transit, and --upstream is vault-pki")
		}
		cfg.Upstream, err = vault.NewPKI(client, vault.PKIConfig{Mount: v.Mount, Issuer: v.Issuer, RootFile: v.RootFile, RootHash: v.RootHash})
		return client, err
	}
	if v.Issuer != "" || v.RootFile != "" || v.RootHash != "" {
		return nil, errors.New("--vault-issuer, --vault-root-file and --vault-root-hash are of vault-pki, and --upstream is vault-transit")
	}
	cfg.RootKeyHome, err = vault.NewTransit(client, vault.TransitConfig{Mount: v.Mount, Key: v.Key, Version: v.Version})
	return client, err
}

func (v vaultSettings) client(log *slog.Logger) (*vault.Client, error) {
	a := vault.Auth{Method: v.Auth.Method, Mount: v.Auth.Mount, Role: v.Auth.Role, RoleID: v.Auth.RoleID,
		CertFile: v.Auth.CertFile, KeyFile: v.Auth.KeyFile}
	for _, source := range []struct {
		flag, text string
		into       *keys.Secret
	}{
		{"--vault-token-source", v.Auth.TokenSource, &a.Token},
		{"--vault-secret-id-source", v.Auth.SecretIDSource, &a.SecretID},
		{"--vault-jwt-source", v.Auth.JWTSource, &a.JWT},
	} {
		parsed, err := keys.ParseSecret(source.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", source.flag, err)
		}
		*source.into = parsed
	}
	return vault.New(vault.Config{Address: v.Address, Namespace: v.Namespace, CAFile: v.CAFile, Timeout: v.Timeout, Auth: a, Logger: log})
}

// withVault is a server and the login that it signs with.
type withVault struct {
	*server.Server
	client *vault.Client
}

// Run runs both until ctx ends or the server fails. The login ends last.
func (w withVault) Run(ctx context.Context) error {
	login, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return w.client.Run(login) })
	err := w.Server.Run(ctx)
	stop()
	return errors.Join(err, g.Wait())
}
