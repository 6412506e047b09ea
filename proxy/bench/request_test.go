// This file holds the benchmark of requests: what judging each of them costs
// beside the reverse proxy of the standard library.

package bench

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serveReverse is httputil.ReverseProxy behind mutual TLS, with as many idle
// connections to the application as the proxy keeps.
func serveReverse(l net.Listener, config *tls.Config, app string) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost, transport.DisableCompression = 256, true
	target := &url.URL{Scheme: "http", Host: app}
	s := &http.Server{
		Handler:           &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }},
		TLSConfig:         config,
		ReadHeaderTimeout: 10 * time.Second,
	}
	return s.ServeTLS(l, "", "")
}

// serveWeb is the application of requests.
func serveWeb(l net.Listener) error {
	answer := strings.Repeat("x", 1024)
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, answer)
	})}
	return app.Serve(l)
}

// BenchmarkRequest is CPU of the serving process for a request on an open
// connection: sixteen clients of HTTP/1.1, or sixteen streams of four
// connections of HTTP/2.
func BenchmarkRequest(b *testing.B) {
	s := newStage(b, "web")
	sides := []side{s.start(b, "proxy", func(j *job) { j.HTTP = true }), s.start(b, "reverse", nil)}
	sides[1].name = "ReverseProxy"
	for _, tt := range []struct{ name, method string }{{"HTTP/1.1", "GET"}, {"HTTP/1.1", "POST"}, {"HTTP/2", "GET"}} {
		b.Run(tt.name+" "+tt.method, func(b *testing.B) {
			compare(b, "request, "+tt.name+" "+tt.method, "µs of CPU", map[string]float64{"ReverseProxy": 1.3}, sides,
				func(side side) float64 {
					return requests(b, side, s.returning(tls.X25519), tt.name == "HTTP/2", tt.method, "")
				})
		})
	}
}

func requests(b *testing.B, c side, config *tls.Config, two bool, method, token string) float64 {
	b.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!two)
	protocols.SetHTTP2(two)
	var clients []*http.Client
	for range 4 {
		tr := &http.Transport{TLSClientConfig: config.Clone(), Protocols: protocols, MaxIdleConnsPerHost: 16, DisableCompression: true}
		defer tr.CloseIdleConnections()
		clients = append(clients, &http.Client{Transport: tr})
	}
	call := func(client *http.Client) bool {
		var body io.Reader
		if method == http.MethodPost {
			body = strings.NewReader("a body of a few bytes")
		}
		r, err := http.NewRequest(method, "https://"+c.address+"/a/path?query", body)
		if err != nil {
			b.Error(err)
			return false
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := client.Do(r)
		if err != nil {
			b.Error(err)
			return false
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			b.Errorf("%s, %v", res.Status, err)
			return false
		}
		return true
	}
	for _, client := range clients {
		call(client)
	}
	before, end := c.cpu(b), time.Now().Add(roundTime)
	var n atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for time.Now().Before(end) && call(clients[i%len(clients)]) {
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(c.cpu(b)-before) / 1e3 / float64(max(1, n.Load()))
}
