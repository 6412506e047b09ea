// This file holds Auth: the ways to log in. Secrets are read anew for each
// login, from where the configuration says that they are.

package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/aval-id/aval/ca/keys"
)

// The ways to log in.
const (
	MethodToken      = "token"
	MethodAppRole    = "approle"
	MethodKubernetes = "kubernetes"
	MethodCert       = "cert"
	MethodJWT        = "jwt"
)

// KubernetesToken is where a pod finds the token of its service account.
const KubernetesToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// Auth is how to log in.
type Auth struct {
	// Method is one of token, approle, kubernetes, cert and jwt. Required.
	Method string
	// Mount is where the method is mounted. Zero means its name.
	Mount string
	// Role is the role to take: required by kubernetes and jwt, used by cert.
	Role string
	// Token is where the token is found, for the method token. It is read
	// again when it was refused, so that an agent may replace it.
	Token keys.Secret
	// RoleID is AppRole's public half, SecretID where its secret is found.
	RoleID   string
	SecretID keys.Secret
	// JWT is where the token for jwt or kubernetes is found. Zero means, for
	// kubernetes, the pod's KubernetesToken.
	JWT keys.Secret
	// CertFile and KeyFile are the client's certificate, for cert.
	CertFile, KeyFile string
}

// check says what is missing for the method, and what does not belong to it.
func (a Auth) check() error {
	type field struct {
		name string
		set  bool
	}
	token, roleID, secretID := field{"token source", !a.Token.IsZero()}, field{"role ID", a.RoleID != ""}, field{"secret ID source", !a.SecretID.IsZero()}
	jwt, role := field{"JWT source", !a.JWT.IsZero()}, field{"role", a.Role != ""}
	cert, key := field{"certificate file", a.CertFile != ""}, field{"key file", a.KeyFile != ""}
	var need, may []field
	switch a.Method {
	case MethodToken:
		need = []field{token}
	case MethodAppRole:
		need = []field{roleID, secretID}
	case MethodKubernetes:
		need, may = []field{role}, []field{jwt}
	case MethodCert:
		need, may = []field{cert, key}, []field{role}
	case MethodJWT:
		need = []field{role, jwt}
	case "":
		return errors.New("the way to log in is missing: token, approle, kubernetes, cert or jwt")
	default:
		return fmt.Errorf("%q is no way to log in: token, approle, kubernetes, cert and jwt are", a.Method)
	}
	for _, f := range need {
		if !f.set {
			return fmt.Errorf("login by %s: %s is missing", a.Method, f.name)
		}
	}
	for _, f := range []field{token, roleID, secretID, jwt, role, cert, key} {
		known := false
		for _, k := range append(need, may...) {
			known = known || k.name == f.name
		}
		if f.set && !known {
			return fmt.Errorf("login by %s: %s is set, and is not used by it", a.Method, f.name)
		}
	}
	return nil
}

// logIn makes a login. The caller holds the client's lock.
func (c *Client) logIn(ctx context.Context) (login, error) {
	if c.cfg.Auth.Method == MethodToken {
		return c.adoptToken(ctx)
	}
	body, err := c.cfg.Auth.body()
	if err != nil {
		return login{}, fmt.Errorf("vault %s: log in by %s: %w", c.cfg.Address, c.cfg.Auth.Method, err)
	}
	mount := c.cfg.Auth.Mount
	if mount == "" {
		mount = c.cfg.Auth.Method
	}
	client, err := c.api("")
	if err != nil {
		return login{}, err
	}
	began := time.Now().Round(0)
	secret, err := client.Logical().WriteWithContext(ctx, "auth/"+strings.Trim(mount, "/")+"/login", body)
	act := "log in by " + c.cfg.Auth.Method
	switch {
	case err != nil:
		return login{}, c.wrap(act, err)
	case secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "":
		return login{}, &Error{act: act, address: c.cfg.Address, Code: http.StatusOK, text: "the answer holds no token"}
	}
	c.cfg.Logger.Info("vault: logged in", "address", c.cfg.Address, "method", c.cfg.Auth.Method, "lease_seconds", secret.Auth.LeaseDuration)
	return leased(secret.Auth, began, true), nil
}

func (a Auth) body() (map[string]any, error) {
	switch a.Method {
	case MethodAppRole:
		secret, err := a.SecretID.Read()
		return map[string]any{"role_id": a.RoleID, "secret_id": secret}, err
	case MethodKubernetes, MethodJWT:
		if a.Method == MethodKubernetes && a.JWT.IsZero() {
			// The kubelet owns it, and lets the pod's users read it.
			text, err := os.ReadFile(KubernetesToken)
			return map[string]any{"role": a.Role, "jwt": strings.TrimSpace(string(text))}, err
		}
		jwt, err := a.JWT.Read()
		return map[string]any{"role": a.Role, "jwt": jwt}, err
	case MethodCert:
		if a.Role == "" {
			return map[string]any{}, nil
		}
		return map[string]any{"name": a.Role}, nil
	}
	return nil, fmt.Errorf("%q is no way to log in", a.Method)
}

// adoptToken takes the token that is given and asks for its lease.
func (c *Client) adoptToken(ctx context.Context) (login, error) {
	token, err := c.cfg.Auth.Token.Read()
	if err != nil {
		return login{}, fmt.Errorf("vault %s: token: %w", c.cfg.Address, err)
	}
	client, err := c.api(token)
	if err != nil {
		return login{}, err
	}
	began := time.Now().Round(0)
	secret, err := client.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return login{}, c.wrap("look up the token", err)
	}
	ttl, err := secret.TokenTTL()
	if err != nil {
		return login{}, fmt.Errorf("vault %s: look up the token: its lease is not a duration", c.cfg.Address)
	}
	renewable, _ := secret.TokenIsRenewable() // absent: it is not
	return leased(&api.SecretAuth{ClientToken: token, LeaseDuration: int(ttl / time.Second), Renewable: renewable}, began, false), nil
}
