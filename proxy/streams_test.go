// This file holds the tests of what flows through a request: bodies in both
// directions, trailers, interim answers, websockets and calls of gRPC; and of
// policies that change meanwhile.

package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/aval-id/aval/audit"
)

// denyStream denies what the tests of changes have open.
var denyStream = rules("closed", "DENY", `{to: [{operation: {paths: ["/stream", "/test.Echo/*"]}}]}`)

func TestBodiesStreamInBothDirections(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		c.EnableFullDuplex()
		c.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "got %s\n", lines.Text())
			c.Flush()
		}
	})
	for _, forward := range []string{ForwardHTTP1, ForwardH2C} {
		_, in := s.requestsTo(t, app.address(), func(c *Config) { c.Inbound[0].ForwardProtocol = forward })
		both(t, func(t *testing.T, two bool) {
			body, feed := io.Pipe()
			r := newRequest(t, "POST", "https://"+in+"/stream", body)
			res, err := s.httpClient(t, in, s.web, two).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			answer := bufio.NewReader(res.Body)
			for i := range 5 {
				fmt.Fprintf(feed, "%d\n", i)
				if line, err := answer.ReadString('\n'); err != nil || line != fmt.Sprintf("got %d\n", i) {
					t.Fatalf("%s: %q, %v", forward, line, err)
				}
			}
			feed.Close()
			if rest, err := io.ReadAll(answer); err != nil || len(rest) > 0 {
				t.Errorf("%s: the end: %q, %v", forward, rest, err)
			}
		})
	}
}

func TestTrailersPassInBothDirections(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		io.Copy(w, r.Body)
		w.Header().Set("X-Announced", "sum "+r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "late")
	})
	for _, forward := range []string{ForwardHTTP1, ForwardH2C} {
		_, in := s.requestsTo(t, app.address(), func(c *Config) { c.Inbound[0].ForwardProtocol = forward })
		both(t, func(t *testing.T, two bool) {
			r := newRequest(t, "POST", "https://"+in+"/", struct{ io.Reader }{strings.NewReader("body")})
			r.ContentLength, r.Trailer = -1, http.Header{"X-Sum": {"42"}}
			res, err := s.httpClient(t, in, s.web, two).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || string(body) != "body" || res.Trailer.Get("X-Announced") != "sum 42" || res.Trailer.Get("X-Late") != "late" {
				t.Errorf("%s: %q, %v, trailer %v", forward, body, err, res.Trailer)
			}
		})
	}
}

func TestInterimAnswersPass(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuses" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.Copy(w, r.Body)
	})
	_, in := s.requestsTo(t, app.address(), nil)
	both(t, func(t *testing.T, two bool) {
		var got []string
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, fmt.Sprint(code, h.Get("Link")))
			return nil
		}}
		r := newRequest(t, "POST", "https://"+in+"/", strings.NewReader("later"))
		r.Header.Set("Expect", "100-continue")
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
		if code, body := ask(t, s.httpClient(t, in, s.web, two), r); code != 200 || body != "later" {
			t.Errorf("%d %q", code, body)
		}
		if all := strings.Join(got, ","); !strings.Contains(all, "103</style.css>") {
			t.Errorf("interim: %q", all)
		}
		if two {
			return // a client of HTTP/2 is told to go on before the application is asked
		}
		read := false
		r = newRequest(t, "POST", "https://"+in+"/refuses", readFunc(func([]byte) (int, error) { read = true; return 0, io.EOF }))
		r.ContentLength = 5
		r.Header.Set("Expect", "100-continue")
		if code, _ := ask(t, s.httpClient(t, in, s.web, two), r); code != 417 || read {
			t.Errorf("refused: %d, body asked for: %v", code, read)
		}
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

// socketApp takes a websocket, says hello and echoes lines.
func socketApp(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" {
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	c, b, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello\n")
	io.Copy(c, b)
}

// openSocket upgrades a connection.
func (s *scene) openSocket(t *testing.T, in, path string) (io.ReadWriteCloser, *bufio.Reader) {
	t.Helper()
	c := s.dialTLS(t, in)
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n", path)
	b := bufio.NewReader(c)
	res, err := http.ReadResponse(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-Websocket-Accept") != "x" {
		t.Fatalf("%s: %s %v", path, res.Status, res.Header)
	}
	if line, err := b.ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("first words: %q, %v", line, err)
	}
	return c, b
}

func TestWebSocketsPassAndEndWithTheirPolicy(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	app := newSite(t, socketApp)
	_, in := s.requestsTo(t, app.address(), nil)
	c, b := s.openSocket(t, in, "/stream")
	kept, keptBuffer := s.openSocket(t, in, "/other")
	for range 3 {
		fmt.Fprint(c, "ping\x00\r\n")
		if line, err := b.ReadString('\n'); err != nil || line != "ping\x00\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	began := time.Now()
	s.publish(t, mode("STRICT")+allow("example.org"+webPath)+denyStream)
	if _, err := io.ReadAll(b); err == nil {
		t.Log("closed in order")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("closed after %v", took)
	}
	e := s.agent.waitFor(1, reason("inbound", audit.ReasonPolicyChanged))[0]
	if e.Policy != "shop/closed" || e.Kind != audit.KindRequest || e.Method+" "+e.Host+e.Path != "GET a/stream" {
		t.Errorf("record: %+v", e)
	}
	fmt.Fprint(kept, "still\n")
	if line, err := keptBuffer.ReadString('\n'); err != nil || line != "still\n" {
		t.Errorf("the other: %q, %v", line, err)
	}
	kept.Close()
}

func TestAStreamThatIsNoLongerAllowedEnds(t *testing.T) {
	s := newScene(t)
	app := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begins\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	both(t, func(t *testing.T, two bool) {
		s.publish(t, mode("STRICT")+allow("example.org"+webPath))
		_, in := s.requestsTo(t, app.address(), nil)
		res, err := s.httpClient(t, in, s.web, two).Do(newRequest(t, "GET", "https://"+in+"/stream", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b := bufio.NewReader(res.Body)
		if line, err := b.ReadString('\n'); err != nil || line != "begins\n" {
			t.Fatalf("%q, %v", line, err)
		}
		began := time.Now()
		s.publish(t, mode("STRICT")+allow("example.org"+webPath)+denyStream)
		if _, err := io.ReadAll(b); err == nil {
			t.Error("the body seems whole")
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}

// startGRPC runs an application of gRPC that echoes any call, and fails those
// of the method Fail.
func startGRPC(t testing.TB) string {
	t.Helper()
	l := listenTCP(t)
	serveGRPC(t, l)
	return l.Addr().String()
}

func serveGRPC(t testing.TB, l net.Listener) {
	t.Helper()
	g := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if strings.HasSuffix(method, "/Fail") {
			return status.Error(codes.NotFound, "no such thing")
		}
		for {
			m := new(wrapperspb.StringValue)
			if err := stream.RecvMsg(m); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
	}))
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
}

func TestCallsOfGRPCPassAndAreJudged(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath)+rules("method", "DENY", `{to: [{operation: {paths: ["/test.Echo/Closed"]}}]}`))
	for _, protocol := range []Protocol{ProtocolHTTP, ProtocolGRPC, ProtocolAuto} {
		t.Run(string(protocol), func(t *testing.T) {
			_, in := s.requestsTo(t, startGRPC(t), func(c *Config) { c.Inbound[0].Protocol, c.Inbound[0].ALPN = protocol, []string{"h2"} })
			conn, err := grpc.NewClient(in, grpc.WithTransportCredentials(credentials.NewTLS(s.client(s.web))))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			call := func(method string) (string, error) {
				out := new(wrapperspb.StringValue)
				err := conn.Invoke(ctx, method, wrapperspb.String("hi"), out)
				return out.Value, err
			}
			if got, err := call("/test.Echo/Say"); err != nil || got != "hi" {
				t.Errorf("unary: %q, %v", got, err)
			}
			if _, err := call("/test.Echo/Fail"); status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such thing" {
				t.Errorf("an error of the application's: %v", err)
			}
			if _, err := call("/test.Echo/Closed"); status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "forbidden" {
				t.Errorf("denied: %v", err)
			}
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Stream")
			if err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				m := new(wrapperspb.StringValue)
				if err := stream.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
				if err := stream.RecvMsg(m); err != nil || m.Value != fmt.Sprint(i) {
					t.Fatalf("message %d: %q, %v", i, m.Value, err)
				}
			}
			if err := stream.CloseSend(); err != nil {
				t.Error(err)
			}
			if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
				t.Errorf("the end: %v", err)
			}
		})
	}
}

func TestACallOfGRPCThatIsNoLongerAllowedEndsWithItsStatus(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	_, in := s.requestsTo(t, startGRPC(t), nil)
	conn, err := grpc.NewClient(in, grpc.WithTransportCredentials(credentials.NewTLS(s.client(s.web))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	m := new(wrapperspb.StringValue)
	if err := errors.Join(stream.SendMsg(wrapperspb.String("x")), stream.RecvMsg(m)); err != nil {
		t.Fatal(err)
	}
	s.publish(t, mode("STRICT")+allow("example.org"+webPath)+denyStream)
	if err := stream.RecvMsg(m); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream ends with %v", err)
	}
}

func TestAnApplicationThatIsGoneIsUnavailableToGRPC(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	l := listenTCP(t)
	l.Close()
	_, in := s.requestsTo(t, l.Addr().String(), nil)
	conn, err := grpc.NewClient(in, grpc.WithTransportCredentials(credentials.NewTLS(s.client(s.web))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Invoke(t.Context(), "/test.Echo/Say", wrapperspb.String("hi"), new(wrapperspb.StringValue)); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}

func TestManyStreamsShareTheApplicationsConnections(t *testing.T) {
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	_, in := s.requestsTo(t, startGRPC(t), func(c *Config) { c.Limits.Requests.Streams = 500 })
	conn, err := grpc.NewClient(in, grpc.WithTransportCredentials(credentials.NewTLS(s.client(s.web))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := new(wrapperspb.StringValue)
	for i := range 300 {
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(stream.SendMsg(wrapperspb.String("x")), stream.RecvMsg(m)); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
}
