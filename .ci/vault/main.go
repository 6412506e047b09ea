// Vaultserver is a Vault core for tests: in memory, on loopback, with the
// secrets engines and ways to log in that Aval speaks to. It is built from the
// Vault module and stands in a module of its own, so that nothing of Vault's
// server (BUSL-1.1) is linked into Aval or shipped with it.
//
// It prints one line of JSON when it serves, and ends with its standard input.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"crypto/tls"

	log "github.com/hashicorp/go-hclog"
	credJWT "github.com/hashicorp/vault-plugin-auth-jwt"
	credKube "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vhttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

// registry is the least that lets sys/mounts and sys/auth find our factories.
type registry map[consts.PluginType]map[string]logical.Factory

func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, ok := r[kind][name]
	return ok
}

func (r registry) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	f, ok := r[kind][name]
	return func() (any, error) { return f, nil }, ok
}

func (r registry) Keys(kind consts.PluginType) (names []string) {
	for name := range r[kind] {
		names = append(names, name)
	}
	return names
}

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

func (r registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address to listen on")
	certFile := flag.String("cert", "", "TLS certificate; the server speaks plain HTTP without one")
	keyFile := flag.String("key", "", "TLS key")
	flag.Parse()
	if err := run(*addr, *certFile, *keyFile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func newCore(address string) (*vault.Core, error) {
	logger := log.New(&log.LoggerOptions{Level: log.Error})
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, err
	}
	engines := map[string]logical.Factory{"pki": pki.Factory, "transit": transit.Factory, "kv": vault.PassthroughBackendFactory}
	logins := map[string]logical.Factory{"approle": approle.Factory, "kubernetes": credKube.Factory, "cert": cert.Factory, "jwt": credJWT.Factory}
	return vault.NewCore(&vault.CoreConfig{
		Physical: storage, DisableMlock: true, Logger: logger,
		LogicalBackends: engines, CredentialBackends: logins,
		BuiltinRegistry: registry{consts.PluginTypeSecrets: engines, consts.PluginTypeCredential: logins},
		AuditBackends:   map[string]audit.Factory{"file": audit.NewFileBackend},
		RedirectAddr:    address,
	})
}

func run(addr, certFile, keyFile string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	scheme, plain := "http://", certFile == ""
	if !plain {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return err
		}
		scheme = "https://"
		// Any client certificate may be shown; the cert login judges it.
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12})
	}
	core, err := newCore(scheme + l.Addr().String())
	if err != nil {
		return err
	}
	made, err := core.Initialize(context.Background(), &vault.InitParams{BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}})
	if err != nil {
		return err
	}
	if _, err := core.Unseal(made.SecretShares[0]); err != nil {
		return err
	}
	handler := vhttp.Handler.Handler(&vault.HandlerProperties{Core: core,
		ListenerConfig: &configutil.Listener{Address: l.Addr().String(), TLSDisable: plain}})
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{
		"address": scheme + l.Addr().String(), "token": made.RootToken, "unseal": hex.EncodeToString(made.SecretShares[0]),
	}); err != nil {
		return err
	}
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with whoever started it
		os.Exit(0)
	}()
	return http.Serve(l, handler)
}
