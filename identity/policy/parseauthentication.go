// This file parses the spec of a RequestAuthentication.

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/jwt"
)

type rawRequestAuthentication struct {
	Selector   *rawSelector         `json:"selector"`
	JWTRules   []rawJWTRule         `json:"jwtRules"`
	TargetRef  document.Unsupported `json:"targetRef"`
	TargetRefs document.Unsupported `json:"targetRefs"`
}

type rawJWTRule struct {
	Issuer        string               `json:"issuer"`
	Audiences     []string             `json:"audiences"`
	JWKSURI       string               `json:"jwksUri"`
	JWKS          string               `json:"jwks"`
	FromHeaders   []rawTokenHeader     `json:"fromHeaders"`
	FromParams    []string             `json:"fromParams"`
	FromCookies   []string             `json:"fromCookies"`
	OutputPayload string               `json:"outputPayloadToHeader"`
	OutputClaims  []rawClaimHeader     `json:"outputClaimToHeaders"`
	Forward       bool                 `json:"forwardOriginalToken"`
	Timeout       *time.Duration       `json:"timeout"`
	Delimited     document.Unsupported `json:"spaceDelimitedClaims"`
}

type rawTokenHeader struct {
	Name   string `json:"name"`
	Prefix string `json:"prefix"`
}

type rawClaimHeader struct {
	Header string `json:"header"`
	Claim  string `json:"claim"`
}

// Bounds of a RequestAuthentication.
const (
	maxTokenRules  = 256
	maxTokenPlaces = 32
	maxURIBytes    = 2048
	maxKeysTimeout = 30 * time.Second
)

// ParseRequestAuthentication parses a document of that kind. Refused, where
// Istio guesses or ignores: no keys and both of their sources, http, headers
// that are not for tokens, and a document without rules. The error is a
// document.Errors with every fault.
func ParseRequestAuthentication(d document.Document, s Settings) (RequestAuthentication, []Warning, error) {
	if errs := checkUndecided(d, document.RequestAuthentication, "tokens are looked at or they are not: it has no dry run"); len(errs) > 0 {
		return RequestAuthentication{}, nil, errs
	}
	var raw rawRequestAuthentication
	if err := d.DecodeSpec(&raw); err != nil {
		return RequestAuthentication{}, nil, err
	}
	sel, errs := raw.Selector.parse(d)
	p := &tokenParser{parser: parser{doc: d, settings: s, errs: errs}}
	out := RequestAuthentication{key: d.Key(), path: d.Key().Path(), selector: sel}
	switch n := len(raw.JWTRules); {
	case n == 0:
		p.fault("spec.jwtRules", "", "at least one rule", "is missing: without a rule the document takes no token, and none would be valid")
	case n > maxTokenRules:
		p.fault("spec.jwtRules", strconv.Itoa(n), fmt.Sprintf("at most %d", maxTokenRules), "has too many rules")
	default:
		for i, r := range raw.JWTRules {
			out.rules = append(out.rules, p.tokenRule(r, fmt.Sprintf("spec.jwtRules[%d]", i)))
		}
		for i := range out.rules {
			p.outputsAgainstPlaces(out.rules, i)
		}
	}
	if err := document.Collect(p.errs); err != nil {
		return RequestAuthentication{}, nil, err
	}
	return out, p.warnings, nil
}

// tokenParser is a parser of jwtRules.
type tokenParser struct{ parser }

func (p *tokenParser) tokenRule(raw rawJWTRule, at string) TokenRule {
	r := TokenRule{Policy: p.doc.Key().Path(), Issuer: raw.Issuer, Audiences: raw.Audiences, Params: raw.FromParams, Cookies: raw.FromCookies,
		Forward: raw.Forward, Timeout: DefaultKeysTimeout}
	switch {
	case raw.Issuer == "":
		p.fault(at+".issuer", "", "the iss of the tokens, such as https://issuer.example.org", "is missing")
	case len(raw.Issuer) > maxURIBytes || !printable(raw.Issuer):
		p.fault(at+".issuer", raw.Issuer, fmt.Sprintf("at most %d printable characters", maxURIBytes), "is no issuer")
	}
	p.texts(raw.Audiences, at+".audiences", "audience", func(s string) bool { return printable(s) })
	if raw.Audiences == nil {
		p.warn(at, "names no audiences: tokens that the issuer made for anybody else are taken here too; name those that are meant for this workload")
	}
	p.keys(&r, raw, at)
	p.places(&r, raw, at)
	p.outputs(&r, raw, at)
	return r
}

// texts checks a list that is written: it has entries, none twice.
func (p *tokenParser) texts(list []string, at, what string, fits func(string) bool) {
	if list != nil {
		p.present(true, len(list), at, what)
	}
	if len(list) > maxTokenPlaces {
		p.fault(at, strconv.Itoa(len(list)), fmt.Sprintf("at most %d", maxTokenPlaces), "has too many entries")
		return
	}
	for i, s := range list {
		field := fmt.Sprintf("%s[%d]", at, i)
		switch {
		case s == "":
			p.fault(field, "", "", "is empty")
		case !fits(s):
			p.fault(field, s, "", "is no name of a %s", what)
		case slices.Contains(list[:i], s):
			p.fault(field, s, "", "is written twice")
		}
	}
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// keys checks where the rule's keys come from.
func (p *tokenParser) keys(r *TokenRule, raw rawJWTRule, at string) {
	switch {
	case raw.JWKS != "" && raw.JWKSURI != "":
		p.fault(at+".jwksUri", raw.JWKSURI, "", "contradicts jwks, which has the keys: write one of the two")
	case raw.JWKS != "":
		var err error
		if r.Keys, err = jwt.ParseKeys([]byte(raw.JWKS)); err != nil {
			p.fault(at+".jwks", "", "a JWK set of public keys, as text", "%w", err)
		}
	case raw.JWKSURI != "":
		if err := CheckKeysURI(raw.JWKSURI); err != nil {
			p.fault(at+".jwksUri", raw.JWKSURI, "https://host/path or file:///path", "%w", err)
		}
		r.KeysURI = raw.JWKSURI
	default:
		p.fault(at, "", "jwks or jwksUri", "says not where the issuer's keys are: they are not looked for; write the jwks_uri that the issuer's /.well-known/openid-configuration names")
	}
	if raw.Timeout == nil {
		return
	}
	r.Timeout = *raw.Timeout
	switch {
	case !strings.HasPrefix(raw.JWKSURI, "https://"):
		p.fault(at+".timeout", r.Timeout.String(), "", "has no meaning without a jwksUri of https: nothing is fetched")
	case r.Timeout <= 0 || r.Timeout > maxKeysTimeout:
		p.fault(at+".timeout", r.Timeout.String(), "up to "+maxKeysTimeout.String(), "is no time that a fetch may take")
	}
}

// CheckKeysURI reports what is wrong with a URI that keys are to come from.
func CheckKeysURI(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || len(text) > maxURIBytes || !printable(text) || strings.Contains(text, `\`):
		return errors.New("is no URI")
	case u.Scheme == "http":
		return errors.New("is not encrypted: whoever is on the way could choose the keys; write https://")
	case u.Scheme != "https" && u.Scheme != "file":
		return errors.New("is neither https:// nor file:///")
	case u.Opaque != "":
		return errors.New("has no // after its scheme")
	case u.User != nil:
		return errors.New("has a user in it, who is not sent: an issuer publishes its keys to everyone")
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return errors.New("has a fragment, which is not sent")
	}
	if u.Scheme == "file" {
		if u.Host != "" || u.RawQuery != "" || u.ForceQuery || !path.IsAbs(u.Path) || path.Clean(u.Path) != u.Path || u.Path == "/" {
			return errors.New("is no absolute path of a file in its shortest form, such as file:///etc/aval/jwks/issuer.json")
		}
		return nil
	}
	return checkKeysHost(u)
}

func checkKeysHost(u *url.URL) error {
	host := u.Hostname()
	if _, err := netip.ParseAddr(host); err != nil && !isHostName(host) {
		return errors.New("has no host that is a name or an address")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if _, err := parsePort(port); err != nil {
			return errors.New("has no port from 1 to 65535")
		}
	}
	return nil
}

// isHostName accepts names of hosts (RFC 1123 §2.1) with something that is no
// digit in the last label, so that no resolver takes them for an address.
func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := lower(label[i])
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != "" && !strings.HasPrefix(strings.ToLower(last), "0x")
}

// places checks where the token may be.
func (p *tokenParser) places(r *TokenRule, raw rawJWTRule, at string) {
	if raw.FromHeaders == nil && raw.FromParams == nil && raw.FromCookies == nil {
		r.Headers = []TokenHeader{{defaultTokenHeader, bearerPrefix}}
		r.Params = []string{defaultTokenParam}
		return
	}
	if raw.FromHeaders != nil {
		p.present(true, len(raw.FromHeaders), at+".fromHeaders", "header")
	}
	if len(raw.FromHeaders) > maxTokenPlaces {
		p.fault(at+".fromHeaders", strconv.Itoa(len(raw.FromHeaders)), fmt.Sprintf("at most %d", maxTokenPlaces), "has too many entries")
		return
	}
	for i, h := range raw.FromHeaders {
		field := fmt.Sprintf("%s.fromHeaders[%d]", at, i)
		out := TokenHeader{Name: p.header(h.Name, field+".name", false), Prefix: h.Prefix}
		if !printable(h.Prefix) || h.Prefix != strings.TrimLeft(h.Prefix, " ") {
			p.fault(field+".prefix", h.Prefix, "", "is no beginning of a header's value")
		}
		if slices.Contains(r.Headers, out) {
			p.fault(field, h.Name, "", "is written twice")
		}
		r.Headers = append(r.Headers, out)
	}
	p.texts(raw.FromParams, at+".fromParams", "query parameter", printable)
	p.texts(raw.FromCookies, at+".fromCookies", "cookie", isToken)
}

// outputs checks the headers that get claims.
func (p *tokenParser) outputs(r *TokenRule, raw rawJWTRule, at string) {
	var taken []string
	claim := func(name, field string) string {
		name = p.header(name, field, true)
		if name != "" && slices.Contains(taken, name) {
			p.fault(field, name, "", "is the header of another output of this rule")
		}
		taken = append(taken, name)
		return name
	}
	if raw.OutputPayload != "" {
		r.PayloadHeader = claim(raw.OutputPayload, at+".outputPayloadToHeader")
	}
	if raw.OutputClaims != nil {
		p.present(true, len(raw.OutputClaims), at+".outputClaimToHeaders", "claim")
	}
	for i, o := range raw.OutputClaims {
		field := fmt.Sprintf("%s.outputClaimToHeaders[%d]", at, i)
		if o.Claim == "" || !printable(o.Claim) {
			p.fault(field+".claim", o.Claim, "the name of a claim, names within it after a '.'", "is no claim")
		}
		r.ClaimHeaders = append(r.ClaimHeaders, ClaimHeader{Header: claim(o.Header, field+".header"), Claim: o.Claim})
	}
}

// outputsAgainstPlaces refuses a header that a rule reads tokens from and
// another, or the same, writes claims to: only one of the two can be in it.
func (p *tokenParser) outputsAgainstPlaces(rules []TokenRule, i int) {
	names := []string{rules[i].PayloadHeader}
	for _, h := range rules[i].ClaimHeaders {
		names = append(names, h.Header)
	}
	for _, r := range rules {
		for _, h := range r.Headers {
			if h.Name != "" && slices.Contains(names, h.Name) {
				p.fault(fmt.Sprintf("spec.jwtRules[%d]", i), h.Name, "", "writes claims into a header that tokens come in")
				return
			}
		}
	}
}

// header checks and canonicalises the name of a header. Those of the
// connection and of the proxy hold no tokens and no claims.
func (p *tokenParser) header(name, field string, output bool) string {
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	switch {
	case !isToken(name):
		p.fault(field, name, "letters, digits and '-'", "is no name of a header")
	case strings.Contains(name, "_"):
		p.fault(field, name, "", "has a '_', which applications take for a '-': write '-'")
	case isReservedHeader(canonical), output && canonical == defaultTokenHeader:
		p.fault(field, name, "", "is a header with a meaning of its own")
	}
	return canonical
}

// isToken accepts the token of RFC 9110 §5.6.2.
func isToken(s string) bool { return httpguts.ValidHeaderFieldName(s) }

// isReservedHeader names the headers that speak of the message, the
// connection or the peer.
func isReservedHeader(canonical string) bool {
	switch canonical {
	case "Host", "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Expect", "Forwarded", "Traceparent", "Tracestate", "Cookie", "Set-Cookie",
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Client-Cert":
		return true
	}
	for _, prefix := range []string{"Content-", "Aval-", "Grpc-"} {
		if strings.HasPrefix(canonical, prefix) {
			return true
		}
	}
	return false
}
