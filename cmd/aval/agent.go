// This file holds the agent command: its settings and how they become an
// agent.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/aval-id/aval/agent"
	"github.com/aval-id/aval/agent/join"
	"github.com/aval-id/aval/cmd/aval/settings"
	"github.com/spf13/cobra"
)

const defaultAgentDir = "/var/lib/aval/agent"

// agentSettings is every setting of an agent process.
type agentSettings struct {
	operation
	Server        string `json:"server" flag:"server" usage:"host:port of the server (required)"`
	JoinToken     string `json:"joinToken" flag:"join-token" env:"AVAL_JOIN_TOKEN" exclusive:"join-token" secret:"true" usage:"token for the first contact; better in a file or AVAL_JOIN_TOKEN, since others see command lines"`
	JoinTokenFile string `json:"joinTokenFile" flag:"join-token-file" exclusive:"join-token" usage:"file with the token for the first contact"`
	BundleHash    string `json:"bundleHash" flag:"bundle-hash" exclusive:"bundle" usage:"sha256:HEX of the root that the server must prove at the first contact"`
	BundleFile    string `json:"bundleFile" flag:"bundle-file" exclusive:"bundle" usage:"PEM file with the roots that the server must prove at the first contact"`
	TrustDomain   string `json:"trustDomain" flag:"trust-domain" usage:"refuse a server of any other trust domain"`
	DataDir       string `json:"dataDir" flag:"data-dir" usage:"directory for the node's credential, spool and kept checkpoints; made with mode 0700"`
	Socket        string `json:"socket" flag:"socket" usage:"Unix socket for workloads: the SPIFFE Workload API"`

	MaxConnections       int   `json:"maxConnections" flag:"max-connections" usage:"open connections to the socket (default 8192)"`
	MaxConnectionsPerUID int   `json:"maxConnectionsPerUID" flag:"max-connections-per-uid" usage:"open connections to the socket for one user (default 4096, and no more than are left free for others)"`
	SpoolBytes           int64 `json:"spoolBytes" flag:"spool-bytes" usage:"bytes of connection records kept while the server is away (default 32 MiB)"`
}

func (c *cli) agentCommand() *cobra.Command {
	s := &agentSettings{operation: defaultOperation, DataDir: defaultAgentDir, Socket: defaultAgentSocket}
	cmd := &cobra.Command{
		Use: "agent", Short: "Run a node's agent: attestation, keys, the Workload API", Args: takes(),
		Long: `Agent joins a node to its server and serves the SPIFFE Workload API. The first
start needs a join token and either the root's hash or a bundle file, by which
the server is verified before anything is sent; "aval token create" prints the
whole command. Later starts use the credential in the data directory.

Settings come from flags, AVAL_AGENT_* variables (the token also from
AVAL_JOIN_TOKEN) and a strict YAML file, in this order. A file's keys are the
flags in camel case: server, joinTokenFile, bundleHash, dataDir, socket, ...`,
		Example: `  aval agent --server 10.0.0.1:8443 --join-token-file /run/token --bundle-hash sha256:0123...
  aval agent --config /etc/aval/agent.yaml`,
	}
	set := settings.Bind(cmd.Flags(), s, "AVAL_AGENT")
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		log, err := c.settle(set, &s.operation)
		if err != nil {
			return err
		}
		return c.runAgent(ctx, s, log)
	})
	return cmd
}

func (c *cli) runAgent(ctx context.Context, s *agentSettings, log *slog.Logger) error {
	cfg, err := s.config(log)
	if err != nil {
		return usage(fmt.Errorf("agent: %w", err))
	}
	a, err := agent.New(cfg)
	if err != nil {
		return joinFailure(err)
	}
	return joinFailure(c.serve(ctx, a, s.operation, log))
}

// joinFailure gives a node that was refused its exit code.
func joinFailure(err error) error {
	if _, ok := errors.AsType[*join.Refused](err); ok {
		return hinted(err, exitDenied, "aval token create, on the server, prints a command that joins a node")
	}
	return err
}

func (s *agentSettings) config(log *slog.Logger) (agent.Config, error) {
	if s.Server == "" {
		return agent.Config{}, errors.New("--server is missing")
	}
	token := s.JoinToken
	if s.JoinTokenFile != "" {
		text, err := readToken(s.JoinTokenFile)
		if err != nil {
			return agent.Config{}, err
		}
		token = text
	}
	socket, err := socketPath(s.Socket)
	if err != nil {
		return agent.Config{}, err
	}
	return agent.Config{
		Server: s.Server, JoinToken: agent.Token(token), BundleHash: s.BundleHash, BundleFile: s.BundleFile,
		TrustDomain: s.TrustDomain, DataDir: s.DataDir, Socket: socket, Version: build().Version, Logger: log,
		MaxConnections: s.MaxConnections, MaxConnectionsPerUID: s.MaxConnectionsPerUID, SpoolBytes: s.SpoolBytes,
	}, nil
}

// maxTokenFile bounds a token's file.
const maxTokenFile = 4 << 10

// readToken reads a token's file. A file that is gone is no error: a node
// that has joined needs no token, and whoever made the file may remove it.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("join token file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return "", fmt.Errorf("join token file: %w", err)
	}
	if len(text) > maxTokenFile {
		return "", fmt.Errorf("join token file %s: longer than a token", path)
	}
	return string(bytes.TrimSpace(text)), nil
}
