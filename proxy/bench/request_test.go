// This file holds the benchmark of requests: what judging each of them costs
// beside the reverse proxy of the standard library.

package bench

import (
	"crypto/tls"
	"crypto/x509"
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
func serveReverse(l net.Listener, cert tls.Certificate, roots *x509.CertPool, app string) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost, transport.DisableCompression = 256, true
	target := &url.URL{Scheme: "http", Host: app}
	s := &http.Server{
		Handler: &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }},
		TLSConfig: &tls.Config{
			MinVersion:             tls.VersionTLS13,
			Certificates:           []tls.Certificate{cert},
			ClientAuth:             tls.RequireAndVerifyClientCert,
			ClientCAs:              roots,
			SessionTicketsDisabled: true,
		},
		ReadHeaderTimeout: 10 * time.Second,
	}
	return s.ServeTLS(l, "", "")
}

// answering runs an application that answers with a kilobyte.
func answering(b *testing.B) string {
	b.Helper()
	answer := strings.Repeat("x", 1024)
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, answer)
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go app.Serve(l)
	b.Cleanup(func() { app.Close() })
	return l.Addr().String()
}

// BenchmarkRequest is CPU of the serving process for a request on an open
// connection: sixteen clients of HTTP/1.1, or sixteen streams of four
// connections of HTTP/2.
func BenchmarkRequest(b *testing.B) {
	s := stageFor(b, job{Role: "reverse", App: answering(b), HTTP: true})
	for _, tt := range []struct{ name, method string }{{"HTTP1", "GET"}, {"HTTP1", "POST"}, {"HTTP2", "GET"}} {
		b.Run(tt.name+tt.method, func(b *testing.B) {
			for b.Loop() {
				f, p := interleave(rounds,
					func() float64 { return requests(b, s.floor, s.client, tt.name == "HTTP2", tt.method, "") },
					func() float64 { return requests(b, s.proxy, s.client, tt.name == "HTTP2", tt.method, "") })
				report(b, f, p, "µs-CPU/request")
			}
		})
	}
}

func requests(b *testing.B, c child, config *tls.Config, two bool, method, token string) float64 {
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
