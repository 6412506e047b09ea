// This file holds the tests and fuzz tests of the two parsers: the
// configuration and the ClientHello.

package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodConfig = `
agent: unix:///run/aval/agent/workload.sock
identity: spiffe://example.org/ns/shop/sa/api
inbound:  [{listen: 0.0.0.0:8443, forward: 127.0.0.1:8080, port: 9090, protocol: server-first}]
outbound: [{listen: 127.0.0.1:9001, dial: 10.0.0.7:8443, id: spiffe://example.org/ns/shop/sa/db}]
limits: {handshakeTimeout: 3s, maxConnections: 7}
`

func TestConfigIsParsedAndDefaulted(t *testing.T) {
	cfg, err := ParseConfig("proxy.yaml", []byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Inbound[0].Port != 9090 || cfg.Inbound[0].Protocol != ProtocolServerFirst ||
		cfg.Outbound[0].ID.String() != "spiffe://example.org/ns/shop/sa/db" ||
		cfg.Limits.HandshakeTimeout != 3*time.Second || cfg.Limits.MaxConnections != 7 {
		t.Errorf("config: %+v", cfg)
	}
	p, err := New(Config{Agent: "/run/s", Inbound: []Inbound{{Listen: ":0", Forward: "127.0.0.1:8080"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := Limits{MaxConnections: DefaultMaxConnections, HandshakeTimeout: DefaultHandshakeTimeout, ServerFirstWait: DefaultServerFirstWait,
		DialTimeout: DefaultDialTimeout, Drain: DefaultDrain, MaxRecords: DefaultMaxRecords}
	if in := p.cfg.Inbound[0]; in.Port != 8080 || in.Protocol != ProtocolAuto || p.cfg.Limits != want {
		t.Errorf("defaults: %+v", p.cfg)
	}
}

func TestWrongConfigIsRefusedByName(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"UnknownField":    {strings.Replace(goodConfig, "forward:", "foward:", 1), "foward"},
		"UnknownProtocol": {strings.Replace(goodConfig, "server-first", "smtp", 1), "protocol"},
		"NoAgent":         {strings.Replace(goodConfig, "agent: unix:///run/aval/agent/workload.sock", "", 1), "agent"},
		"RelativeSocket":  {strings.Replace(goodConfig, "unix:///run", "run", 1), "agent"},
		"NoID":            {strings.Replace(goodConfig, ", id: spiffe://example.org/ns/shop/sa/db", "", 1), "outbound[0]"},
		"NodeAsUpstream":  {strings.Replace(goodConfig, "/ns/shop/sa/db", "/aval/node/n1", 1), "outbound[0]"},
		"BadID":           {strings.Replace(goodConfig, "spiffe://example.org/ns/shop/sa/db", "https://db", 1), "id"},
		"NoPort":          {strings.Replace(goodConfig, "127.0.0.1:8080", "127.0.0.1", 1), "forward"},
		"NamedPort":       {strings.Replace(goodConfig, "127.0.0.1:8080", "127.0.0.1:http", 1), "forward"},
		"Negative":        {strings.Replace(goodConfig, "maxConnections: 7", "maxConnections: -7", 1), "limits"},
		"NoListener":      {"agent: unix:///s\n", "listener"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig("proxy.yaml", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "proxy.yaml") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte("agent: unix:///s\ninbound: [{listen: ':1', forward: ':2'}]"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := ParseConfig("f", data)
		if err != nil {
			return
		}
		if _, err := New(cfg); err != nil {
			t.Errorf("a parsed config is refused by New: %v", err)
		}
	})
}

// clientHello makes a real ClientHello.
func clientHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		tls.Client(a, config).HandshakeContext(ctx)
		a.Close()
	}()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestClientHelloIsReadHoweverItIsSplit(t *testing.T) {
	whole := clientHello(t, &tls.Config{ServerName: "api.shop", NextProtos: []string{"h2", "aval/1"}, InsecureSkipVerify: true})
	// The same handshake message in records of seven bytes.
	var split []byte
	for chunk := range slices.Chunk(whole[5:], 7) {
		split = append(split, 22, 3, 1, 0, byte(len(chunk)))
		split = append(split, chunk...)
	}
	for name, data := range map[string][]byte{"whole": whole, "small records": split} {
		for _, step := range []int{1, 3, 1000, len(data)} {
			var o opening
			fed := 0
			for chunk := range slices.Chunk(data, step) {
				if o.feed(chunk) != stageMore {
					break
				}
				fed += len(chunk)
			}
			if o.stage != stageHello || o.hello.SNI != "api.shop" || !o.hello.TLS13 || !slices.Equal(o.hello.ALPN, []string{"h2", "aval/1"}) {
				t.Errorf("%s by %d: stage %d after %d of %d bytes, %+v", name, step, o.stage, fed, len(data), o.hello)
			}
		}
	}
}

func TestOtherProtocolsAreNotTLS(t *testing.T) {
	for _, first := range []string{"GET / HTTP/1.1\r\n", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "*1\r\n$4\r\nPING\r\n", "SSH-2.0-x", "\x16\x05", "\x16\x03\x01\x00\x00", "\x16\x03\x01\x00\x20\x02", "\x80\x2e\x01"} {
		var o opening
		if got := o.feed([]byte(first)); got != stagePlain {
			t.Errorf("%q: stage %d", first, got)
		}
	}
}

func FuzzClientHello(f *testing.F) {
	f.Add(clientHello(f, &tls.Config{ServerName: "api.shop", NextProtos: []string{"h2"}, InsecureSkipVerify: true}), 100)
	f.Add(clientHello(f, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}), 1)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 3)
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, 9)
	f.Add([]byte("\x16\x030\x00\xca\x01\x00\x00\xc6"+strings.Repeat("0", 198)), 108)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		step = max(1, step)
		var whole, parts opening
		whole.feed(data)
		for chunk := range slices.Chunk(data, step) {
			parts.feed(chunk)
		}
		if whole.stage != parts.stage || whole.hello.SNI != parts.hello.SNI || !slices.Equal(whole.hello.ALPN, parts.hello.ALPN) {
			t.Errorf("whole: %d %+v, parts: %d %+v", whole.stage, whole.hello, parts.stage, parts.hello)
		}
		if string(parts.raw) != string(data) {
			t.Error("bytes were lost")
		}
		seen := false
		server := tls.Server(&replay{data: data}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			seen = true
			if whole.stage == stageHello && (h.ServerName != whole.hello.SNI || !slices.Equal(h.SupportedProtos, whole.hello.ALPN) ||
				whole.hello.TLS13 && !slices.Contains(h.SupportedVersions, tls.VersionTLS13)) {
				t.Errorf("crypto/tls reads %q %q %v, this %+v", h.ServerName, h.SupportedProtos, h.SupportedVersions, whole.hello)
			}
			return nil, net.ErrClosed
		}})
		server.Handshake()
		if seen && data[1] == 3 && whole.stage != stageHello {
			t.Errorf("crypto/tls sees a ClientHello, this has stage %d", whole.stage)
		}
	})
}

// replay is a connection that says data and then ends.
type replay struct {
	net.Conn
	data []byte
}

func (r *replay) Read(b []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, net.ErrClosed
	}
	n := copy(b, r.data)
	r.data = r.data[n:]
	return n, nil
}
func (r *replay) Write(b []byte) (int, error)      { return len(b), nil }
func (r *replay) Close() error                     { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }
