// This file holds what is done to a request's head before anything else looks
// at it: path and host become canonical, fields that speak to the next hop
// alone go, and those that name the peer are the proxy's own.

package request

import (
	"errors"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/aval-id/aval/identity/policy"
)

// The fields that tell the application who the peer is. What a client sends
// under these names, also with '_' for '-', never arrives.
const (
	// PeerIDField holds the peer's SPIFFE ID, and is absent where the peer
	// has none.
	PeerIDField = "Aval-Peer-Id"
	// ClientCertField holds By, Hash and URI of the client's certificate in
	// the form that Envoy gave it, and is absent in plaintext.
	ClientCertField = "X-Forwarded-Client-Cert"
)

// hopByHop are the fields that end at each hop (RFC 9110 §7.6.1).
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings"}

// target is where a request goes in the application, in canonical form.
type target struct {
	host  string // with the port that was sent, for the Host field
	name  string // without it, for policies
	path  string
	query string
	asked bool // a '?' was there
}

// canonicalTarget brings the target of a request into its canonical form.
// Every error means 400.
func canonicalTarget(r *http.Request) (target, error) {
	var t target
	var err error
	if t.path, err = policy.CanonicalPath(r.RequestURI); err != nil {
		return target{}, err
	}
	if t.path == "*" && r.Method != http.MethodOptions {
		return target{}, errors.New("target * of another method than OPTIONS")
	}
	if _, t.query, t.asked = strings.Cut(r.RequestURI, "?"); !isQuery(t.query) {
		return target{}, errors.New("query has a byte that no query has")
	}
	for _, h := range r.Header["Host"] { // HTTP/2 may have it beside :authority
		if h != r.Host {
			return target{}, errors.New("two hosts are named")
		}
	}
	if t.name, err = policy.CanonicalHost(r.Host); err != nil {
		return target{}, err
	}
	if strings.HasSuffix(t.name, ".") || strings.Contains(t.name, "..") {
		return target{}, errors.New("host has an empty label")
	}
	t.host = t.name
	if i := strings.LastIndexByte(r.Host, ':'); i >= 0 && i < len(r.Host)-1 && !strings.HasSuffix(r.Host, "]") {
		t.host += r.Host[i:]
	}
	return t, nil
}

// isQuery accepts what browsers send, beyond RFC 3986 §3.4, but nothing that
// ends a request line or a target.
func isQuery(q string) bool {
	for i := range len(q) {
		if c := q[i]; c <= ' ' || c == '#' || c == 0x7f {
			return false
		}
	}
	return true
}

// url is the form that net/http writes as it stands. The application's address
// in it is dialled, and not written.
func (t target) url(address string) *url.URL {
	return &url.URL{Scheme: "http", Host: address, Opaque: t.path, RawQuery: t.query, ForceQuery: t.asked && t.query == ""}
}

// cleanHead removes from h, in place, what is not for the application.
func cleanHead(h http.Header, upgrade bool) {
	trailers := hasToken(strings.Join(h["Te"], ","), "trailers")
	dropHopByHop(h)
	if trailers { // gRPC demands it
		h["Te"] = []string{"trailers"}
	}
	if upgrade {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	delete(h, "Host")
	dropOwn(h)
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // or net/http writes its own
	}
}

// dropHopByHop removes the fields of one hop and those that Connection names.
func dropHopByHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// dropOwn removes what only the proxy may say.
func dropOwn(h http.Header) {
	for name := range h {
		if isOwn(name) {
			delete(h, name)
		}
	}
}

// isOwn takes '_' for '-', as gateways to CGI and its successors do.
func isOwn(name string) bool {
	if len(name) != len(PeerIDField) && len(name) != len(ClientCertField) {
		return false
	}
	name = strings.ReplaceAll(name, "_", "-")
	return strings.EqualFold(name, PeerIDField) || strings.EqualFold(name, ClientCertField)
}

// introduce adds what the proxy knows of the peer.
func (p *Peer) introduce(h http.Header) {
	id := p.Connection.Peer
	if id.IsZero() {
		return
	}
	h[PeerIDField] = []string{id.String()}
	h[ClientCertField] = []string{"By=" + p.Server + ";Hash=" + p.Hash + ";URI=" + id.String()}
}

// lookup finds a field for policies, by any spelling of its name.
func lookup(h http.Header, host, name string) (string, bool) {
	if strings.EqualFold(name, "host") {
		return host, true
	}
	values, ok := h[textproto.CanonicalMIMEHeaderKey(name)]
	switch {
	case !ok:
		return "", false
	case len(values) == 1:
		return values[0], true
	}
	return strings.Join(values, ","), true
}
