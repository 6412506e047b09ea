// This file holds Config: every setting of a server, what zero means, and the
// checks that do not touch the disk.

package server

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"time"

	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/jwks"
	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/rotation"
)

// Defaults of Config.
const (
	DefaultName             = "server-1"
	DefaultNodeTTL          = 24 * time.Hour
	DefaultServerTTL        = 24 * time.Hour
	DefaultIntermediateTTL  = 7 * 24 * time.Hour
	DefaultRootTTL          = 10 * 365 * 24 * time.Hour
	DefaultMaxConnections   = 8192
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultLockTimeout      = 3 * time.Second
	DefaultConnectionsQuota = 4 << 30
	DefaultDrainTimeout     = 5 * time.Second
	DefaultKeysRefresh      = 5 * time.Minute
	DefaultSigningTimeout   = 30 * time.Second
	DefaultVerifyLeaves     = 100
)

// Config is what a server is made of. Zero values mean the documented
// defaults; TrustDomain, DataDir and one of Listen and Listener are required.
type Config struct {
	// TrustDomain is whose identities the server issues. Required; a data
	// directory belongs to one trust domain for ever.
	TrustDomain identity.TrustDomain
	// DataDir holds keys, certificates, store and logs. It is made with mode
	// 0700; a directory that others may read is refused. Required.
	DataDir string
	// Name is this server's last path segment under /aval/server/. Zero means
	// DefaultName.
	Name string
	// Listen is the address for nodes, host:port. Ignored where Listener is
	// set.
	Listen string
	// Listener, where set, is used instead of Listen. The server closes it.
	Listener net.Listener
	// Advertise is the address that join commands name. Zero means the
	// listener's own address.
	Advertise string
	// AdminSocket is the path of the operators' Unix socket. Zero means
	// DataDir/admin.sock.
	AdminSocket string
	// AdminGroup names a group (or a numeric gid) whose members may use the
	// admin socket besides uid 0 and the server's own uid. Zero means none.
	AdminGroup string
	// RootKey is the root's key as a KMS URI (package keys). Zero means
	// DataDir/keys/root.key.
	RootKey string
	// RootKeyHome, where set, is where the root's key lives in place of
	// RootKey.
	RootKeyHome RootKeyHome
	// Upstream, where set, signs this server's intermediates, and the server
	// has no root key: RootKey and RootKeyHome are then refused.
	Upstream Upstream
	// SigningTimeout bounds the signing of one intermediate, zero means
	// DefaultSigningTimeout.
	SigningTimeout time.Duration
	// RootKeyType and IssuerKeyType are the kinds of a root's key that this
	// server makes and of its intermediates' keys. Zero means P-256.
	RootKeyType, IssuerKeyType identity.KeyType

	// MinTTL, DefaultTTL and MaxTTL bound workload leaves; zero means
	// ca.DefaultMinTTL, ca.DefaultTTL and ca.DefaultMaxTTL. Where MaxTTL lies
	// below the default lifetime, that is the lifetime.
	MinTTL, DefaultTTL, MaxTTL time.Duration
	// NodeTTL is the lifetime of node credentials, zero means DefaultNodeTTL.
	NodeTTL time.Duration
	// ServerTTL is the lifetime of the server's own leaf, zero means
	// DefaultServerTTL.
	ServerTTL time.Duration
	// IntermediateTTL is the lifetime of the server's signing certificate,
	// zero means DefaultIntermediateTTL.
	IntermediateTTL time.Duration
	// RootTTL is the lifetime of a root made by this server, zero means
	// DefaultRootTTL.
	RootTTL time.Duration
	// MaintenanceWindow is when a rollover of the root may begin by itself,
	// from two thirds of the root's life on. Zero means at any time.
	MaintenanceWindow rotation.Window
	// ManualRootRotation leaves the beginning of a root's rollover to
	// operators.
	ManualRootRotation bool

	// VerifyLeaves is of how many leaves one, picked at random, has its
	// signature verified before it leaves: 1 means each. Zero means
	// DefaultVerifyLeaves, negative none.
	VerifyLeaves int

	// RootNamespace is where policies for all namespaces live. Zero means the
	// evaluator's default.
	RootNamespace string
	// DefaultDeny refuses what no policy selects.
	DefaultDeny bool

	// EndpointsByAttribute makes the address that a node's stream comes from
	// count for nothing in the registry of endpoints: only addresses that a
	// node's attribute names are its own. It belongs where nodes reach the
	// server through a load balancer or a translation of addresses.
	EndpointsByAttribute bool
	// KeySources says where the keys of issuers of tokens may come from. Zero
	// admits no source but the documents themselves.
	KeySources jwks.Config
	// KeysRefresh is how often each source is asked, give or take a tenth.
	// Zero means DefaultKeysRefresh.
	KeysRefresh time.Duration

	// AuthorityReserve is disk held for administrative events, in bytes. Zero
	// means the log's default, negative none.
	AuthorityReserve int64
	// ConnectionsQuota bounds the connections log in bytes; the oldest part
	// is dropped beyond it. Zero means DefaultConnectionsQuota, negative
	// unlimited.
	ConnectionsQuota int64
	// IssuePace bounds the certificates that one node may cause, and
	// RecordPace its connection records. Zero means DefaultIssuePace and
	// DefaultRecordPace. What goes beyond is put off, never lost here.
	IssuePace, RecordPace Pace
	// MaxConnections bounds open connections on the node listener; a quarter
	// of them may be in their handshake, and a quarter may be of peers without
	// a certificate. Zero means DefaultMaxConnections.
	MaxConnections int
	// MaxHandshakesPerSource bounds what one source, an address of IPv4 or a
	// /64 of IPv6, may have of each of the two. Zero means a quarter of them,
	// and no bound for loopback.
	MaxHandshakesPerSource int
	// HandshakeTimeout bounds a TLS handshake, zero means
	// DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration
	// LockTimeout is how long New waits for another server to let go of the
	// data directory, zero means DefaultLockTimeout.
	LockTimeout time.Duration
	// DrainTimeout bounds a graceful stop, zero means DefaultDrainTimeout.
	DrainTimeout time.Duration
	// Version is shown to nodes and operators.
	Version string
	// Logger takes operators' messages. Zero discards them.
	Logger *slog.Logger
}

// Bounds of Config.KeysRefresh.
const (
	minKeysRefresh = time.Second
	maxKeysRefresh = 24 * time.Hour
)

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// withDefaults checks what can be checked without the disk and fills in the
// defaults.
func (c Config) withDefaults() (Config, error) {
	if c.TrustDomain.IsZero() {
		return c, fmt.Errorf("server config: trust domain is missing")
	}
	if c.DataDir == "" {
		return c, fmt.Errorf("server config: data directory is missing")
	}
	if c.Listen == "" && c.Listener == nil {
		return c, fmt.Errorf("server config: listen address is missing")
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return c, fmt.Errorf("server config: data directory: %w", err)
	}
	c.DataDir = dir
	setString(&c.Name, DefaultName)
	setString(&c.AdminSocket, filepath.Join(dir, "admin.sock"))
	setString(&c.RootNamespace, policy.DefaultRootNamespace)
	setString(&c.Version, "unknown")
	if !nameForm.MatchString(c.Name) {
		return c, fmt.Errorf("server config: name %q: lower-case letters, digits, '.', '_' and '-' are allowed, up to 63", c.Name)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.checkSigner(); err != nil {
		return c, fmt.Errorf("server config: %w", err)
	}
	return c.withDurations()
}

// checkSigner checks who signs the intermediates, and with what kinds of key.
func (c *Config) checkSigner() error {
	if c.Upstream != nil && (c.RootKey != "" || c.RootKeyHome != nil) {
		return fmt.Errorf("the intermediate is signed by %s, and a root key is set: one of them only", c.Upstream)
	}
	if c.RootKey != "" && c.RootKeyHome != nil {
		return fmt.Errorf("the root's key is at two places: one of them only")
	}
	if c.RootKey != "" {
		if err := keys.Check(c.RootKey); err != nil {
			return fmt.Errorf("root key: %w", err)
		}
	}
	for _, t := range []*identity.KeyType{&c.RootKeyType, &c.IssuerKeyType} {
		parsed, err := identity.ParseKeyType(string(*t))
		if err != nil {
			return err
		}
		*t = parsed
	}
	return nil
}

func (c Config) withDurations() (Config, error) {
	setDuration(&c.MinTTL, ca.DefaultMinTTL)
	setDuration(&c.MaxTTL, ca.DefaultMaxTTL)
	setDuration(&c.DefaultTTL, min(max(ca.DefaultTTL, c.MinTTL), c.MaxTTL))
	setDuration(&c.NodeTTL, DefaultNodeTTL)
	setDuration(&c.ServerTTL, DefaultServerTTL)
	setDuration(&c.IntermediateTTL, DefaultIntermediateTTL)
	setDuration(&c.RootTTL, DefaultRootTTL)
	setDuration(&c.HandshakeTimeout, DefaultHandshakeTimeout)
	setDuration(&c.LockTimeout, DefaultLockTimeout)
	setDuration(&c.DrainTimeout, DefaultDrainTimeout)
	setDuration(&c.KeysRefresh, DefaultKeysRefresh)
	setDuration(&c.SigningTimeout, DefaultSigningTimeout)
	switch {
	case c.VerifyLeaves == 0:
		c.VerifyLeaves = DefaultVerifyLeaves
	case c.VerifyLeaves < 0:
		c.VerifyLeaves = 0
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	var err error
	if c.IssuePace, err = c.IssuePace.withDefault("issue", DefaultIssuePace); err != nil {
		return c, err
	}
	if c.RecordPace, err = c.RecordPace.withDefault("record", DefaultRecordPace); err != nil {
		return c, err
	}
	switch {
	case c.ConnectionsQuota == 0:
		c.ConnectionsQuota = DefaultConnectionsQuota
	case c.ConnectionsQuota < 0:
		c.ConnectionsQuota = 0
	}
	switch {
	case c.MaxConnections < 4:
		return c, fmt.Errorf("server config: connection limit %d is below 4", c.MaxConnections)
	case c.MaxHandshakesPerSource < 0:
		return c, fmt.Errorf("server config: limit of handshakes of one source is negative")
	case c.KeysRefresh < minKeysRefresh || c.KeysRefresh > maxKeysRefresh:
		return c, fmt.Errorf("server config: refresh interval of keys %s is not from %s to %s", c.KeysRefresh, minKeysRefresh, maxKeysRefresh)
	case min(c.MinTTL, c.NodeTTL, c.ServerTTL) < 0:
		return c, fmt.Errorf("server config: a lifetime is negative")
	case c.IntermediateTTL >= c.RootTTL:
		return c, fmt.Errorf("server config: intermediate lifetime %s is not below the root's %s", c.IntermediateTTL, c.RootTTL)
	case c.IntermediateTTL <= 2*c.MinTTL:
		return c, fmt.Errorf("server config: intermediate lifetime %s is not above twice the smallest leaf's %s", c.IntermediateTTL, c.MinTTL)
	}
	return c, nil
}

func setString(s *string, def string) {
	if *s == "" {
		*s = def
	}
}

func setDuration(d *time.Duration, def time.Duration) {
	if *d == 0 {
		*d = def
	}
}
