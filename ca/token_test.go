// This file holds the tests of join tokens.

package ca

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestTokenPrintsRedacted(t *testing.T) {
	token := NewToken()
	secret := token.Reveal()
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("token", "token", token)
	for _, text := range []string{fmt.Sprint(token), fmt.Sprintf("%+v %#v %s", token, token, token), log.String()} {
		if strings.Contains(text, secret) || strings.Contains(text, secret[len(tokenPrefix):]) {
			t.Errorf("the secret is in %q", text)
		}
	}
	back, err := ParseToken(secret)
	if err != nil || back != token {
		t.Fatalf("parsed %v", err)
	}
	if _, err := ParseToken(secret[:len(secret)-1]); err == nil || strings.Contains(err.Error(), secret[4:20]) {
		t.Errorf("error %v", err)
	}
}

func TestTokenBindsToItsFirstKey(t *testing.T) {
	now := time.Now()
	token, first, another := NewToken(), proven(t, newKey(t)), proven(t, newKey(t))
	g := Grant{Hash: token.Hash(), Node: "one", Created: now, Expires: now.Add(time.Minute)}
	if _, err := g.Admit(domain, first, now); err == nil {
		t.Fatal("an unbound grant admitted a node")
	}
	bound, err := g.Bind(token, first, now)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := bound.Bind(token, first, now.Add(59*time.Second)); err != nil || again.BoundKey != bound.BoundKey {
		t.Fatalf("the same key may retry: %v", err)
	}
	for reason, attempt := range map[string]func() error{
		ReasonTokenReused:  func() error { return second(bound.Bind(token, another, now)) },
		ReasonTokenExpired: func() error { return second(bound.Bind(token, first, now.Add(time.Minute))) },
		ReasonBadToken:     func() error { return second(bound.Bind(NewToken(), first, now)) },
		ReasonBadCSR:       func() error { return second(bound.Bind(token, ProvenKey{}, now)) },
	} {
		if r, ok := errors.AsType[*Refusal](attempt()); !ok || r.Reason != reason {
			t.Errorf("%s: %v", reason, r)
		}
	}
	n, err := bound.Admit(domain, first, now)
	if err != nil || n.ID.String() != "spiffe://example.org/aval/node/one" || n.Attributes["node.name"][0] != "one" {
		t.Fatalf("node %+v %v", n, err)
	}
	if _, err := bound.Admit(domain, another, now); err == nil {
		t.Fatal("another key was admitted")
	}
}

func FuzzToken(f *testing.F) {
	f.Add(NewToken().Reveal())
	f.Add("avt_")
	f.Add("avt_" + strings.Repeat("=", 43))
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err == nil && token.Reveal() != s {
			t.Fatalf("%q prints as something else", s)
		}
	})
}
