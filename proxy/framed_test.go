// This file holds a client of HTTP/2 frames, for what net/http would never
// send, and the tests of floods of them.

package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/aval-id/aval/proxy/request"
)

// framed is a connection of HTTP/2.
type framed struct {
	t    testing.TB
	c    net.Conn
	f    *http2.Framer
	next uint32
}

func newFramed(t testing.TB, c net.Conn) *framed {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	f := &framed{t: t, c: c, f: http2.NewFramer(c, c), next: 1}
	f.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// open sends a header of these fields and returns its stream.
func (f *framed) open(fields ...string) (uint32, error) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	id := f.next
	f.next += 2
	return id, f.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndStream: true, EndHeaders: true})
}

// get sends a request and returns the status of its answer, "reset" or
// "closed".
func (f *framed) get(fields ...string) string {
	f.t.Helper()
	id, err := f.open(fields...)
	if err != nil {
		return "closed"
	}
	for {
		frame, err := f.f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if frame.StreamID == id {
				return frame.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if frame.StreamID == id {
				return "reset"
			}
		case *http2.GoAwayFrame:
			return "closed"
		}
	}
}

// end returns how the server ended the connection: the code of its GOAWAY, or
// nil where it just closed.
func (f *framed) end() error {
	for {
		frame, err := f.f.ReadFrame()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return errors.New("connection stays open")
		}
		if err != nil {
			return nil
		}
		if g, ok := frame.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeNo {
			return nil
		}
	}
}

func TestRapidResetsEndTheConnection(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	hold := make(chan struct{})
	app := app(t, func(*net.TCPConn) { <-hold })
	defer close(hold)
	_, in := s.requestsTo(t, app, func(c *Config) { c.Limits.Requests.Streams = 10 })
	f := newFramed(t, s.dialTLS(t, in, "h2"))
	go func() {
		for range 100_000 {
			id, err := f.open(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/")
			if err != nil || f.f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				return
			}
		}
	}()
	if err := f.end(); err != nil {
		t.Error(err)
	}
}

func TestAFloodOfContinuationsEndsTheConnection(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	_, in := s.requestsTo(t, echo(t), nil)
	f := newFramed(t, s.dialTLS(t, in, "h2"))
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, p := range []string{":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/"} {
		enc.WriteField(hpack.HeaderField{Name: p})
	}
	sent := 0
	go f.f.ReadFrame()
	if err := f.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.Bytes()}); err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte{0x40, 1, 'x', 127, 0}, 1) // a field with a long value
	piece = append(piece, bytes.Repeat([]byte{'y'}, 127)...)
	for sent < 64<<20 {
		if err := f.f.WriteContinuation(1, false, bytes.Repeat(piece, 60)); err != nil {
			return // the server has ended it
		}
		sent += len(piece) * 60
	}
	t.Errorf("%d MiB of continuations are taken", sent>>20)
}

func TestHeadersAreBounded(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	long := strings.Repeat("x", request.DefaultHeaderBytes)
	if got := statusOf(s.rawRequest(t, in, "GET / HTTP/1.1\r\nHost: a\r\nX: "+long+"\r\n\r\n")); got != "431" {
		t.Errorf("HTTP/1.1: %q", got)
	}
	if got := statusOf(s.rawRequest(t, in, "GET /"+long+" HTTP/1.1\r\nHost: a\r\n\r\n")); got != "431" {
		t.Errorf("HTTP/1.1 target: %q", got)
	}
	c := s.httpClient(t, in, s.web, true)
	r := newRequest(t, "GET", "https://"+in+"/", nil)
	r.Header.Set("X", long)
	if res, err := c.Do(r); err == nil {
		res.Body.Close()
		if res.StatusCode != 431 {
			t.Errorf("HTTP/2: %d", res.StatusCode)
		}
	}
	if seen := app.requests(); len(seen) > 0 {
		t.Errorf("the application sees %q", seen)
	}
	r.Header.Set("X", long[:request.DefaultHeaderBytes/2])
	if got, _ := ask(t, c, r); got != 200 {
		t.Errorf("half of it: %d", got)
	}
}

func TestSlowHeadersEndTheConnection(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	_, in := s.requestsTo(t, newSite(t, nil).address(), func(c *Config) {
		c.Limits.Requests.HeaderTimeout, c.Limits.Requests.IdleTimeout = 200*time.Millisecond, 200*time.Millisecond
	})
	for name, first := range map[string]string{
		"silent": "", "a part": "GET / HTTP/1.1\r\nHost: a\r\n", "preface only": "PRI * HTTP/2.0\r\n\r\n",
		"idle": "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "idle HTTP/2": http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := s.dialTLS(t, in)
			if _, err := io.WriteString(c, first); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(6 * time.Second))
			var timeout net.Error
			if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
				t.Error("the connection stays open")
			}
		})
	}
}

func TestStreamsOfAConnectionAreBounded(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	_, in := s.requestsTo(t, echo(t), func(c *Config) { c.Limits.Requests.Streams = 7 })
	f := newFramed(t, s.dialTLS(t, in, "h2"))
	for {
		frame, err := f.f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if set, ok := frame.(*http2.SettingsFrame); ok && !set.IsAck() {
			if v, ok := set.Value(http2.SettingMaxConcurrentStreams); !ok || v != 7 {
				t.Errorf("streams: %s", strconv.Itoa(int(v)))
			}
			return
		}
	}
}
