// This file holds the access log: a line for each request, once it is over.

package request

import (
	"io"
	"log/slog"
	"time"

	"github.com/aval-id/aval/identity/policy"
)

// log writes down the request that is over. The query is never part of it.
func (e *exchange) log(took time.Duration) {
	verdict := "denied"
	if e.allowed {
		verdict = "allowed"
	}
	d, c := &e.verdict, &e.c.peer.Connection
	mode := ""
	if d.Mode != policy.Unset {
		mode = d.Mode.String()
	}
	e.s.cfg.Access.LogAttrs(e.r.Context(), slog.LevelInfo, "request",
		slog.String("method", e.r.Method), slog.String("host", e.target.name), slog.String("path", e.target.path),
		slog.String("protocol", e.r.Proto), slog.Int("status", e.status), slog.String("verdict", verdict), slog.String("reason", d.Reason),
		slog.String("policy", d.Policy), slog.Int("rule", d.Rule), slog.String("mode", mode), slog.String("mode_source", d.ModeSource),
		slog.Uint64("generation", d.Generation), slog.String("audit", d.Audit),
		slog.String("dry_run", dryRun(d)), slog.String("dry_run_policy", d.Trial.Policy),
		slog.Int64("bytes_in", e.received.Load()), slog.Int64("bytes", e.sent), slog.Float64("duration_ms", milliseconds(took)),
		slog.Float64("upstream_ms", milliseconds(e.upstream)),
		slog.String("client_id", e.c.peer.ID), slog.String("server_id", e.c.peer.Server),
		slog.String("source", c.Source.String()), slog.Int("port", int(c.Port)), slog.String("trace_id", e.trace))
}

// dryRun says what the dry run decides otherwise.
func dryRun(d *policy.Decision) string {
	switch {
	case !d.Trial.Ran || d.Trial.Allowed == d.Allowed:
		return ""
	case d.Trial.Allowed:
		return "would allow"
	}
	return "would deny"
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// counted is a body whose bytes the access log tells.
type counted struct {
	io.ReadCloser
	e *exchange
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.e.received.Add(int64(n))
	return n, err
}
