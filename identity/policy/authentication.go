// This file holds Authentication: the rules about tokens that apply to one
// workload, and how a verified token looks to policies.

package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity/jwt"
)

// Authentication is the rules of all RequestAuthentications that apply to one
// workload, with the keys of the moment. It is immutable and safe for
// concurrent use; nil looks at no token.
type Authentication struct {
	rules    []TokenRule
	policies []string // "ns/name" of each document, in order
	claimed  map[string]bool
}

// CompileAuthentication selects the documents that apply to w. Keys that a
// document does not have itself are taken from keys, by their URI. It returns
// nil where none applies.
func CompileAuthentication(s Settings, w Workload, all []RequestAuthentication, keys map[string]*jwt.Keys) *Authentication {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b RequestAuthentication) int { return a.key.Compare(b.key) })
	a := &Authentication{claimed: map[string]bool{}}
	for _, p := range sorted {
		if !p.AppliesTo(s, w) {
			continue
		}
		a.policies = append(a.policies, p.path)
		for _, r := range p.rules {
			if r.KeysURI != "" {
				r.Keys = keys[r.KeysURI]
			}
			a.rules = append(a.rules, r)
			if r.PayloadHeader != "" {
				a.claimed[r.PayloadHeader] = true
			}
			for _, h := range r.ClaimHeaders {
				a.claimed[h.Header] = true
			}
		}
	}
	if len(a.policies) == 0 {
		return nil
	}
	return a
}

// Rules returns the rules, by the documents' namespace and name and then in
// their order. The caller must not change them.
func (a *Authentication) Rules() []TokenRule {
	if a == nil {
		return nil
	}
	return a.rules
}

// Policies returns the "ns/name" of each document that applies, in order. The
// caller must not change it.
func (a *Authentication) Policies() []string {
	if a == nil {
		return nil
	}
	return a.policies
}

// Outputs returns the headers that the rules set from tokens, in order. What
// a client sends under these names must not reach the application.
func (a *Authentication) Outputs() []string {
	if a == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(a.claimed))
}

// Takes reports whether a rule takes tokens with these claims, if their
// signature is good and the time is right.
func (a *Authentication) Takes(t *JWT) bool {
	if a == nil {
		return false
	}
	return slices.ContainsFunc(a.rules, func(r TokenRule) bool {
		return r.Issuer == t.Issuer && (len(r.Audiences) == 0 || slices.ContainsFunc(t.Audiences, func(aud string) bool { return slices.Contains(r.Audiences, aud) }))
	})
}

// Authenticating returns the Set with an Authentication beside its policies:
// requests are then looked at for tokens.
func (s *Set) Authenticating(a *Authentication) *Set {
	if s == nil || a == nil {
		return s
	}
	with := *s
	with.authentication = a
	return &with
}

// Authentication returns what Authenticating was given, or nil.
func (s *Set) Authentication() *Authentication {
	if s == nil {
		return nil
	}
	return s.authentication
}

// RefuseToken is the decision about a request whose token is not valid. No
// policy is asked.
func (s *Set) RefuseToken(r *Request) Decision {
	d := s.DecideRequest(r)
	if d.Reason == ReasonPlaintextRefused {
		return d
	}
	d.Allowed, d.Reason, d.Policy, d.Rule = false, ReasonTokenInvalid, "", -1
	if d.Trial.Ran {
		d.Trial.Allowed, d.Trial.Reason, d.Trial.Policy, d.Trial.Rule = false, ReasonTokenInvalid, "", -1
	}
	return d
}

// NewJWT returns a verified token as policies see it. Its scope and its
// permission, which are lists in one text (RFC 8693 §4.2), match by each of
// their words. The claims must not be changed afterwards.
func NewJWT(claims map[string]any) *JWT {
	text := func(name string) string { s, _ := claims[name].(string); return s }
	t := &JWT{Issuer: text("iss"), Subject: text("sub"), Presenter: text("azp"), Claims: claims}
	switch aud := claims["aud"].(type) {
	case string:
		t.Audiences = []string{aud}
	case []any:
		for _, a := range aud {
			if s, ok := a.(string); ok {
				t.Audiences = append(t.Audiences, s)
			}
		}
	}
	var split map[string]any
	for _, name := range []string{"scope", "permission"} {
		words := strings.Fields(text(name))
		if len(words) < 2 {
			continue
		}
		if split == nil {
			split = maps.Clone(claims)
		}
		list := make([]any, len(words))
		for i, word := range words {
			list[i] = word
		}
		split[name] = list
	}
	if split != nil {
		t.Claims = split
	}
	return t
}

// AskForTokens reports whether an enforced policy among aps that applies to w
// asks for something that only a request with a token has.
func AskForTokens(s Settings, w Workload, aps []AuthorizationPolicy) bool {
	asks := func(c clause) bool {
		return slices.ContainsFunc(c, func(t term) bool { return t.attribute >= attrRequestPrincipal && t.attribute <= attrClaim })
	}
	return slices.ContainsFunc(aps, func(p AuthorizationPolicy) bool {
		return !p.dryRun && p.action != Audit && p.appliesTo(s, w) && slices.ContainsFunc(p.rules, func(r rule) bool {
			return asks(r.when) || slices.ContainsFunc(r.from, asks) || slices.ContainsFunc(r.to, asks)
		})
	})
}
