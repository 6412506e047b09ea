// This file holds the documents of the demo: what a person would write.

package demo

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

const (
	trustDomain = "example.org"
	namespace   = "shop"

	// leafTTL is short, so that certificates rotate while one looks on.
	leafTTL = "8s"
	minTTL  = "5s"

	// The ports that policies speak of, whichever ports are free here.
	mainPort   = 8080
	statusPort = 8081
)

// spiffeID is the identity of a service account of the demo's namespace.
func spiffeID(name string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + name
}

// registration says which processes, by the paths of their binary, are the
// named service.
func registration(name, paths string, uid int, ttl string) string {
	return fmt.Sprintf(`apiVersion: aval.dev/v1alpha1
kind: Registration
metadata: {name: %[1]s, namespace: %[2]s, labels: {app: %[1]s}}
spec:
  id: /ns/%[2]s/sa/%[1]s
  node: {site: demo}
  workload:
    unix.path: %[3]s
    unix.uid: %[4]d
  ttl: %[5]s
  dnsNames: [%[1]s.%[2]s]
`, name, namespace, paths, uid, ttl)
}

const policies = `apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: api-callers, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [example.org/ns/shop/sa/web]}}]
    to: [{operation: {ports: ["8080"]}}]
---
apiVersion: aval.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: api-status-open, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  action: ALLOW
  rules:
  - to: [{operation: {ports: ["8081"]}}]
`

const strict = `apiVersion: aval.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: api-strict, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  mtls: {mode: STRICT}
`

// apiPolicies are the names of the policies that select api.
var apiPolicies = []string{"shop/api-callers", "shop/api-status-open"}

// papers are the paths of the documents of one site.
type papers struct {
	observer, probe, services, policies, strict string
}

// writePapers puts the documents and the proxies' configurations into the
// site.
func writePapers(s *site) (papers, error) {
	var out papers
	var all []string
	for _, name := range serviceNames {
		all = append(all, registration(name, strconv.Quote(s.path("bin", name)), s.uid(name), leafTTL))
	}
	own := os.Geteuid()
	tools := fmt.Sprintf("[%q, %q]", s.binary, s.path("bin", "aval"))
	for _, file := range []struct {
		path          *string
		name, content string
	}{
		{&out.observer, "1-observer.yaml", registration("observer", tools, own, "1h")},
		{&out.probe, "2-probe.yaml", registration("probe", tools, own, "1h")},
		{&out.services, "3-services.yaml", strings.Join(all, "---\n")},
		{&out.policies, "4-policies.yaml", policies},
		{&out.strict, "5-strict.yaml", strict},
	} {
		path, err := s.write(file.content, "documents", file.name)
		if err != nil {
			return out, fmt.Errorf("write the documents: %w", err)
		}
		*file.path = path
	}
	for _, name := range serviceNames {
		if _, err := s.write(proxyConfig(s, name), "proxy", name+".yaml"); err != nil {
			return out, fmt.Errorf("write the proxy's configuration: %w", err)
		}
	}
	return out, nil
}

// proxyConfig is the configuration of a service's proxy: api is called,
// the others call it.
func proxyConfig(s *site, name string) string {
	head := fmt.Sprintf("agent: unix://%s\nidentity: %s\n", s.agentSocket(), spiffeID(name))
	if name == "api" {
		return head + fmt.Sprintf(`inbound:
- {listen: %q, forward: %q, port: %d}
- {listen: %q, forward: %q, port: %d}
`, s.apiInbound, s.app["api"], mainPort, s.apiInbound2, s.apiStatus, statusPort)
	}
	return head + fmt.Sprintf("outbound:\n- {listen: %q, dial: %q, id: %q}\n", s.outbound[name], s.apiInbound, spiffeID("api"))
}

// port is the number in HOST:PORT.
func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return p
}
