// This file holds the server command: its settings and how they become a
// server.

package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/aval-id/aval/ca/jwks"
	"github.com/aval-id/aval/ca/server"
	"github.com/aval-id/aval/cmd/aval/settings"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
	"github.com/spf13/cobra"
)

// serverSettings is every setting of a server process. A duration or number
// of zero means the default that the help text names.
type serverSettings struct {
	operation
	TrustDomain   string           `json:"trustDomain" flag:"trust-domain" usage:"whose identities the server issues, such as example.org (required)"`
	DataDir       string           `json:"dataDir" flag:"data-dir" usage:"directory for keys, certificates, store and logs; made with mode 0700"`
	Name          string           `json:"name" flag:"name" usage:"name of this server, the end of its SPIFFE ID (default server-1)"`
	Listen        string           `json:"listen" flag:"listen" usage:"host:port for nodes"`
	Advertise     string           `json:"advertise" flag:"advertise" usage:"host:port that join commands name (default: the listener's address)"`
	AdminSocket   string           `json:"adminSocket" flag:"admin-socket" usage:"Unix socket for operators"`
	AdminGroup    string           `json:"adminGroup" flag:"admin-group" usage:"group whose members may use the admin socket, besides root and the server's user"`
	RootKey       string           `json:"rootKey" flag:"root-key" usage:"KMS URI of the root's key (default softkms:path=DATA/keys/root.key)"`
	RootKeyType   string           `json:"rootKeyType" flag:"root-key-type" usage:"kind of the root's key where it is made here: P-256, P-384, Ed25519, RSA-2048, RSA-3072 or RSA-4096 (default P-256)"`
	IssuerKeyType string           `json:"issuerKeyType" flag:"issuer-key-type" usage:"kind of the intermediates' keys, one of the same (default P-256)"`
	Upstream      upstreamSettings `json:"upstream"`
	RootNamespace string           `json:"rootNamespace" flag:"root-namespace" usage:"namespace whose policies cover the trust domain (default aval-system)"`
	Authorization struct {
		Default string `json:"default" flag:"authorization-default" usage:"allow or deny: what holds for a workload without any ALLOW policy (default allow)"`
	} `json:"authorization"`
	EndpointsByAttribute bool `json:"endpointsByAttribute" flag:"endpoints-by-attribute" usage:"count an address as a node's only by its attribute address, not by where its stream comes from, as behind a load balancer"`

	MinTTL          time.Duration `json:"minTTL" flag:"min-ttl" usage:"shortest lifetime of a workload's SVID (default 5m)"`
	DefaultTTL      time.Duration `json:"defaultTTL" flag:"default-ttl" usage:"lifetime of an SVID whose registration names none (default 4h)"`
	MaxTTL          time.Duration `json:"maxTTL" flag:"max-ttl" usage:"longest lifetime of a workload's SVID (default 24h)"`
	NodeTTL         time.Duration `json:"nodeTTL" flag:"node-ttl" usage:"lifetime of a node's credential (default 24h)"`
	ServerTTL       time.Duration `json:"serverTTL" flag:"server-ttl" usage:"lifetime of the server's own SVID (default 24h)"`
	IntermediateTTL time.Duration `json:"intermediateTTL" flag:"intermediate-ttl" usage:"lifetime of the server's signing certificate (default 168h)"`
	RootTTL         time.Duration `json:"rootTTL" flag:"root-ttl" usage:"lifetime of a root made at the first start (default 87600h)"`
	RootRotation    string        `json:"rootRotation" flag:"root-rotation" usage:"auto or manual: whether a rollover of the root begins by itself at two thirds of its life (default auto)"`
	Maintenance     string        `json:"maintenanceWindow" flag:"maintenance-window" usage:"when it may begin by itself, in UTC, such as 'Sat,Sun 02:00-05:00' (default: at any time)"`

	JWKSAllow    string        `json:"jwksAllow" flag:"jwks-allow" usage:"hosts that keys of token issuers are fetched from, HOST[:PORT][=CIDR+CIDR] between commas; private addresses only where a CIDR lists them (default none)"`
	JWKSDir      string        `json:"jwksDir" flag:"jwks-dir" usage:"directory whose files may hold keys of token issuers (default none)"`
	JWKSCA       string        `json:"jwksCA" flag:"jwks-ca" usage:"roots in PEM by which the hosts of --jwks-allow are verified (default the system's)"`
	JWKSRefresh  time.Duration `json:"jwksRefresh" flag:"jwks-refresh" usage:"how often keys of token issuers are fetched, give or take a tenth (default 5m)"`
	VerifyLeaves int           `json:"verifyLeaves" flag:"verify-leaves" usage:"one of this many leaves, picked at random, has its signature verified before it leaves; 1 means each (default 100, negative: none)"`

	AuthorityReserve int64         `json:"authorityReserve" flag:"authority-reserve" usage:"bytes of disk held for administrative records (default 16 MiB, negative: none)"`
	ConnectionsQuota int64         `json:"connectionsQuota" flag:"connections-quota" usage:"bytes that the connections log may take (default 4 GiB, negative: unlimited)"`
	MaxConnections   int           `json:"maxConnections" flag:"max-connections" usage:"open connections of nodes (default 8192)"`
	MaxPerSource     int           `json:"maxHandshakesPerSource" flag:"max-handshakes-per-source" usage:"TLS handshakes of one source at once, and its connections without a certificate (default: 1/16 of max-connections, loopback not counted)"`
	NodeSVIDs        int           `json:"nodeSVIDsPerSecond" flag:"node-svids-per-second" usage:"certificates that one node may cause in the long run (default 100, negative: unlimited)"`
	NodeSVIDBurst    int           `json:"nodeSVIDBurst" flag:"node-svid-burst" usage:"certificates that one node may cause at once (default 20000)"`
	NodeRecords      int           `json:"nodeRecordsPerSecond" flag:"node-records-per-second" usage:"connection records taken from one node in the long run (default 2000, negative: unlimited)"`
	NodeRecordBurst  int           `json:"nodeRecordBurst" flag:"node-record-burst" usage:"connection records taken from one node at once (default 100000)"`
	HandshakeTimeout time.Duration `json:"handshakeTimeout" flag:"handshake-timeout" usage:"deadline of a TLS handshake (default 10s)"`
	DrainTimeout     time.Duration `json:"drainTimeout" flag:"drain-timeout" usage:"bound of a graceful stop (default 5s)"`
}

func (c *cli) serverCommand() *cobra.Command {
	s := &serverSettings{
		operation: defaultOperation, DataDir: "/var/lib/aval/server", Listen: "127.0.0.1:8443", AdminSocket: defaultAdminSocket,
	}
	cmd := &cobra.Command{
		Use: "server", Short: "Run the server: CA, registrations, policies, record", Args: takes(),
		Long: `Server runs the certificate authority and identity service of a trust domain.
Its first start makes the root and this server's own intermediate; later
starts find them. The root's key may live in a file, a PKCS#11 token, a TPM, a
cloud's key service or Vault, or nowhere near: --root-key and --upstream say
where. It signs intermediates alone, never a workload's certificate.

Settings come from flags, AVAL_SERVER_* variables and a strict YAML file, in
this order. A file's keys are the flags in camel case: trustDomain, dataDir,
httpListen, adminSocket, minTTL, authorization.default, ...`,
		Example: `  aval server --trust-domain example.org --data-dir /var/lib/aval/server \
      --listen 0.0.0.0:8443 --http-listen 127.0.0.1:8080 --admin-socket /run/aval/server/admin.sock
  aval server --trust-domain example.org \
      --root-key 'softkms:path=/var/lib/aval/server/keys/root.key;passphrase-source=credential:aval-root'
  aval server --config /etc/aval/server.yaml`,
	}
	set := settings.Bind(cmd.Flags(), s, "AVAL_SERVER")
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		log, err := c.settle(set, &s.operation)
		if err != nil {
			return err
		}
		return c.runServer(ctx, s, log)
	})
	return cmd
}

func (c *cli) runServer(ctx context.Context, s *serverSettings, log *slog.Logger) error {
	cfg, err := s.config(log)
	if err != nil {
		return usage(fmt.Errorf("server: %w", err))
	}
	client, err := s.Upstream.join(&cfg, log)
	if err != nil {
		return usage(fmt.Errorf("server: %w", err))
	}
	srv, err := server.New(cfg)
	if err != nil {
		return err
	}
	if client != nil {
		return c.serve(ctx, withVault{srv, client}, s.operation, log)
	}
	return c.serve(ctx, srv, s.operation, log)
}

func (s *serverSettings) config(log *slog.Logger) (server.Config, error) {
	if s.TrustDomain == "" {
		return server.Config{}, fmt.Errorf("--trust-domain is missing")
	}
	td, err := identity.ParseTrustDomain(s.TrustDomain)
	if err != nil {
		return server.Config{}, err
	}
	deny := false
	switch s.Authorization.Default {
	case "", "allow":
	case "deny":
		deny = true
	default:
		return server.Config{}, fmt.Errorf("authorization default %q is neither allow nor deny", s.Authorization.Default)
	}
	window, err := rotation.ParseWindow(s.Maintenance)
	if err != nil {
		return server.Config{}, fmt.Errorf("maintenance %w", err)
	}
	if !slices.Contains([]string{"", "auto", "manual"}, s.RootRotation) {
		return server.Config{}, fmt.Errorf("root rotation %q is neither auto nor manual", s.RootRotation)
	}
	return server.Config{
		MaintenanceWindow: window, ManualRootRotation: s.RootRotation == "manual",
		TrustDomain: td, DataDir: s.DataDir, Name: s.Name, Listen: s.Listen, Advertise: s.Advertise,
		AdminSocket: s.AdminSocket, AdminGroup: s.AdminGroup, RootKey: s.RootKey,
		RootKeyType: identity.KeyType(s.RootKeyType), IssuerKeyType: identity.KeyType(s.IssuerKeyType),
		MinTTL: s.MinTTL, DefaultTTL: s.DefaultTTL, MaxTTL: s.MaxTTL, NodeTTL: s.NodeTTL,
		ServerTTL: s.ServerTTL, IntermediateTTL: s.IntermediateTTL, RootTTL: s.RootTTL, VerifyLeaves: s.VerifyLeaves,
		RootNamespace: s.RootNamespace, DefaultDeny: deny, EndpointsByAttribute: s.EndpointsByAttribute,
		KeySources: jwks.Config{Allow: s.JWKSAllow, Dir: s.JWKSDir, CAFile: s.JWKSCA}, KeysRefresh: s.JWKSRefresh,
		AuthorityReserve: s.AuthorityReserve, ConnectionsQuota: s.ConnectionsQuota,
		MaxConnections: s.MaxConnections, MaxHandshakesPerSource: s.MaxPerSource, HandshakeTimeout: s.HandshakeTimeout, DrainTimeout: s.DrainTimeout,
		IssuePace:  server.Pace{PerSecond: float64(s.NodeSVIDs), Burst: s.NodeSVIDBurst},
		RecordPace: server.Pace{PerSecond: float64(s.NodeRecords), Burst: s.NodeRecordBurst},
		Version:    build().Version, Logger: log,
	}, nil
}
