// This file holds the tests of what proxies hold.

package endpoint

import (
	"encoding/hex"
	"slices"
	"testing"

	"github.com/aval-id/aval/identity/identitytest"
)

func TestAProxyHoldsWhatItTookAndNotWhatItWasSent(t *testing.T) {
	old, next := identitytest.New(t, "example.org"), identitytest.New(t, "example.org")
	changes := 0
	s := &Server{holdings: holdings{changed: func() { changes++ }}}
	h := &s.holdings
	anyone := func(string) bool { return true }
	expect := func(what string, bundles int, lagging int, issuers ...*identitytest.TrustDomain) {
		t.Helper()
		var want []string
		for _, td := range issuers {
			want = append(want, hex.EncodeToString(td.Intermediate.SubjectKeyId))
		}
		slices.Sort(want)
		got := s.Holdings(next.Bundle)
		if len(got.Bundles) != bundles || len(got.Lagging) != lagging || !slices.Equal(got.Issuers, want) {
			t.Fatalf("%s: %+v", what, got)
		}
	}
	w := &watcher{acks: true}
	h.open(w)
	expect("nothing was sent", 0, 0)
	first := h.next(w, old.SVID(t, "/web"), old.Bundle)
	expect("sent and not taken", 0, 1)
	if !h.took(first, anyone) || h.took(first, anyone) || h.took(first+7, anyone) {
		t.Fatal("a tag counts once")
	}
	expect("the old one is held", 1, 1, old)
	second := h.next(w, next.SVID(t, "/web"), next.Bundle)
	third := h.next(w, next.SVID(t, "/web"), next.Bundle)
	expect("still held", 1, 1, old)
	if h.took(second, func(id string) bool { return id == "spiffe://example.org/other" }) {
		t.Fatal("another process acknowledged for the proxy")
	}
	if !h.took(third, anyone) || h.took(second, anyone) {
		t.Fatal("what is older than what was taken counts no more")
	}
	expect("the new one is held", 0, 0, next)
	// One that acknowledges nothing counts as holding what it was sent.
	silent := &watcher{}
	h.open(silent)
	h.next(silent, old.SVID(t, "/api"), old.Bundle)
	expect("a silent one", 1, 1, old, next)
	h.close(silent)
	h.close(w)
	expect("both went", 0, 0)
	if changes < 8 {
		t.Fatalf("%d changes were told", changes)
	}
}
