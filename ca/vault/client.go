// This file holds Client: one connection with its login, renewed by its lease
// and made again when it is lost.

package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/aval-id/aval/rotation"
)

// DefaultTimeout bounds one call.
const DefaultTimeout = 10 * time.Second

// Config is what a Client is made of.
type Config struct {
	// Address is the https URL of the server. Required.
	Address string
	// Namespace is sent with each call. Zero means none.
	Namespace string
	// CAFile holds the PEM certificates that the server's chain must lead to.
	// Zero means those of the system. There is no way to skip the check.
	CAFile string
	// Timeout bounds one call, zero means DefaultTimeout.
	Timeout time.Duration
	// Auth is how to log in.
	Auth Auth
	// Logger takes operators' messages. Zero discards them.
	Logger *slog.Logger
}

// Client speaks to one Vault or OpenBao. It is safe for concurrent use. New
// makes it, Run keeps its login alive.
type Client struct {
	cfg  Config
	http *http.Client

	mu    sync.Mutex // held over a login, so that there is one at a time
	login login
}

// login is a token with its lease. The zero value is none.
type login struct {
	token     string
	began     time.Time
	expires   time.Time // zero: never
	renewable bool
	own       bool // by a login of ours, to be revoked at the end
}

// errRedirect refuses to carry a token elsewhere. Standby servers of Vault
// forward calls themselves.
var errRedirect = errors.New("it redirects elsewhere: name the address that answers")

// New checks the configuration and reads its files. It calls nobody.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.Address)
	switch {
	case cfg.Address == "":
		return nil, fmt.Errorf("vault: address is missing, such as https://vault.example.org:8200")
	case err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "":
		return nil, fmt.Errorf("vault: address is not https://HOST:PORT")
	case u.Scheme != "https":
		return nil, fmt.Errorf("vault: address %s: only https is spoken, since a token goes with each call", cfg.Address)
	}
	if err := cfg.Auth.check(); err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		text, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("vault: CA file: %w", err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("vault: CA file %s holds no PEM certificate", cfg.CAFile)
		}
	}
	if cfg.Auth.Method == MethodCert {
		// Read at each handshake, since the files are renewed.
		tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cfg.Auth.CertFile, cfg.Auth.KeyFile)
			return &pair, err
		}
	}
	return &Client{cfg: cfg, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: tlsConfig, Proxy: http.ProxyFromEnvironment,
			TLSHandshakeTimeout: cfg.Timeout, IdleConnTimeout: time.Minute, MaxIdleConns: 2, ForceAttemptHTTP2: true},
		Timeout:       cfg.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect },
	}}, nil
}

// Address returns the server's URL.
func (c *Client) Address() string { return c.cfg.Address }

// api returns a client of the library with a token. What the environment says
// of an address, of TLS or of a token does not count.
func (c *Client) api(token string) (*api.Client, error) {
	client, err := api.NewClient(&api.Config{Address: c.cfg.Address, HttpClient: c.http, Timeout: c.cfg.Timeout, DisableRedirects: true,
		CheckRetry: func(context.Context, *http.Response, error) (bool, error) { return false, nil }})
	if err != nil {
		return nil, fmt.Errorf("vault client: %w", err)
	}
	if err := client.SetAddress(c.cfg.Address); err != nil {
		return nil, fmt.Errorf("vault client: %w", err)
	}
	client.SetToken(token)
	client.ClearNamespace()
	if c.cfg.Namespace != "" {
		client.SetNamespace(c.cfg.Namespace)
	}
	return client, nil
}

// call makes one call with the login of the moment. Where the token is lost,
// which Vault says as 403, it logs in again, once.
func (c *Client) call(ctx context.Context, act string, fn func(context.Context, *api.Logical) (*api.Secret, error)) (*api.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*c.cfg.Timeout)
	defer cancel()
	for again := false; ; again = true {
		token, err := c.token(ctx)
		if err != nil {
			return nil, err
		}
		client, err := c.api(token)
		if err != nil {
			return nil, err
		}
		secret, err := fn(ctx, client.Logical())
		if err == nil {
			if secret == nil {
				return nil, &Error{act: act, address: c.cfg.Address, Code: http.StatusNotFound, text: "nothing is there"}
			}
			return secret, nil
		}
		err = c.wrap(act, err)
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != http.StatusForbidden || again {
			return nil, err
		}
		c.forget(token)
	}
}

// token returns a token that is good now, logging in where there is none.
func (c *Client) token(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login.token != "" && (c.login.expires.IsZero() || time.Now().Round(0).Before(c.login.expires)) {
		return c.login.token, nil
	}
	l, err := c.logIn(ctx)
	if err != nil {
		return "", err
	}
	c.login = l
	return l.token, nil
}

// forget drops a token that was refused, unless there is another by now.
func (c *Client) forget(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login.token == token {
		c.login = login{}
	}
}

// Run keeps the login alive until ctx ends, and then revokes it where it was
// our own. It returns nil at the end of ctx.
func (c *Client) Run(ctx context.Context) error {
	err := rotation.Loop(ctx, &renewer{client: c}, nil)
	// The end of ctx must not keep the token from being revoked.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Timeout)
	defer cancel()
	c.mu.Lock()
	l := c.login
	c.login = login{}
	c.mu.Unlock()
	if l.own {
		if client, err := c.api(l.token); err == nil {
			if err := client.Auth().Token().RevokeSelfWithContext(last, ""); err != nil {
				c.cfg.Logger.Warn("vault: the login was not revoked; its lease ends by itself", "error", c.wrap("revoke the login", err))
			}
		}
	}
	c.http.CloseIdleConnections()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// renewer renews the login at half its lease.
type renewer struct {
	client   *Client
	attempts int
}

// Renew renews the login where it is due, or logs in again, and returns when
// to look again.
func (r *renewer) Renew(ctx context.Context, now time.Time) time.Time {
	c := r.client
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.login
	if l.token != "" {
		if l.expires.IsZero() {
			return time.Time{} // a token without end, such as a root's
		}
		if due := rotation.Due(l.began, l.expires, 0); now.Before(due) {
			return due
		}
	}
	next, err := c.renewed(ctx, l)
	if err != nil {
		wait := rotation.Backoff(r.attempts, time.Second, time.Minute)
		r.attempts++
		if ctx.Err() == nil {
			c.cfg.Logger.Error("vault: the login was not renewed", "error", err, "retry_in", wait)
		}
		return now.Add(wait)
	}
	r.attempts, c.login = 0, next
	if next.expires.IsZero() {
		return time.Time{}
	}
	due := rotation.Due(next.began, next.expires, 0)
	if soonest := now.Add(time.Second); due.Before(soonest) {
		return soonest // a lease that can't be renewed halves for ever
	}
	return due
}

// renewed renews a login, or makes another where it can't be renewed any
// more: its life is bounded by the role's maximum.
func (c *Client) renewed(ctx context.Context, l login) (login, error) {
	if l.token != "" && l.renewable {
		client, err := c.api(l.token)
		if err != nil {
			return login{}, err
		}
		began := time.Now().Round(0)
		secret, err := client.Auth().Token().RenewSelfWithContext(ctx, 0)
		if err == nil && secret != nil && secret.Auth != nil {
			next := leased(secret.Auth, began, l.own)
			next.token = l.token
			if !l.own || next.expires.Sub(began) > l.expires.Sub(l.began)/2 {
				return next, nil
			}
			// The maximum is near: a fresh login before the old one ends.
		}
	}
	return c.logIn(ctx)
}

func leased(auth *api.SecretAuth, began time.Time, own bool) login {
	l := login{token: auth.ClientToken, began: began, renewable: auth.Renewable, own: own}
	if auth.LeaseDuration > 0 {
		l.expires = began.Add(time.Duration(auth.LeaseDuration) * time.Second)
	}
	return l
}
