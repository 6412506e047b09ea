// This file holds what get says of RequestAuthentications: the documents, and
// how the server stands with the keys that they name.

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
)

// keyStates is how the server stands with sources of keys, by URI.
type keyStates map[string]*wire.KeySetState

// keySetStates asks the server, where a document is about tokens.
func keySetStates(ctx context.Context, admin wire.AdminClient, docs []document.Document) (keyStates, error) {
	if !slices.ContainsFunc(docs, func(d document.Document) bool { return d.Kind() == document.RequestAuthentication }) {
		return nil, nil
	}
	st, err := admin.ServerStatus(ctx, &wire.ServerStatusRequest{})
	if err != nil {
		return nil, called("ask for the state of keys", err)
	}
	states := keyStates{}
	for _, k := range st.GetKeySets() {
		states[k.GetUri()] = k
	}
	return states, nil
}

// cells shows issuers, selector and keys of a RequestAuthentication.
func (s keyStates) cells(d document.Document) []string {
	var x struct {
		Spec struct {
			JWTRules []struct {
				Issuer  string `json:"issuer"`
				JWKSURI string `json:"jwksUri"`
			} `json:"jwtRules"`
		} `json:"spec"`
	}
	var p policySpec
	if !decodeJSON(d, &x) || !decodeJSON(d, &p) {
		return []string{"?", "?", "?"}
	}
	var issuers, keys []string
	for _, r := range x.Spec.JWTRules {
		if text := plain(r.Issuer); !slices.Contains(issuers, text) {
			issuers = append(issuers, text)
		}
		if text := s.state(r.JWKSURI, time.Now()); !slices.Contains(keys, text) {
			keys = append(keys, text)
		}
	}
	return []string{strings.Join(issuers, ","), p.selector(), strings.Join(keys, "; ")}
}

// state words how it stands with one source; "" is a document's own keys.
func (s keyStates) state(uri string, now time.Time) string {
	if uri == "" {
		return "inline"
	}
	st := s[uri]
	switch {
	case st == nil:
		return "not asked yet"
	case st.GetKeys() == 0 && st.GetError() != "":
		return "none: " + plain(st.GetError())
	case st.GetKeys() == 0:
		return "none yet"
	case st.GetError() != "":
		return fmt.Sprintf("%s, stale since %s: %s", plural(int(st.GetKeys()), "key"), ago(stamp(st.GetFetched()), now), plain(st.GetError()))
	}
	return fmt.Sprintf("%s, fetched %s", plural(int(st.GetKeys()), "key"), ago(stamp(st.GetFetched()), now))
}

// keySets checks the sources of keys.
func (f *findings) keySets(all []*wire.KeySetState) {
	f.group = "tokens"
	for _, k := range all {
		where := plain(k.GetUri())
		needs := "named by " + strings.Join(k.GetDocuments(), ", ")
		switch {
		case k.GetKeys() == 0 && k.GetError() != "":
			f.add(checkFail, where, "no token of its issuer is valid until its keys were fetched once", "no keys, %s: %s", needs, plain(k.GetError()))
		case k.GetKeys() == 0:
			f.add(checkWarn, where, "no token of its issuer is valid until its keys were fetched once", "no keys yet, %s", needs)
		case k.GetError() != "":
			f.add(checkWarn, where, "the last keys stay in force; tokens by newer ones are refused", "%s, last fetched %s, %s: %s", plural(int(k.GetKeys()), "key"),
				ago(stamp(k.GetFetched()), f.now), needs, plain(k.GetError()))
		default:
			f.add(checkOK, where, "", "%s, fetched %s, %s", plural(int(k.GetKeys()), "key"), ago(stamp(k.GetFetched()), f.now), needs)
		}
	}
}
