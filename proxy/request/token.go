// This file holds the tokens of requests: how a request is admitted by the
// RequestAuthentications that apply, and what the application gets of it.

package request

import (
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/policy"
)

// errSeveral refuses a request with more than one token: which of them it
// speaks for would be anybody's guess.
var errSeveral = errors.New("request has more than one token")

// authenticate looks at the request's token. Without one it passes; with a
// valid one policies see its claims; otherwise the request is answered and
// false returned.
func (e *exchange) authenticate(set *policy.Set) bool {
	auth := set.Authentication()
	if auth == nil {
		return true
	}
	e.gate = e.s.gateFor(auth)
	found := e.gate.find(e.r.Header, e.target.query)
	e.gate.clean(e.r.Header)
	if len(found) == 0 {
		e.s.metrics.tokens.WithLabelValues("missing").Inc()
		return true
	}
	v, err := e.gate.admit(found, e.began)
	if err != nil {
		e.s.metrics.tokens.WithLabelValues("invalid").Inc()
		e.unauthenticated(set, err)
		return false
	}
	e.s.metrics.tokens.WithLabelValues("valid").Inc()
	e.facts.JWT = v.facts
	if !v.rule.Forward {
		found[0].place.remove(e.r.Header, &e.target)
	}
	v.introduce(e.r.Header)
	return true
}

// unauthenticated answers a request whose token is not valid, and takes note
// of it. The answer doesn't say why.
func (e *exchange) unauthenticated(set *policy.Set, why error) {
	d := set.RefuseToken(&e.facts)
	e.verdict, e.allowed = d, false
	refusal := e.refusal(d, false)
	refusal.Token = why
	e.s.house.Refused(refusal)
	e.s.log.Debug("token refused", slog.String("source", e.c.RemoteAddr().String()), slog.Any("error", why))
	if !e.grpc {
		e.w.Header()["Www-Authenticate"] = []string{`Bearer error="invalid_token"`}
	}
	e.answer(http.StatusUnauthorized)
}

// admit verifies the one token of a request.
func (g *gate) admit(found []candidate, now time.Time) (*verified, error) {
	if len(found) > 1 {
		return nil, errSeveral
	}
	c := found[0]
	if len(c.token) > jwt.MaxTokenBytes {
		return nil, jwt.ErrSize
	}
	sum := c.sum()
	if v := g.cache.get(sum, now); v != nil {
		return v, nil
	}
	v, err := c.verify(now)
	if err != nil {
		return nil, err
	}
	g.cache.put(sum, v)
	return v, nil
}

// verify tries the rules that take tokens of this issuer at this place, in
// their order. The error is that of the rule that came furthest, which is the
// last.
func (c candidate) verify(now time.Time) (*verified, error) {
	token, err := jwt.Parse(c.token)
	if err != nil {
		return nil, err
	}
	err = jwt.ErrIssuer
	for _, r := range c.place.rules {
		if r.Issuer != token.Issuer() {
			continue
		}
		if err = token.Verify(r.Keys, r.Audiences, now); err == nil {
			return newVerified(r, token, len(c.token)), nil
		}
	}
	return nil, err
}

// verified is a token that a rule took. It is immutable.
type verified struct {
	rule    *policy.TokenRule
	facts   *policy.JWT
	outputs []output
	end     time.Time
	cost    int // about how much memory it holds
}

// output is a header that the application gets.
type output struct{ name, value string }

func newVerified(r *policy.TokenRule, t *jwt.Token, size int) *verified {
	v := &verified{rule: r, facts: policy.NewJWT(t.Claims()), end: t.End(), cost: 512 + 8*size}
	if r.PayloadHeader != "" {
		v.outputs = append(v.outputs, output{r.PayloadHeader, strings.Clone(t.Payload())})
	}
	for _, h := range r.ClaimHeaders {
		if text, ok := claimText(t.Claims(), h.Claim); ok {
			v.outputs = append(v.outputs, output{h.Header, text})
		}
	}
	return v
}

// introduce adds what the application is to get of the token.
func (v *verified) introduce(h http.Header) {
	for _, o := range v.outputs {
		h[o.name] = []string{o.value}
	}
}

// claimText returns a claim as a header writes it: texts, numbers and truth
// values. Others, and texts that no header can hold, give none.
func claimText(claims map[string]any, name string) (string, bool) {
	value, ok := claims[name]
	for rest := name; !ok; {
		step, after, more := strings.Cut(rest, ".")
		inner, found := claims[step]
		if !found {
			return "", false
		}
		if !more {
			value, ok = inner, true
			break
		}
		if claims, found = inner.(map[string]any); !found {
			return "", false
		}
		rest = after
	}
	switch v := value.(type) {
	case string:
		clean := v != "" && v == strings.TrimSpace(v) && !strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f })
		return v, clean
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}
