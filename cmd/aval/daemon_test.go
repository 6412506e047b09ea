// This file holds the tests of what lasting processes share: their health
// listener, their end, and what they leave behind.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/aval-id/aval/rotation"
)

// room is a part whose end the test decides.
type room struct {
	ready atomic.Pointer[string] // why it is not
	fail  chan error
	ended atomic.Bool
}

func (r *room) Run(ctx context.Context) error {
	defer r.ended.Store(true)
	select {
	case <-ctx.Done():
		return nil
	case err := <-r.fail:
		return err
	}
}

func (r *room) Ready() error {
	if why := r.ready.Load(); why != nil {
		return errors.New(*why)
	}
	return nil
}

func (r *room) Collectors() []prometheus.Collector {
	return []prometheus.Collector{prometheus.NewGauge(prometheus.GaugeOpts{Name: "aval_server_test"})}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start serves a room and returns its address and its end.
func start(t *testing.T, ctx context.Context, r *room) (string, <-chan error) {
	t.Helper()
	o := defaultOperation
	o.HTTPListen = freeAddress(t)
	c := &cli{streams: streams{err: io.Discard}}
	log, err := c.logger(o)
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() { end <- c.serve(ctx, r, o, log) }()
	return o.HTTPListen, end
}

func request(t *testing.T, method, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			if !rotation.Pause(t.Context(), time.Millisecond) {
				t.Fatal(err)
			}
			continue // it is not listening yet
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
}

func TestHealthAndMetricsAndNothingButGET(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r := &room{fail: make(chan error)}
	address, end := start(t, ctx, r)
	for path, want := range map[string]string{"/livez": "ok", "/readyz": "ok", "/metrics": "aval_server_test 0"} {
		if code, text := request(t, "GET", "http://"+address+path); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
		if code, _ := request(t, "POST", "http://"+address+path); code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", path, code)
		}
	}
	why := "no snapshot yet"
	r.ready.Store(&why)
	if code, text := request(t, "GET", "http://"+address+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, why) {
		t.Errorf("not ready: %d %s", code, text)
	}
	if code, _ := request(t, "GET", "http://"+address+"/livez"); code != http.StatusOK {
		t.Errorf("alive and not ready: %d", code)
	}
	stop()
	if err := <-end; err != nil || !r.ended.Load() {
		t.Errorf("a graceful end: %v, ended %v", err, r.ended.Load())
	}
}

func TestTheHTTPListenerIsBoundedForEachSource(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	r := &room{fail: make(chan error)}
	address, end := start(t, ctx, r)
	if code, _ := request(t, "GET", "http://"+address+"/livez"); code != http.StatusOK {
		t.Fatal(code)
	}
	// Another address of this machine takes all that it gets, and says nothing.
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	most := httpBounds.SourceConnections
	ended := make(chan struct{}, 2*most)
	for range 2 * most {
		c, err := from.DialContext(ctx, "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				ended <- struct{}{}
			}
		}()
	}
	for range most {
		<-ended
	}
	if code, _ := request(t, "GET", "http://"+address+"/livez"); code != http.StatusOK {
		t.Error(code)
	}
	stop()
	if err := <-end; err != nil {
		t.Error(err)
	}
}

func TestAFailedPartEndsTheProcessWithItsError(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := &room{fail: make(chan error, 1)}
	address, end := start(t, t.Context(), r)
	request(t, "GET", "http://"+address+"/livez")
	broken := errors.New("the store is gone")
	r.fail <- broken
	if err := <-end; !errors.Is(err, broken) {
		t.Errorf("ended with %v", err)
	}
}

func TestAPartThatEndsByItselfIsAnError(t *testing.T) {
	r := &room{fail: make(chan error, 1)}
	r.fail <- nil
	if err := (&cli{streams: streams{err: io.Discard}}).serve(t.Context(), r, defaultOperation, nil); err == nil {
		t.Error("no error")
	}
}

func TestLogsAreTextOrJSON(t *testing.T) {
	var b bytes.Buffer
	c := &cli{streams: streams{err: &b}}
	log, err := c.logger(operation{LogFormat: "json", LogLevel: "warn"})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not shown")
	log.Warn("shown", "some_key", 1)
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line["msg"] != "shown" || line["some_key"] != 1.0 {
		t.Errorf("%s: %v", b.String(), err)
	}
	for _, o := range []operation{{LogFormat: "xml", LogLevel: "info"}, {LogFormat: "text", LogLevel: "loud"}} {
		if _, err := c.logger(o); exitCode(err) != exitUsage {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
