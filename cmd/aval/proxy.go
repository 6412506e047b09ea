// This file holds the proxy command.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"

	"github.com/aval-id/aval/cmd/aval/systemd"
	"github.com/aval-id/aval/proxy"
	"github.com/spf13/cobra"
)

func (c *cli) proxyCommand() *cobra.Command {
	o := defaultOperation
	path := c.lookup("AVAL_PROXY_CONFIG")
	cmd := &cobra.Command{
		Use: "proxy --config FILE", Short: "Run a workload's proxy: mTLS in front of any TCP protocol", Args: takes(),
		Long: `Proxy takes identity and policy from the agent's socket and puts mTLS in front
of a workload. The file is strict YAML:

  agent: unix:///run/aval/agent/workload.sock
  identity: spiffe://example.org/ns/shop/sa/api   # only where it has several
  inbound:
    - {listen: 0.0.0.0:8443, forward: 127.0.0.1:8080, port: 8080, protocol: auto}   # tls, server-first, http, http2, grpc
  outbound:
    - {listen: 127.0.0.1:9001, dial: 10.0.0.7:8443, id: spiffe://example.org/ns/shop/sa/api}

  admin: unix:///run/aval/proxy/api/admin.sock    # for aval proxy status, connections, drain
  transparent:   # connections that "aval proxy setup" redirects
    user: aval-proxy
    inbound: {}
    outbound:
      unknown: refuse   # passthrough unless set
      destinations:
        - {address: 10.0.0.0/24:8080, id: spiffe://example.org/ns/shop/sa/api}

It needs no privileges, and warns where it has root's. It opens its ports once it holds a complete snapshot of bundle and policies.
SIGTERM drains: open connections may end by themselves for limits.drain (30s).`,
		Example: "  aval proxy --config /etc/aval/proxy-api.yaml\n  aval proxy --config api.yaml --http-listen 127.0.0.1:8081",
	}
	cmd.Flags().StringVar(&path, "config", path, "the proxy's file (env AVAL_PROXY_CONFIG)")
	cmd.Flags().StringVar(&o.HTTPListen, "http-listen", "", "host:port for /livez, /readyz and /metrics; none unless set")
	cmd.Flags().StringVar(&o.LogFormat, "log-format", o.LogFormat, "text or json, on the standard error")
	cmd.Flags().StringVar(&o.LogLevel, "log-level", o.LogLevel, "debug, info, warn or error")
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		if path == "" {
			return usage(errors.New("proxy: --config is missing"))
		}
		return c.runProxy(ctx, path, o)
	})
	cmd.AddCommand(c.proxyStatusCommand(), c.proxyConnectionsCommand(), c.proxyDrainCommand())
	cmd.AddCommand(c.proxySetupCommand(), c.proxyCleanupCommand(), c.proxyCheckCommand())
	return cmd
}

func (c *cli) runProxy(ctx context.Context, path string, o operation) error {
	log, err := c.logger(o)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return usage(fmt.Errorf("proxy: configuration: %w", err))
	}
	cfg, err := proxy.ParseConfig(path, data)
	if err != nil {
		return usage(fmt.Errorf("proxy: configuration: %w", err))
	}
	cfg.Logger = log
	sockets, err := systemd.Sockets(c.lookup)
	if err != nil {
		return usage(fmt.Errorf("proxy: %w", err))
	}
	for _, s := range sockets {
		cfg.Sockets = append(cfg.Sockets, proxy.Socket{Name: s.Name, Listener: s.Listener})
	}
	supervisor, err := systemd.New(c.lookup)
	if err != nil {
		return usage(fmt.Errorf("proxy: %w", err))
	}
	cfg.PaceCollector = c.lookup("GOGC") == ""
	p, err := proxy.New(cfg)
	if err != nil {
		return usage(err)
	}
	if os.Geteuid() == 0 {
		log.Warn("the proxy runs as root, which it needs for nothing: run it as the workload's own user, with ports below 1024 passed on by systemd")
	}
	log.Info("proxy started; its ports open with the first snapshot", "agent", cfg.Agent)
	if c.lookup("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(p.MemoryLimit())
	}
	err = c.serve(ctx, &supervised{p, supervisor, log}, o, log)
	if errors.Is(err, proxy.ErrDrained) {
		return nil
	}
	return err
}

// supervised is a proxy that tells systemd how it is.
type supervised struct {
	*proxy.Proxy
	systemd systemd.Supervisor
	log     *slog.Logger
}

// Run runs the proxy. It says that it is ready once the listeners are open.
func (s *supervised) Run(ctx context.Context) error {
	done, end := context.WithCancel(context.WithoutCancel(ctx))
	var telling sync.WaitGroup
	telling.Go(func() { s.tell(ctx, done) })
	telling.Go(func() {
		// Status takes the locks that a connection takes.
		if err := s.systemd.Watch(done, func() { s.Status() }); err != nil {
			s.log.Error("watchdog", "error", err)
		}
	})
	err := s.Proxy.Run(ctx)
	end()
	telling.Wait()
	return err
}

// tell notifies systemd of the start and of the end.
func (s *supervised) tell(ctx, done context.Context) {
	notify := func(states ...string) {
		if err := s.systemd.Notify(states...); err != nil {
			s.log.Warn("systemd", "error", err)
		}
	}
	notify(systemd.Status("waits for the agent's first snapshot"))
	select {
	case <-s.Started():
		notify(systemd.Ready, systemd.Status("serves "+s.Status().Identity))
	case <-ctx.Done():
	case <-done.Done():
	}
	select {
	case <-s.Draining():
	case <-ctx.Done():
	case <-done.Done():
	}
	notify(systemd.Stopping, systemd.Status("drains"))
}
