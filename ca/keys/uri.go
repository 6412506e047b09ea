// This file holds the reading of KMS URIs. What fails to parse may hold a PIN
// in the wrong place, so that no error repeats it.

package keys

import (
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/softkms"
	"go.step.sm/crypto/kms/uri"
)

// maxURI bounds a URI before it is parsed.
const maxURI = 4096

// location is a parsed KMS URI.
type location struct {
	kind   apiv1.Type
	opaque string // what follows the scheme, for schemes whose names are paths
	values url.Values
}

// FileURI returns the URI of a key in a file, kept as it is.
func FileURI(path string) string {
	return uri.New(softkms.Scheme, map[string][]string{"path": {path}}).String()
}

func parseURI(text string) (location, error) {
	const form = "want SCHEME:NAME=VALUE;NAME=VALUE, such as softkms:path=/var/lib/aval/server/keys/root.key"
	if text == "" || len(text) > maxURI {
		return location{}, fmt.Errorf("key URI of %d bytes: %s", len(text), form)
	}
	u, err := uri.Parse(text)
	if err != nil || u.Opaque == "" {
		return location{}, fmt.Errorf("key URI is malformed: %s", form)
	}
	query, err := url.ParseQuery(strings.ReplaceAll(u.RawQuery, ";", "&"))
	if err != nil {
		return location{}, fmt.Errorf("key URI: what follows the question mark is malformed: %s", form)
	}
	l := location{kind: apiv1.Type(strings.ToLower(u.Scheme)), opaque: u.Opaque, values: maps.Clone(u.Values)}
	maps.Copy(l.values, query)
	for name, values := range l.values {
		if len(values) != 1 {
			return location{}, fmt.Errorf("key URI: %s is there %d times", name, len(values))
		}
	}
	for _, name := range []string{"pin-value", "passphrase", "password", "pin"} {
		if l.values.Has(name) {
			return location{}, fmt.Errorf("key URI: %s would stand in configurations and process lists: keep the secret in a file and name it with %s",
				name, map[bool]string{true: "passphrase-source=file:PATH", false: "pin-source=file:PATH"}[l.kind == apiv1.SoftKMS])
		}
	}
	return l, nil
}

// only refuses attributes that the kind does not have: a misspelt one would be
// ignored otherwise.
func (l location) only(known ...string) error {
	for _, name := range slices.Sorted(maps.Keys(l.values)) {
		if !slices.Contains(known, name) {
			return fmt.Errorf("key URI: %s has no attribute %q; it knows %s", l.kind, name, strings.Join(known, ", "))
		}
	}
	return nil
}

// get returns an attribute, or "".
func (l location) get(name string) string { return l.values.Get(name) }

// path returns an attribute that is an absolute path.
func (l location) path(name string) (string, error) {
	p := l.get(name)
	if !filepath.IsAbs(p) {
		return "", fmt.Errorf("key URI: %s %q is not an absolute path", name, p)
	}
	return filepath.Clean(p), nil
}

// text prints the URI again without the named attributes.
func (l location) text(without ...string) string {
	values := maps.Clone(l.values)
	for _, name := range without {
		values.Del(name)
	}
	return uri.New(string(l.kind), values).String()
}
