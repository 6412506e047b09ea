// This file holds the test with Debian's HAProxy as the load balancer in front
// of two proxies.

package proxy

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
)

func TestHAProxyBalancesMutualTLSAndTellsForWhom(t *testing.T) {
	t.Parallel()
	haproxy := program(t, "haproxy", "haproxy")
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath))
	first, stop := runProxy(t, Config{Agent: s.agent.socket, Identity: s.api.ID, Limits: Limits{Drain: 2 * time.Second},
		Inbound: []Inbound{{Listen: "127.0.0.1:0", Forward: echo(t), Port: 8080, ProxyProtocol: ProxyProtocolRequire, TrustedProxies: localTrusted}}})
	second, two := s.inbound(t, echo(t), balanced(ProxyProtocolRequire, localTrusted))
	one := first.Status().Inbound[0]
	front := freePort(t)
	dir := privateDir(t)
	config := fmt.Sprintf(`global
  maxconn 200
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  retries 2
  option redispatch
listen api
  bind %s
  balance roundrobin
  default-server send-proxy-v2 check check-send-proxy inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions
  server one %s
  server two %s
`, front, one, two)
	path := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	serve(t, dir, front, haproxy, "-db", "-f", path)
	_, out := s.outbound(t, front, s.api.ID)
	call := func() error {
		got, err := callTo(out, nil)
		if err == nil && got != "ping" {
			err = fmt.Errorf("answer %q", got)
		}
		return err
	}
	eventually(t, "a call through the balancer", func() bool { return call() == nil })
	for range 10 {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	_, oneAt, _ := net.SplitHostPort(one)
	_, twoAt, _ := net.SplitHostPort(two)
	for _, port := range []string{oneAt, twoAt} {
		e := s.agent.waitFor(1, func(e audit.Event) bool {
			_, at, _ := net.SplitHostPort(e.Destination)
			return e.Kind == audit.KindConnection && e.Direction == audit.DirectionInbound && e.Reason == audit.ReasonAllowed && at == port
		})[0]
		if e.ClientID != s.web.ID.String() || e.Remote == "" || e.Remote == e.Source {
			t.Errorf("record: %+v", e)
		}
	}
	// Its health checks are no connections of anyone's, and cost nothing.
	eventually(t, "health checks leave nothing open", func() bool { return first.Status().Open == 0 && second.Status().Open == 0 })
	// One of the two drains: the balancer goes on with the other.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other takes all", func() bool {
		for range 4 {
			if call() != nil {
				return false
			}
		}
		return true
	})
}
