// This file holds the tests of requests on redirected ports: judged one by one
// as on explicit listeners, whatever of HTTP their clients speak.

package proxy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/proxy/intercept/netnstest"
)

// serveSite runs an application of HTTP/1.1 and of HTTP/2 without TLS on a
// machine. It says which version it was asked in.
func serveSite(t *testing.T, m *netnstest.Machine, address string) {
	t.Helper()
	l := m.Listen(t, address)
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			socketApp(w, r)
			return
		}
		fmt.Fprintf(w, "%s %s %s by %s\n", r.Method, r.URL.Path, r.Proto, r.Header.Get("X-Forwarded-Client-Cert"))
	})}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
}

// toApi are the destinations of web's proxy.
const toApi = `  outbound:
    destinations:
    - {address: "10.77.0.2", id: "spiffe://example.org/ns/shop/sa/api"}
    - {address: "fd77::/64", id: "spiffe://example.org/ns/shop/sa/api"}
`

// judgedPaths let web read /open, call Say, and nothing else.
var judgedPaths = rules("paths", "ALLOW", `
  {from: [{source: {principals: ["example.org`+webPath+`"]}}], to: [{operation: {methods: [GET], paths: ["/open"]}}]},
  {to: [{operation: {paths: ["/test.Echo/Say"]}}]}`)

func TestRequestsOnRedirectedPortsAreJudgedOneByOne(t *testing.T) {
	w := newWired(t, "nft", "curl")
	w.publish(t, mode("STRICT")+judgedPaths)
	serveSite(t, w.there, ":8080")
	serveSite(t, w.there, ":8082")
	serveGRPC(t, w.there.Listen(t, ":9090"))
	setup(t, w.there, w.proxy(t, w.there, w.api.ID, "  inbound:\n    ports: [{port: 8082, protocol: http, forwardProtocol: h2c}, {port: 9090, protocol: grpc}]\n"))
	setup(t, w.here, w.proxy(t, w.here, w.web.ID, toApi))
	ask := func(host string, port int, path string, more ...string) (status, body string) {
		url := "http://" + net.JoinHostPort(host, fmt.Sprint(port)) + path
		out, err := w.here.Output(t, appUID, "curl", append([]string{"-sS", "-m", "5", "--noproxy", "*", "-w", "%{http_code}", url}, more...)...)
		if err != nil || len(out) < 3 {
			t.Errorf("%s %v: %v: %s", url, more, err, out)
			return "", out
		}
		return out[len(out)-3:], out[:len(out)-3]
	}
	for _, host := range w.there.Addresses() {
		for _, tt := range []struct {
			port       int
			path       string
			more       []string
			want, says string
		}{
			{8080, "/open", nil, "200", "GET /open HTTP/1.1"},
			{8080, "/open/../secret", []string{"--path-as-is"}, "403", "Forbidden"},
			{8080, "/secret", nil, "403", "Forbidden"},
			{8080, "/open", []string{"-X", "POST"}, "403", "Forbidden"},
			{8080, "/open", []string{"--http2-prior-knowledge"}, "200", "GET /open HTTP/1.1"},
			{8080, "/secret", []string{"--http2-prior-knowledge"}, "403", "Forbidden"},
			{8082, "/open", nil, "200", "GET /open HTTP/2.0"},
			{8082, "/secret", nil, "403", "Forbidden"},
		} {
			got, body := ask(host, tt.port, tt.path, tt.more...)
			if got != tt.want || !strings.HasPrefix(body, tt.says) {
				t.Errorf("%s:%d %s %v: %s %q, want %s %q", host, tt.port, tt.path, tt.more, got, body, tt.want, tt.says)
			}
			if got == "200" && !strings.Contains(body, "URI=spiffe://example.org/ns/shop/sa/web") {
				t.Errorf("%s: the application is told of %q", host, body)
			}
		}
		w.echo(t, net.JoinHostPort(host, "9090"))
	}
	e := w.agent.waitFor(1, func(e audit.Event) bool {
		return e.Direction == audit.DirectionInbound && e.Kind == audit.KindRequest && e.Reason == audit.ReasonPolicyDenied && e.Path == "/secret"
	})[0]
	if e.ClientID != w.web.ID.String() || e.Mode != "STRICT" || e.Transport != audit.TransportMTLS {
		t.Errorf("record of a refused request: %+v", e)
	}
}

// echo calls gRPC from here.
func (w *wired) echo(t *testing.T, address string) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return w.here.Dial(t, address) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	out := new(wrapperspb.StringValue)
	if err := conn.Invoke(ctx, "/test.Echo/Say", wrapperspb.String("hi"), out); err != nil || out.Value != "hi" {
		t.Errorf("%s: call: %q, %v", address, out.Value, err)
	}
	if err := conn.Invoke(ctx, "/test.Echo/Other", wrapperspb.String("hi"), out); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%s: forbidden call: %v", address, err)
	}
}

func TestRedirectedWebSocketsAndPortsOnLoopbackAreServed(t *testing.T) {
	w := newWired(t, "nft")
	w.publish(t, mode("PERMISSIVE")+rules("paths", "ALLOW", `{to: [{operation: {paths: ["/open"]}}]}, {to: [{operation: {ports: ["2525"]}}]}`))
	for _, address := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		serveSite(t, w.there, address)
	}
	for _, address := range []string{"127.0.0.1:2525", "[::1]:2525"} {
		greets(t, w.there, address)
	}
	setup(t, w.there, w.proxy(t, w.there, w.api.ID, "  inbound: {forward: loopback, ports: [{port: 2525, protocol: server-first}]}\n"))
	for _, host := range w.there.Addresses() {
		for path, want := range map[string]int{"/open": http.StatusSwitchingProtocols, "/other": http.StatusForbidden} {
			c, err := w.here.Dial(t, net.JoinHostPort(host, "8080"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n", path)
			b := bufio.NewReader(c)
			res, err := http.ReadResponse(b, nil)
			if err != nil || res.StatusCode != want {
				t.Fatalf("%s %s: %v, %v", host, path, res, err)
			}
			if want != http.StatusSwitchingProtocols {
				continue
			}
			fmt.Fprint(c, "ping\n")
			for _, want := range []string{"hello\n", "ping\n"} {
				if line, err := b.ReadString('\n'); err != nil || line != want {
					t.Errorf("%s: %q, %v", host, line, err)
				}
			}
		}
	}
	// A server that speaks first in plaintext is not waited for.
	for _, host := range w.there.Addresses() {
		if line, err := readLine(w.here.Dial(t, net.JoinHostPort(host, "2525"))); err != nil || line != "220 ready" {
			t.Errorf("%s: %q, %v", host, line, err)
		}
	}
}
