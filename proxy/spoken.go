// This file holds what a client's first bytes say of it: whose TLS they begin
// or, without an identity, enough to tell a health probe from an application,
// and nothing that was said.

package proxy

import (
	"bytes"
	"slices"

	"github.com/aval-id/aval/audit"
)

// methods are those of HTTP/1.x, and the preface of HTTP/2 (RFC 9113 §3.4).
var methods = [][]byte{
	[]byte("GET "), []byte("HEAD "), []byte("POST "), []byte("PUT "), []byte("PATCH "), []byte("DELETE "),
	[]byte("OPTIONS "), []byte("CONNECT "), []byte("TRACE "), []byte("PRI * HTTP/2.0"),
}

// probers are how the user agents of health checks begin, in lower case.
var probers = [][]byte{
	[]byte("kube-probe/"), []byte("elb-healthchecker/"), []byte("googlehc/"), []byte("consul health check"),
	[]byte("nomad health check"), []byte("blackbox-exporter"), []byte("envoy/hc"), []byte("haproxy"),
}

// probePaths are where health is asked for by convention.
var probePaths = []string{"/healthz", "/livez", "/readyz", "/health", "/-/healthy", "/-/ready", "/health/live", "/health/ready"}

// spoken names what the first bytes of a connection without identity are.
// Empty where no identity was missing, or where nobody looked. A client that
// went or waited without a byte, as TCP health checks do, was silent.
func spoken(transport string, reason audit.Reason, first []byte) string {
	switch {
	case transport == "" && len(first) == 0 && (reason == audit.ReasonReset || reason == audit.ReasonHandshakeTimeout):
		return audit.ProtocolSilent
	case transport == audit.TransportTLSPassthrough:
		return audit.ProtocolTLS
	case transport != audit.TransportPlaintext || len(first) == 0:
		return ""
	case !slices.ContainsFunc(methods, func(m []byte) bool { return bytes.HasPrefix(first, m) }):
		return audit.ProtocolOther
	case isProbe(first):
		return audit.ProtocolProbe
	}
	return audit.ProtocolHTTP
}

// What first bytes turn out to be, beside the audit.Protocol… of those without
// TLS.
const (
	kindMeshTLS     = "mesh_tls"     // a ClientHello for this workload
	kindForeignTLS  = "foreign_tls"  // a ClientHello for another name
	kindBroken      = "broken"       // no ClientHello that can be read, or one that never was whole
	kindServerFirst = "server_first" // the client let the application speak first
)

// kind names what the first bytes are, of a workload with these names.
// Nothing that they hold is in it.
func (o *opening) kind(names []string) string {
	switch {
	case len(o.raw) == 0:
		return audit.ProtocolSilent
	case o.stage == stagePlain:
		return spoken(audit.TransportPlaintext, "", o.raw)
	case o.stage == stageHello && o.hello.forMesh(names):
		return kindMeshTLS
	case o.stage == stageHello:
		return kindForeignTLS
	}
	return kindBroken
}

// isProbe reports whether an HTTP/1.x request asks for health, by its user
// agent or its path.
func isProbe(first []byte) bool {
	line, rest, _ := bytes.Cut(first, []byte("\r\n"))
	head, _, _ := bytes.Cut(rest, []byte("\r\n\r\n"))
	for field := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, _ := bytes.Cut(field, []byte(":"))
		if bytes.EqualFold(name, []byte("user-agent")) {
			value = bytes.ToLower(bytes.TrimSpace(value))
			if slices.ContainsFunc(probers, func(p []byte) bool { return bytes.HasPrefix(value, p) }) {
				return true
			}
		}
	}
	parts := bytes.Fields(line)
	if len(parts) < 2 {
		return false
	}
	path, _, _ := bytes.Cut(parts[1], []byte("?"))
	return slices.Contains(probePaths, string(path))
}
