// This file holds what server, agent and proxy have in common as processes:
// logging, the HTTP listener, and the group they run in.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/aval-id/aval/cmd/aval/settings"
	"github.com/aval-id/aval/identity/wire/sources"
)

// operation is the settings that every lasting process has.
type operation struct {
	HTTPListen string `json:"httpListen" flag:"http-listen" usage:"host:port for /livez, /readyz and /metrics; none unless set"`
	LogFormat  string `json:"logFormat" flag:"log-format" usage:"text or json, on the standard error"`
	LogLevel   string `json:"logLevel" flag:"log-level" usage:"debug, info, warn or error"`
}

// defaultOperation is operation where nothing is set.
var defaultOperation = operation{LogFormat: "text", LogLevel: "info"}

// settle loads a process's settings, which hold o, and makes its logger.
func (c *cli) settle(set *settings.Set, o *operation) (*slog.Logger, error) {
	if err := set.Load(c.environ); err != nil {
		return nil, usage(err)
	}
	return c.logger(*o)
}

// logger makes the process's logger.
func (c *cli) logger(o operation) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		return nil, usage(fmt.Errorf("log level %q is none of debug, info, warn, error", o.LogLevel))
	}
	opts := &slog.HandlerOptions{Level: level}
	switch strings.ToLower(o.LogFormat) {
	case "text":
		return slog.New(slog.NewTextHandler(c.err, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(c.err, opts)), nil
	}
	return nil, usage(fmt.Errorf("log format %q is neither text nor json", o.LogFormat))
}

// part is a room as a process sees it.
type part interface {
	// Run blocks until ctx ends, and then leaves nothing behind.
	Run(ctx context.Context) error
	// Ready returns nil while the part does its work.
	Ready() error
	// Collectors are its metrics, to be registered once.
	Collectors() []prometheus.Collector
}

// serve runs a part and its HTTP listener until ctx ends or one of them
// fails, and waits for both.
func (c *cli) serve(ctx context.Context, p part, o operation, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	if o.HTTPListen != "" {
		handler, err := operationHandler(p)
		if err != nil {
			return err
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.HTTPListen)
		if err != nil {
			return fmt.Errorf("listen for http: %w", err)
		}
		log.Info("http listening", "address", l.Addr().String())
		g.Go(func() error { return serveHTTP(ctx, l, handler) })
	}
	g.Go(func() error {
		err := p.Run(ctx)
		if err == nil && ctx.Err() == nil {
			return errors.New("ended by itself")
		}
		return err
	})
	err := g.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	return err
}

// operationHandler serves /livez, /readyz and /metrics, for GET alone. It
// gives nothing away that needs protection, and changes nothing.
func operationHandler(p part) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	for _, collector := range append(p.Collectors(),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) {
		if err := registry.Register(collector); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := p.Ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return mux, nil
}

// httpBounds keep whoever reaches the HTTP listener from taking the process's
// descriptors, and one source from keeping others out.
var httpBounds = sources.Limits{Handshakes: 256, SourceConnections: 64}

const (
	httpTimeout   = 10 * time.Second
	httpStopAfter = time.Second
)

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, handler http.Handler) error {
	s := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: httpTimeout, ReadTimeout: httpTimeout, WriteTimeout: httpTimeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpStopAfter)
		defer cancel()
		err := s.Shutdown(grace)
		if err != nil {
			err = s.Close()
		}
		stopped <- err
	})
	err := s.Serve(sources.Listen(l, httpBounds))
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serve http: %w", err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("stop http: %w", err)
	}
	return nil
}
