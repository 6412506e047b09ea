// This file holds Config and Token.

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/aval-id/aval/identity"
)

// Token is a join token. It prints as a placeholder, so that it reaches no
// log; convert it to a string to send it.
type Token string

// placeholder is what a secret prints as.
const placeholder = "[token]"

// LogValue keeps the token out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// String returns a placeholder, or "" for no token.
func (t Token) String() string {
	if t == "" {
		return ""
	}
	return placeholder
}

// GoString returns what String does.
func (t Token) GoString() string { return t.String() }

// Config says how an agent runs.
type Config struct {
	Server string // host:port of the server's node API; required

	// The agent's first contact needs a JoinToken and one of BundleHash and
	// BundleFile; afterwards the credential in DataDir serves. What is not
	// needed is not looked at.
	JoinToken  Token
	BundleHash string // sha256:HEX of the DER of a root that the server's chain includes
	BundleFile string // PEM file of the trust domain's roots

	TrustDomain string // optional: refuse any other trust domain

	DataDir string // directory of mode 0700, made if absent; required
	Socket  string // path of the Unix socket for workloads; required

	Version string       // told to the server and to `aval check`
	Logger  *slog.Logger // nil discards

	MaxConnections       int           // to the socket; zero means 8192
	MaxConnectionsPerUID int           // zero means 4096
	SpoolBytes           int64         // connection records kept while the server is away; zero means 32 MiB
	LookEvery            time.Duration // between two looks at the process of an open stream, longer where there are many; zero means 5 s
	RetryMax             time.Duration // longest wait between tries to reach the server; zero means 5 s
}

// check fills in defaults and refuses what cannot work.
func (c Config) check() (Config, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.RetryMax == 0 {
		c.RetryMax = 5 * time.Second
	}
	if c.SpoolBytes == 0 {
		c.SpoolBytes = 32 << 20
	}
	if _, _, err := net.SplitHostPort(c.Server); err != nil {
		return c, fmt.Errorf("server address %q: %w", c.Server, err)
	}
	if c.BundleHash != "" && c.BundleFile != "" {
		return c, errors.New("bundle hash and bundle file are both given: one of them is enough, and they could contradict each other")
	}
	if c.BundleHash != "" && !validHash(c.BundleHash) {
		return c, fmt.Errorf("bundle hash %q is not of the form sha256:HEX with 64 lower-case hex digits", c.BundleHash)
	}
	if c.TrustDomain != "" {
		if _, err := identity.ParseTrustDomain(c.TrustDomain); err != nil {
			return c, err
		}
	}
	if c.DataDir == "" {
		return c, errors.New("data directory is missing")
	}
	if !filepath.IsAbs(c.Socket) {
		return c, fmt.Errorf("socket path %q is not absolute", c.Socket)
	}
	if len(c.Socket) > maxSocketPath {
		return c, fmt.Errorf("socket path of %d bytes is longer than the %d that Unix sockets allow", len(c.Socket), maxSocketPath)
	}
	if c.MaxConnections < 0 || c.MaxConnectionsPerUID < 0 || c.SpoolBytes < 0 || c.RetryMax < 0 || c.LookEvery < 0 {
		return c, errors.New("a limit is negative")
	}
	return c, nil
}

// maxSocketPath is the longest path that fits sockaddr_un with its NUL.
const maxSocketPath = 107

func validHash(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}
