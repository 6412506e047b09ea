// This file holds the tests of clients that speak HTTP to exhaust: floods of
// what costs them little. Each meets a proxy of its own process, whose memory
// is measured, and which serves others meanwhile.

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/identitytest"
)

// flooded runs a flood until it ends by itself, and checks that the proxy
// serves others beside it and did not grow by more than 64 MiB.
func flooded(t *testing.T, answer http.HandlerFunc, flood func(t *testing.T, s *scene, in string)) {
	t.Helper()
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	c := startChild(t, s, job{Forward: newSite(t, answer).address(), Files: 1024, Protocol: ProtocolHTTP})
	other := s.httpClient(t, c.address, s.web, true)
	call := func() (int, string) { return ask(t, other, newRequest(t, "HEAD", "https://"+c.address+"/", nil)) }
	if code, body := call(); code != 200 {
		t.Fatalf("before: %d %q", code, body)
	}
	before := c.resident(t)
	done := make(chan struct{})
	go func() { defer close(done); flood(t, s, c.address) }()
	for served := 0; ; served++ {
		if code, body := call(); code != 200 {
			t.Errorf("another client gets %d %q", code, body)
		}
		select {
		case <-done:
			most := int64(64 << 20)
			if raceDetector() {
				most *= 4
			}
			if grown := c.resident(t) - before; grown > most {
				t.Errorf("the proxy grew by %d MiB", grown>>20)
			}
			t.Logf("%d calls of another client, %d MiB more", served, (c.resident(t)-before)>>20)
			return
		default:
		}
	}
}

// headers prints a block of header fields.
func headers(fields ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// post opens a request with a body to come.
func (f *framed) post() uint32 {
	id := f.next
	f.next += 2
	f.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true,
		BlockFragment: headers(":method", "POST", ":scheme", "https", ":authority", "a", ":path", "/")})
	return id
}

// flood is one frame, or two, sent again and again.
type flood struct {
	frames int
	ends   bool // the proxy ends the connection
	unread bool // the client reads nothing, and its buffers decide whether it ends
	one    func(f *framed) error
}

var floods = map[string]flood{
	"SettingsUnread": {100_000, false, true, func(f *framed) error { return f.f.WriteSettings() }},
	"PingUnread":     {100_000, false, true, func(f *framed) error { return f.f.WritePing(false, [8]byte{}) }},
	"Ping":           {50_000, false, false, func(f *framed) error { return f.f.WritePing(false, [8]byte{}) }},
	"Priority": {50_000, false, false, func(f *framed) error {
		return f.f.WritePriority(1, http2.PriorityParam{StreamDep: 3, Weight: 7})
	}},
	"Unknown": {50_000, false, false, func(f *framed) error { return f.f.WriteRawFrame(0xfe, 0, 0, make([]byte, 100)) }},
	"EmptyData": {50_000, false, false, func(f *framed) error {
		if f.next == 1 {
			f.post()
		}
		return f.f.WriteData(1, false, nil)
	}},
	"TinyData": {50_000, false, false, func(f *framed) error {
		if f.next == 1 {
			f.post()
		}
		return f.f.WriteData(1, false, []byte("x"))
	}},
	"WindowOverflow": {2, true, false, func(f *framed) error { return f.f.WriteWindowUpdate(0, 1<<31-1) }},
	// The server resets what it answers with; that counts as taken back.
	"WindowOfNothing": {50_000, true, false, func(f *framed) error {
		id, err := f.open(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/slow")
		if err == nil {
			err = f.f.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4))
		}
		return err
	}},
}

// run sends the flood and reports whether the proxy ended the connection.
func (l flood) run(f *framed) (ended bool) {
	read := make(chan error, 1)
	if !l.unread {
		go func() { read <- f.end() }()
	}
	for range l.frames {
		if l.one(f) != nil {
			return true
		}
	}
	if l.unread {
		return false
	}
	if !l.ends {
		f.c.SetReadDeadline(time.Now())
	}
	return <-read == nil
}

// TestFloodsOfFramesAreBounded: some of them end the connection, and none
// costs more than its own.
func TestFloodsOfFramesAreBounded(t *testing.T) {
	for name, l := range floods {
		t.Run(name, func(t *testing.T) {
			hold := make(chan struct{})
			defer close(hold)
			answer := func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					select {
					case <-r.Context().Done():
					case <-hold:
					}
				}
				io.Copy(io.Discard, r.Body)
			}
			flooded(t, answer, func(t *testing.T, s *scene, in string) {
				if ended := l.run(newFramed(t, s.dialTLS(t, in, "h2"))); ended != l.ends && !l.unread {
					t.Errorf("ended: %v", ended)
				}
			})
		})
	}
}

func TestAHeaderThatUnpacksToMoreThanItsBoundIsRefused(t *testing.T) {
	flooded(t, nil, func(t *testing.T, s *scene, in string) {
		f := newFramed(t, s.dialTLS(t, in, "h2"))
		var block bytes.Buffer
		block.Write(headers(":method", "GET", ":scheme", "https", ":path", "/"))
		hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 3000)})
		block.Write(bytes.Repeat([]byte{0x80 | 62}, 12_000)) // the newest entry of the table, 36 MB of it
		if err := f.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
			return
		}
		f.next = 3
		for {
			frame, err := f.f.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := frame.(*http2.MetaHeadersFrame); ok {
				if got := h.PseudoValue("status"); got != "431" {
					t.Errorf("answered with %s", got)
				}
				return
			}
			if _, ok := frame.(*http2.RSTStreamFrame); ok {
				return
			}
		}
	})
}

// endless answers with more than any buffer holds.
func endless(w http.ResponseWriter, r *http.Request) {
	if r.Method == "HEAD" {
		return
	}
	chunk := make([]byte, 64<<10)
	for range 64 << 20 / len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

func TestClientsThatNeverReadCostTheirWindowsAlone(t *testing.T) {
	t.Run("HTTP2", func(t *testing.T) {
		flooded(t, endless, func(t *testing.T, s *scene, in string) {
			// Windows as wide as they go, and nobody reads what fills them.
			f := newFramed(t, s.dialTLS(t, in, "h2"))
			f.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
			f.f.WriteWindowUpdate(0, 1<<30)
			for range 90 {
				if _, err := f.open(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/"); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(time.Second) // for what is buffered to be so
		})
	})
	t.Run("HTTP1", func(t *testing.T) {
		flooded(t, endless, func(t *testing.T, s *scene, in string) {
			for range 50 {
				c := s.dialTLS(t, in)
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			}
			<-time.After(time.Second)
		})
	})
}

func TestPipelinedRequestsWaitForTheirAnswersToBeRead(t *testing.T) {
	flooded(t, nil, func(t *testing.T, s *scene, in string) {
		c := s.dialTLS(t, in)
		requests := strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
		sent := 0
		c.SetWriteDeadline(time.Now().Add(1500 * time.Millisecond))
		for ; sent < 64<<20; sent += len(requests) {
			if _, err := io.WriteString(c, requests); err != nil {
				break
			}
		}
		if sent >= 64<<20 {
			t.Errorf("%d MiB of requests are taken and none of the answers was read", sent>>20)
		}
	})
}

func TestWhatIsNoBodyInAChunkedOneIsBounded(t *testing.T) {
	sink := func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
	for name, piece := range map[string]string{
		"Extensions":  "1;" + strings.Repeat("x", 8<<10) + "\r\ny\r\n",
		"LongLine":    "1;" + strings.Repeat("x", 64<<10),
		"Trailers":    "0\r\n" + strings.Repeat("X-T: "+strings.Repeat("v", 900)+"\r\n", 1000),
		"LongTrailer": "0\r\nX-T: " + strings.Repeat("v", 64<<10),
	} {
		t.Run(name, func(t *testing.T) {
			flooded(t, sink, func(t *testing.T, s *scene, in string) {
				c := s.dialTLS(t, in)
				io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
				sent := 0
				for ; sent < 32<<20; sent += len(piece) {
					if _, err := io.WriteString(c, piece); err != nil {
						return
					}
					if _, rest, ok := strings.Cut(piece, "0\r\n"); ok && strings.HasPrefix(piece, "0") {
						piece = rest
					}
				}
				t.Errorf("%d MiB are taken", sent>>20)
			})
		})
	}
}

func TestHeaderFieldsAreCounted(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, nil)
	_, in := s.requestsTo(t, app.address(), nil)
	for n, want := range map[int]string{50: "200", 126: "200", 200: "431", 4000: "431"} {
		var text strings.Builder
		fields := []string{":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/"}
		for i := range n {
			fmt.Fprintf(&text, "x%d: y\r\n", i)
			fields = append(fields, fmt.Sprintf("x%d", i), "y")
		}
		if got := statusOf(s.rawRequest(t, in, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+text.String()+"\r\n")); got != want {
			t.Errorf("HTTP/1.1 with %d fields: %q, want %s", n, got, want)
		}
		if n > 1000 {
			continue // above what one frame holds
		}
		if got := newFramed(t, s.dialTLS(t, in, "h2")).get(fields...); got != want {
			t.Errorf("HTTP/2 with %d fields: %q, want %s", n, got, want)
		}
	}
	if seen := len(app.requests()); seen != 4 {
		t.Errorf("the application sees %d requests", seen)
	}
}

func TestAStalledBodyEndsWithTheIdleTimeout(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	_, in := s.requestsTo(t, newSite(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }).address(), func(c *Config) {
		c.Limits.IdleTimeout = 300 * time.Millisecond
	})
	for name, dial := range map[string]func() net.Conn{
		"HTTP1": func() net.Conn {
			c := s.dialTLS(t, in)
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nbegun")
			return c
		},
		"HTTP2": func() net.Conn {
			f := newFramed(t, s.dialTLS(t, in, "h2"))
			f.f.WriteData(f.post(), false, []byte("begun"))
			return f.c
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial()
			c.SetReadDeadline(time.Now().Add(6 * time.Second))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Error("the connection stays open")
			}
		})
	}
}

func TestSettingsThatEndConnectionsHoldForRequestsToo(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		change func(*Config)
		web    identitytest.Option
		reason string
	}{
		"lifetime": {func(c *Config) { c.Limits.MaxLifetime = 300 * time.Millisecond }, identitytest.Lifetime(now.Add(-time.Minute), now.Add(time.Hour)), audit.ReasonLimit},
		"expiry":   {func(c *Config) { c.OnPeerExpiry = Cut }, identitytest.Lifetime(now.Add(-time.Minute), now.Add(1200*time.Millisecond)), audit.ReasonExpired},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.publish(t, mode("STRICT"))
			s.web = s.td.SVID(t, webPath, c.web)
			_, in := s.requestsTo(t, newSite(t, func(w http.ResponseWriter, r *http.Request) {
				for r.Context().Err() == nil { // busy to its end
					if _, err := io.WriteString(w, "more\n"); err != nil || http.NewResponseController(w).Flush() != nil {
						return
					}
				}
			}).address(), c.change)
			conn := s.dialTLS(t, in)
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Error("the connection stays open")
			}
			s.agent.waitFor(1, reason("inbound", c.reason))
		})
	}
}
