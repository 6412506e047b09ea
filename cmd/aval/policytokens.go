// This file holds what commands know of RequestAuthentications: how Istio's
// become ours, and what cases and reviews make of them.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

// requestAuthentication translates Istio's. It reports false where there is
// nothing in it that decides anything.
func (m *importer) requestAuthentication(spec object) bool {
	rules := entries(spec["jwtRules"])
	if len(rules) == 0 && spec["targetRef"] == nil && spec["targetRefs"] == nil {
		m.note("is not imported: without jwtRules it looks at no token")
		return false
	}
	for _, r := range rules {
		if v, ok := r["jwks_uri"]; ok && r["jwksUri"] == nil {
			delete(r, "jwks_uri")
			r["jwksUri"] = v
		}
		// Istio writes both, and takes the keys that are there.
		if r["jwks"] != nil && r["jwks"] != "" && r["jwksUri"] != nil {
			delete(r, "jwksUri")
			delete(r, "timeout")
			m.note("jwksUri is left out beside jwks, which has the keys")
		}
		if r["jwksUri"] != nil {
			m.note("keys are fetched by the server, from hosts that its --jwks-allow lists")
		}
		for _, name := range []string{"audiences", "fromHeaders", "fromParams", "fromCookies", "outputClaimToHeaders"} {
			if list, ok := r[name].([]any); ok && len(list) == 0 {
				delete(r, name) // there it means the same as none
			}
		}
	}
	m.note("a token without exp, and a request with more than one token, are refused with 401")
	return true
}

// placeholderKeys stand for keys in cases, whose tokens are given as verified.
const placeholderKeys = "https://keys.invalid/"

// withoutKeys returns a document whose rules name a place for keys that
// nobody asks.
func withoutKeys(d document.Document) (document.Document, error) {
	raw, err := d.JSON()
	if err != nil {
		return d, err
	}
	var doc object
	if err := json.Unmarshal(raw, &doc); err != nil {
		return d, fmt.Errorf("document: %w", err)
	}
	spec, _ := doc["spec"].(object)
	for _, r := range entries(spec["jwtRules"]) {
		delete(r, "jwks")
		r["jwksUri"] = placeholderKeys
	}
	if raw, err = json.Marshal(doc); err != nil {
		return d, fmt.Errorf("document: %w", err)
	}
	return document.FromJSON(raw)
}

// parseTokens parses a RequestAuthentication of a case. Where Istio finds the
// keys of one in its own ways, the case needs none.
func parseTokens(d document.Document, istio bool, s policy.Settings) (policy.RequestAuthentication, error) {
	p, _, err := policy.ParseRequestAuthentication(d, s)
	if err == nil || !istio {
		return p, err
	}
	if other, fault := withoutKeys(d); fault == nil {
		if p, _, fault := policy.ParseRequestAuthentication(other, s); fault == nil {
			return p, nil
		}
	}
	return p, err
}

// authenticate looks at the request's token as a proxy would after it has
// verified the signature. It reports false where no rule takes the token.
// Where no RequestAuthentication applies nobody looks at it.
func authenticate(set *policy.Set, r *policy.Request) bool {
	auth := set.Authentication()
	switch {
	case r.JWT == nil || r.HTTP == nil:
	case auth == nil:
		r.JWT = nil
	case !auth.Takes(r.JWT):
		r.JWT = nil
		return false
	}
	return true
}

// tokenFault says why no rule takes a token with these claims.
func tokenFault(a *policy.Authentication, t *policy.JWT) string {
	var issuers, audiences []string
	for _, r := range a.Rules() {
		issuers = append(issuers, r.Issuer)
		if r.Issuer == t.Issuer {
			audiences = append(audiences, r.Audiences...)
		}
	}
	if !slices.Contains(issuers, t.Issuer) {
		return fmt.Sprintf("iss is %q, and rules are there for %s", t.Issuer, strings.Join(issuers, ", "))
	}
	return fmt.Sprintf("aud is %q, and the rules of its issuer take %s", t.Audiences, strings.Join(audiences, ", "))
}

// claimsOf reads claims as a flag has them.
func claimsOf(text string) (*policy.JWT, error) {
	var claims map[string]any
	if err := json.Unmarshal([]byte(text), &claims); err != nil || claims == nil {
		return nil, errors.New(`is not a JSON object such as {"iss":"https://issuer.example.org","sub":"alice"}`)
	}
	return policy.NewJWT(claims), nil
}

// tokenFindings says where tokens are verified and nobody asks for one, and
// where one is asked for and never looked at.
func (e *estate) tokenFindings(r identity.Registration) []reviewed {
	w := workloadOf(r)
	asked := policy.AskForTokens(e.settings, w, e.policies)
	auth := policy.CompileAuthentication(e.settings, w, e.tokens, nil)
	switch {
	case auth != nil && !asked:
		return []reviewed{{Kind: "tokens", Subject: "registration " + r.Path(), Message: "a RequestAuthentication applies, and no policy asks for a token: requests without one pass",
			Hint: `demand one where it is needed: requestPrincipals: ["*"] in an ALLOW policy, or notRequestPrincipals: ["*"] in a DENY policy`}}
	case auth == nil && asked:
		return []reviewed{{Kind: "tokens", Subject: "registration " + r.Path(), Message: "a policy asks for a token, and no RequestAuthentication applies: no token is looked at, so none has a principal or claims",
			Hint: "add a RequestAuthentication that selects it"}}
	}
	return nil
}
