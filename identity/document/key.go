// This file holds Kind and Key: which documents there are, and how one is
// named among all of them.

package document

import (
	"fmt"
	"strings"
)

// Kind is the canonical name of a document's kind.
type Kind = string

// The kinds of documents. All of them live in a namespace.
const (
	Registration          Kind = "Registration"
	PeerAuthentication    Kind = "PeerAuthentication"
	AuthorizationPolicy   Kind = "AuthorizationPolicy"
	RequestAuthentication Kind = "RequestAuthentication"
	PlaintextException    Kind = "PlaintextException"
)

// kinds pairs each kind with its plural in lower case.
var kinds = []struct{ kind, plural string }{
	{Registration, "registrations"},
	{PeerAuthentication, "peerauthentications"},
	{AuthorizationPolicy, "authorizationpolicies"},
	{RequestAuthentication, "requestauthentications"},
	{PlaintextException, "plaintextexceptions"},
}

// NormalizeKind returns the canonical kind for a singular or plural in any
// case, such as "registrations", and whether there is one.
func NormalizeKind(s string) (Kind, bool) {
	low := strings.ToLower(s)
	for _, k := range kinds {
		if low == k.plural || low == strings.ToLower(k.kind) {
			return k.kind, true
		}
	}
	return "", false
}

// kindNamed returns the kind whose canonical name this is. Documents are
// strict about it; only command lines are not.
func kindNamed(s string) (Kind, bool) {
	for _, k := range kinds {
		if k.kind == s {
			return k.kind, true
		}
	}
	return "", false
}

func kindNames() []string {
	names := make([]string, 0, len(kinds))
	for _, k := range kinds {
		names = append(names, k.kind)
	}
	return names
}

// Key identifies a document. Keys compare with == and serve as map keys; the
// zero value is invalid.
type Key struct {
	Kind      Kind
	Namespace string
	Name      string
}

// String returns "Registration shop/web", which ParseKey reads, or "" for the
// zero value.
func (k Key) String() string {
	if k == (Key{}) {
		return ""
	}
	return k.Kind + " " + k.Path()
}

// Path returns "shop/web", or the name alone where there is no namespace.
func (k Key) Path() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Compare orders keys by namespace, name and kind.
func (k Key) Compare(other Key) int {
	if c := strings.Compare(k.Namespace, other.Namespace); c != 0 {
		return c
	}
	if c := strings.Compare(k.Name, other.Name); c != 0 {
		return c
	}
	return strings.Compare(k.Kind, other.Kind)
}

// ParseKey parses the form that String prints. The kind must be canonical.
func ParseKey(s string) (Key, error) {
	kind, path, ok := strings.Cut(s, " ")
	if !ok {
		return Key{}, fmt.Errorf("document key %q is not of the form KIND NAMESPACE/NAME", s)
	}
	if _, ok := kindNamed(kind); !ok {
		return Key{}, fmt.Errorf("document key %q: %q is not a known kind", s, kind)
	}
	k := Key{Kind: kind, Name: path}
	if namespace, name, ok := strings.Cut(path, "/"); ok {
		if reason := checkDNSLabel(namespace); reason != "" {
			return Key{}, fmt.Errorf("document key %q: namespace %s", s, reason)
		}
		k.Namespace, k.Name = namespace, name
	}
	if reason := checkDNSSubdomain(k.Name); reason != "" {
		return Key{}, fmt.Errorf("document key %q: name %s", s, reason)
	}
	return k, nil
}

// MarshalText prints the key.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses a key; an empty text gives the zero value.
func (k *Key) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*k = Key{}
		return nil
	}
	v, err := ParseKey(string(b))
	if err != nil {
		return err
	}
	*k = v
	return nil
}
