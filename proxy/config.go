// This file holds Config, its parser, its defaults and its checks.

package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/proxy/request"
)

// The documented defaults of Limits.
const (
	DefaultMaxConnections   = 10_000
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultServerFirstWait  = 100 * time.Millisecond
	DefaultDialTimeout      = 10 * time.Second
	DefaultDrain            = 30 * time.Second
	DefaultMaxRecords       = 10_000
	DefaultMaxMemoryMiB     = 1024
	DefaultMaxHandshakes    = 5_000
)

// Protocol says who speaks first on an inbound port.
type Protocol string

// The protocols of an inbound listener.
const (
	// ProtocolAuto looks at the client's first bytes and waits for them up
	// to the handshake deadline.
	ProtocolAuto Protocol = "auto"
	// ProtocolTLS takes nothing but a ClientHello, whatever the mode allows.
	ProtocolTLS Protocol = "tls"
	// ProtocolServerFirst waits ServerFirstWait for the client and then lets
	// whoever speaks first decide.
	ProtocolServerFirst Protocol = "server-first"
)

// Config is everything a Proxy needs to know.
type Config struct {
	// Agent is the agent's socket: unix:///PATH, or the path alone.
	Agent string
	// Identity picks one of the process's identities; zero takes the only one.
	Identity identity.ID
	// Inbound and Outbound are the explicit listeners; at least one of either,
	// unless Transparent is set.
	Inbound  []Inbound
	Outbound []Outbound
	// Transparent takes redirected connections beside them; nil takes none.
	Transparent *Transparent
	// Announce says where the inbound listeners can be found by others.
	Announce Announce
	// Limits bound what connections can cost.
	Limits Limits
	// Records says which requests become records.
	Records Records
	// Admin is the operators' socket: unix:///PATH, or the path alone; empty
	// means none.
	Admin string
	// OnPeerExpiry says what happens to an open connection when the peer's
	// certificate ends, OnIdentityLost when the proxy's own identity is taken
	// away. Empty means Keep. The end of the proxy's own SVID, or its
	// rotation, closes nothing.
	OnPeerExpiry, OnIdentityLost Action
	// OnPolicyChange says what happens to open connections and requests that
	// the policies no longer allow, OnRevocation to connections whose peer is
	// revoked: Cut or Keep. Empty means Cut.
	OnPolicyChange, OnRevocation Action
	// Sockets are listeners that are open already; each must belong to one
	// of Inbound or Outbound, by its name or its address. New takes them over.
	Sockets []Socket
	// AccessLog writes a JSON object for each request to AccessWriter, which
	// means the standard output where it is nil.
	AccessLog    bool
	AccessWriter io.Writer
	// PaceCollector lets Run set the garbage collector's target, for a process
	// that is this proxy and nothing else.
	PaceCollector bool
	// Logger receives what operators need to know; nil discards it.
	Logger *slog.Logger
}

// Inbound is a listener in front of the workload: mutual TLS or, where the
// mode permits, plaintext comes in, plaintext goes to Forward.
type Inbound struct {
	Name     string   `json:"name"`     // of the listener, for sockets that were passed on and for status; may be empty
	Listen   string   `json:"listen"`   // host:port
	Forward  string   `json:"forward"`  // host:port of the application
	Port     uint16   `json:"port"`     // what policies match; zero means Forward's port
	Protocol Protocol `json:"protocol"` // empty means ProtocolAuto
	// ALPN lists the protocols the application speaks, such as h2. Empty
	// means that none is negotiated.
	ALPN []string `json:"alpn"`
	// ProxyProtocol says whether a load balancer in front tells for whom it
	// dials; empty means ProxyProtocolOff. TrustedProxies are the addresses
	// that may: a header from any other is refused.
	ProxyProtocol  ProxyProtocol  `json:"proxyProtocol"`
	TrustedProxies []netip.Prefix `json:"trustedProxies"`
	// SendProxyProtocol tells the application for whom the connection is:
	// v1, v2, or empty for no header.
	SendProxyProtocol ProxyProtocolVersion `json:"sendProxyProtocol"`
	// ForwardProtocol is what an application that speaks HTTP gets:
	// ForwardHTTP1 or ForwardH2C. Empty leaves it to Protocol.
	ForwardProtocol string `json:"forwardProtocol"`
}

// Outbound is a listener for the workload's own calls: plaintext comes in
// locally, mutual TLS goes to Dial.
type Outbound struct {
	Name   string      `json:"name"`   // of the listener, as Inbound's
	Listen string      `json:"listen"` // host:port
	Dial   string      `json:"dial"`   // host:port of the other side
	ID     identity.ID `json:"id"`     // the SPIFFE ID that the other side must prove
	// ServerName is sent as SNI where it is set. It plays no part in
	// verification.
	ServerName string `json:"serverName"`
	// ALPN lists the protocols to offer. Empty offers none.
	ALPN []string `json:"alpn"`
	// SendProxyProtocol puts a header in front of the handshake, for an
	// upstream that expects one: v1, v2, or empty for none.
	SendProxyProtocol ProxyProtocolVersion `json:"sendProxyProtocol"`
}

// Limits bound what connections can cost. Zero means the default.
type Limits struct {
	// MaxConnections bounds open connections of all listeners together. It is
	// lowered, with a warning, to what the process's open files allow. Where
	// there are listeners of both directions, inbound ones leave an eighth to
	// outbound ones.
	MaxConnections int `json:"maxConnections"`
	// MaxConnectionsPerSource bounds inbound connections of one source: an
	// IPv4 address, or a /64 of IPv6. Zero means half of MaxConnections, and
	// none for loopback.
	MaxConnectionsPerSource int `json:"maxConnectionsPerSource"`
	// MaxHandshakes bounds inbound connections that have no verdict yet.
	// Zero means DefaultMaxHandshakes, or MaxConnections where that is less.
	MaxHandshakes int `json:"maxHandshakes"`
	// MaxHandshakesPerSource bounds those of one source. Zero means a quarter
	// of MaxHandshakes, and none for loopback.
	MaxHandshakesPerSource int `json:"maxHandshakesPerSource"`
	// MaxMemoryMiB is how much memory, in MiB, the process may hold before
	// new connections are refused. Open ones are kept.
	MaxMemoryMiB int `json:"maxMemoryMiB"`
	// IdleTimeout closes a connection over which nothing came either way for
	// so long. Zero means never.
	IdleTimeout time.Duration `json:"idleTimeout"`
	// MaxLifetime closes a connection so long after it was accepted. Zero
	// means never.
	MaxLifetime time.Duration `json:"maxLifetime"`
	// HandshakeTimeout bounds the time from accept to an authenticated peer,
	// first bytes included.
	HandshakeTimeout time.Duration `json:"handshakeTimeout"`
	// ServerFirstWait is how long a server-first port waits for a client
	// before it dials the application.
	ServerFirstWait time.Duration `json:"serverFirstWait"`
	// DialTimeout bounds a connection attempt to the application or upstream.
	DialTimeout time.Duration `json:"dialTimeout"`
	// Drain bounds how long Run waits for open connections at its end.
	Drain time.Duration `json:"drain"`
	// MaxRecords bounds the records that wait for the agent. The oldest are
	// dropped, and counted.
	MaxRecords int `json:"maxRecords"`
	// Requests bound what clients that speak HTTP can cost.
	Requests request.Limits `json:"requests"`
}

// configFile is the YAML form of Config.
type configFile struct {
	Agent     string      `json:"agent"`
	Identity  identity.ID `json:"identity"`
	Inbound   []Inbound   `json:"inbound"`
	Outbound  []Outbound  `json:"outbound"`
	Limits    Limits      `json:"limits"`
	Records   Records     `json:"records"`
	Admin     string      `json:"admin"`
	AccessLog bool        `json:"accessLog"`

	OnPeerExpiry   Action `json:"onPeerExpiry"`
	OnPolicyChange Action `json:"onPolicyChange"`
	OnRevocation   Action `json:"onRevocation"`
	OnIdentityLost Action `json:"onIdentityLost"`

	Transparent *Transparent `json:"transparent"`
	Announce    Announce     `json:"announce"`
}

// ParseConfig decodes a configuration file strictly: unknown fields are
// refused with their line. The file name is used in errors only.
func ParseConfig(file string, data []byte) (Config, error) {
	var f configFile
	if err := document.Decode(file, data, &f); err != nil {
		return Config{}, err
	}
	cfg := Config{Agent: f.Agent, Identity: f.Identity, Inbound: f.Inbound, Outbound: f.Outbound, Transparent: f.Transparent, Limits: f.Limits, Records: f.Records,
		Admin: f.Admin, OnPeerExpiry: f.OnPeerExpiry, OnIdentityLost: f.OnIdentityLost, OnPolicyChange: f.OnPolicyChange, OnRevocation: f.OnRevocation, AccessLog: f.AccessLog, Announce: f.Announce}
	if _, err := cfg.withDefaults(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return cfg, nil
}

// withDefaults returns the config with every zero replaced by its default,
// or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if _, err := socketPath("agent", c.Agent); err != nil {
		return Config{}, err
	}
	if !c.Identity.IsZero() && c.Identity.Role() != identity.RoleWorkload {
		return Config{}, fmt.Errorf("identity: %s is not a workload's", c.Identity)
	}
	if len(c.Inbound)+len(c.Outbound) == 0 && c.Transparent == nil {
		return Config{}, errors.New("neither an inbound nor an outbound listener is given")
	}
	in := make([]Inbound, len(c.Inbound))
	out := make([]Outbound, len(c.Outbound))
	for i, l := range c.Inbound {
		var err error
		if in[i], err = l.withDefaults(); err != nil {
			return Config{}, fmt.Errorf("inbound[%d]: %w", i, err)
		}
	}
	for i, l := range c.Outbound {
		if err := l.check(); err != nil {
			return Config{}, fmt.Errorf("outbound[%d]: %w", i, err)
		}
		out[i] = l
	}
	c.Inbound, c.Outbound = in, out
	if c.Transparent != nil {
		t, err := c.Transparent.withDefaults()
		if err != nil {
			return Config{}, fmt.Errorf("transparent: %w", err)
		}
		c.Transparent = t
	}
	if err := c.Announce.check(); err != nil {
		return Config{}, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return Config{}, err
	}
	c.Limits = limits
	if c.Records, err = c.Records.withDefaults(); err != nil {
		return Config{}, fmt.Errorf("records: %w", err)
	}
	return c.withOperation()
}

func (l Inbound) withDefaults() (Inbound, error) {
	if _, err := portOf("listen", l.Listen); err != nil {
		return Inbound{}, err
	}
	port, err := portOf("forward", l.Forward)
	if err != nil {
		return Inbound{}, err
	}
	if port == 0 {
		return Inbound{}, fmt.Errorf("forward: %q has no port to dial", l.Forward)
	}
	if l.Port == 0 {
		l.Port = port
	}
	orDefault(&l.Protocol, ProtocolAuto)
	if err := l.Protocol.check(); err != nil {
		return Inbound{}, err
	}
	l, err = l.withRequests()
	if err != nil {
		return Inbound{}, err
	}
	return l.withProxyProtocol()
}

func (p Protocol) check() error {
	switch p {
	case "", ProtocolAuto, ProtocolTLS, ProtocolServerFirst, ProtocolHTTP, ProtocolHTTP2, ProtocolGRPC:
		return nil
	}
	return fmt.Errorf("protocol: %q is none of %s, %s, %s, %s, %s, %s", p,
		ProtocolAuto, ProtocolTLS, ProtocolServerFirst, ProtocolHTTP, ProtocolHTTP2, ProtocolGRPC)
}

func (l Outbound) check() error {
	if _, err := portOf("listen", l.Listen); err != nil {
		return err
	}
	if port, err := portOf("dial", l.Dial); err != nil {
		return err
	} else if port == 0 {
		return fmt.Errorf("dial: %q has no port to dial", l.Dial)
	}
	if l.ID.IsZero() {
		return errors.New("id: the upstream's SPIFFE ID is missing; an upstream without one is never dialled")
	}
	if l.ID.Role() != identity.RoleWorkload {
		return fmt.Errorf("id: %s is not a workload's", l.ID)
	}
	return l.SendProxyProtocol.check()
}

func (l Limits) withDefaults() (Limits, error) {
	if min(l.MaxConnections, l.MaxRecords, l.MaxConnectionsPerSource, l.MaxHandshakes, l.MaxHandshakesPerSource, l.MaxMemoryMiB) < 0 {
		return Limits{}, errors.New("limits: a number is negative")
	}
	for _, d := range []time.Duration{l.HandshakeTimeout, l.ServerFirstWait, l.DialTimeout, l.Drain, l.IdleTimeout, l.MaxLifetime} {
		if d < 0 {
			return Limits{}, errors.New("limits: a duration is negative")
		}
	}
	orDefault(&l.MaxConnections, DefaultMaxConnections)
	orDefault(&l.HandshakeTimeout, DefaultHandshakeTimeout)
	orDefault(&l.ServerFirstWait, DefaultServerFirstWait)
	orDefault(&l.DialTimeout, DefaultDialTimeout)
	orDefault(&l.Drain, DefaultDrain)
	orDefault(&l.MaxRecords, DefaultMaxRecords)
	orDefault(&l.MaxMemoryMiB, DefaultMaxMemoryMiB)
	orDefault(&l.MaxHandshakes, min(l.MaxConnections, DefaultMaxHandshakes))
	if err := l.Requests.Check(); err != nil {
		return Limits{}, fmt.Errorf("limits: requests: %w", err)
	}
	return l, nil
}

func orDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// portOf checks host:port and returns the port.
func portOf(field, address string) (uint16, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not host:port", field, address)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s: port %q is not a number from 0 to 65535", field, port)
	}
	return uint16(n), nil
}

// socketPath takes the path out of unix:///PATH, unix:PATH or PATH.
func socketPath(field, address string) (string, error) {
	path := address
	if rest, ok := strings.CutPrefix(address, "unix://"); ok {
		path = rest
	} else if rest, ok := strings.CutPrefix(address, "unix:"); ok {
		path = rest
	}
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("%s: %q is not unix:///PATH with an absolute path", field, address)
	}
	return path, nil
}
