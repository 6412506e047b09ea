// This file holds Config, its defaults and its checks.

package request

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/aval-id/aval/identity/policy"
)

// The documented defaults of Limits.
const (
	DefaultHeaderBytes   = 64 << 10
	DefaultHeaderFields  = 128
	DefaultStreams       = 100
	DefaultHeaderTimeout = 10 * time.Second
	DefaultIdleTimeout   = 5 * time.Minute
)

// resetsPerStream says how many requests a client may take back for each
// stream that it may have, over those that it let be answered.
const resetsPerStream = 4

// Limits bound what a connection's requests can cost. Zero means the default.
type Limits struct {
	// HeaderBytes bounds a request's first line and header fields together.
	// A larger one is answered with 431.
	HeaderBytes int `json:"headerBytes"`
	// HeaderFields bounds the number of a request's header fields. One with
	// more is answered with 431.
	HeaderFields int `json:"headerFields"`
	// Streams bounds the concurrent requests of one HTTP/2 connection. One
	// that resets four times as many requests before their answers is closed.
	Streams int `json:"streams"`
	// HeaderTimeout bounds the time in which a request's header must arrive,
	// from its first byte, or for the first request from the beginning.
	HeaderTimeout time.Duration `json:"headerTimeout"`
	// IdleTimeout is how long a connection may have no request.
	IdleTimeout time.Duration `json:"idleTimeout"`
}

// House is the proxy that a Server works for. Its methods are called from
// many goroutines at once.
type House interface {
	// Set returns the policies of the moment. After a change the house also
	// calls Reconsider.
	Set() *policy.Set
	// Refused takes note of a request that the policies refused, Allowed of one
	// that they let through, before it is forwarded. They must not block, and
	// keep nothing of their arguments but texts.
	Refused(Refusal)
	Allowed(*Peer, *policy.HTTP, *policy.Decision)
}

// Config is everything a Server needs to know.
type Config struct {
	// House decides and keeps the records. It must be set.
	House House
	// Dial connects to an application's address, host:port. It must be set.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Limits bound what clients can cost.
	Limits Limits
	// Metrics counts; nil means metrics of its own. Servers of one process
	// share one.
	Metrics *Metrics
	// Access receives a record of every request; nil writes none.
	Access *slog.Logger
	// Logger receives what operators need to know; nil discards it.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.House == nil {
		return Config{}, errors.New("house is missing")
	}
	if c.Dial == nil {
		return Config{}, errors.New("dial is missing")
	}
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return Config{}, err
	}
	c.Limits = limits
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Check reports what is wrong with the limits.
func (l Limits) Check() error {
	_, err := l.withDefaults()
	return err
}

func (l Limits) withDefaults() (Limits, error) {
	if l.HeaderBytes == 0 {
		l.HeaderBytes = DefaultHeaderBytes
	}
	if l.HeaderFields == 0 {
		l.HeaderFields = DefaultHeaderFields
	}
	if l.Streams == 0 {
		l.Streams = DefaultStreams
	}
	if l.HeaderTimeout == 0 {
		l.HeaderTimeout = DefaultHeaderTimeout
	}
	if l.IdleTimeout == 0 {
		l.IdleTimeout = DefaultIdleTimeout
	}
	const least, most = 8 << 10, 1 << 20
	switch {
	case l.HeaderBytes < least || l.HeaderBytes > most:
		return Limits{}, fmt.Errorf("headerBytes: %d is not from %d to %d", l.HeaderBytes, least, most)
	case l.HeaderFields < 16 || l.HeaderFields > 10_000:
		return Limits{}, fmt.Errorf("headerFields: %d is not from 16 to 10000", l.HeaderFields)
	case l.Streams < 0 || l.Streams > 10_000:
		return Limits{}, fmt.Errorf("streams: %d is not from 1 to 10000", l.Streams)
	case l.HeaderTimeout < 0 || l.IdleTimeout < 0:
		return Limits{}, errors.New("a timeout is negative")
	}
	return l, nil
}
