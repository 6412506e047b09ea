// This file holds the tests of applications that answer requests badly: not
// at all, in part, or not in HTTP.

package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// upTo reads a request's header from an application's connection.
func upTo(c net.Conn, end string) {
	var got strings.Builder
	b := make([]byte, 4096)
	for !strings.Contains(got.String(), end) {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		got.Write(b[:n])
	}
}

func TestABrokenAnswerIsNeverTakenForAWholeOne(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		reset  bool
		status int // 0: the answer begins, and its body breaks off
	}{
		"nothing":              {"", false, 502},
		"nothing, reset":       {"", true, 502},
		"half a header":        {"HTTP/1.1 200 OK\r\nContent-Le", false, 502},
		"half a header, reset": {"HTTP/1.1 200 OK\r\nContent-Le", true, 502},
		"not HTTP":             {"220 ready\r\n\r\n", false, 502},
		"two lengths":          {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\nok", false, 502},
		"an endless header":    {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 2<<20), false, 502},
		"half a body":          {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", false, 0},
		"half a body, reset":   {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", true, 0},
		"half a chunk":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha", false, 0},
		"no last chunk":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.publish(t, mode("STRICT")+allow("example.org"+webPath))
			application := app(t, func(conn *net.TCPConn) {
				upTo(conn, "\r\n\r\n")
				io.WriteString(conn, c.answer)
				if c.reset {
					// What was sent arrives before the reset, or is lost with it.
					conn.SetLinger(0)
				}
			})
			_, in := s.requestsTo(t, application, nil)
			both(t, func(t *testing.T, two bool) {
				r := newRequest(t, "POST", "https://"+in+"/", strings.NewReader("body"))
				res, err := s.httpClient(t, in, s.web, two).Do(r)
				if err != nil {
					if c.status != 0 {
						t.Errorf("no answer: %v", err)
					}
					return
				}
				defer res.Body.Close()
				_, err = io.ReadAll(res.Body)
				switch {
				case c.status != 0 && (res.StatusCode != c.status || err != nil):
					t.Errorf("status %d, %v", res.StatusCode, err)
				case c.status == 0 && res.StatusCode == 200 && err == nil:
					t.Error("the body seems whole")
				}
			})
		})
	}
}

func TestARequestThatItsClientGivesUpEndsAtTheApplication(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	asked, ended := make(chan struct{}, 8), make(chan struct{}, 8)
	slow := newSite(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	for _, forward := range []string{ForwardHTTP1, ForwardH2C} {
		p, in := s.requestsTo(t, slow.address(), func(c *Config) { c.Inbound[0].ForwardProtocol = forward })
		both(t, func(t *testing.T, two bool) {
			ctx, giveUp := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			client := s.httpClient(t, in, s.web, two)
			go func() {
				_, err := client.Do(newRequest(t, "GET", "https://"+in+"/", nil).WithContext(ctx))
				failed <- err
			}()
			<-asked
			giveUp()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			select {
			case <-ended:
			case <-time.After(8 * time.Second):
				t.Fatal("the application still works on it")
			}
			eventually(t, "all is closed", func() bool {
				client.CloseIdleConnections()
				return p.Status().Open == 0
			})
		})
	}
}

func TestAnAnswerBeforeTheEndOfTheRequestPasses(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	// It answers, says that it will read no more, and closes its side.
	application := app(t, func(c *net.TCPConn) {
		upTo(c, "\r\n\r\n")
		io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much")
		c.CloseWrite()
		io.CopyN(io.Discard, c, 1<<20)
	})
	_, in := s.requestsTo(t, application, nil)
	both(t, func(t *testing.T, two bool) {
		body, feed := io.Pipe()
		defer feed.Close()
		go func() {
			for chunk := make([]byte, 32<<10); ; {
				if _, err := feed.Write(chunk); err != nil {
					return
				}
			}
		}()
		r := newRequest(t, "POST", "https://"+in+"/", body)
		// The client asks for leave to send: net/http gives up on an answer once
		// its own write was reset.
		r.Header.Set("Expect", "100-continue")
		if code, text := ask(t, s.httpClient(t, in, s.web, two), r); code != 413 || text != "too much" {
			t.Errorf("%d %q", code, text)
		}
	})
}
