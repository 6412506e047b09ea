// This file holds Secret: where a PIN, a passphrase or a token is found. The
// secret itself never stands in a configuration, a command line or a URI.

package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"
)

// maxSecret bounds what is read as a secret.
const maxSecret = 64 << 10

// Secret names where a secret is found:
//
//	file:/etc/aval/pin   a file that its owner alone may read
//	credential:NAME      a systemd credential, $CREDENTIALS_DIRECTORY/NAME
//	env:NAME             an environment variable
//
// The zero value names none.
type Secret struct{ kind, name string }

// ParseSecret parses the text form of a Secret. An error never repeats the
// text, which may be the secret itself.
func ParseSecret(text string) (Secret, error) {
	if text == "" {
		return Secret{}, nil
	}
	const form = "want file:/PATH, credential:NAME (of systemd) or env:NAME"
	if filepath.IsAbs(text) {
		text = "file:" + text
	}
	kind, name, _ := strings.Cut(text, ":")
	s := Secret{kind, name}
	switch kind {
	case "file":
		if s.name = strings.TrimPrefix(name, "//"); !filepath.IsAbs(s.name) {
			return Secret{}, fmt.Errorf("source of a secret: the path is not absolute: %s", form)
		}
		s.name = filepath.Clean(s.name)
	case "credential":
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return Secret{}, fmt.Errorf("source of a secret: a credential is named by one file name: %s", form)
		}
	case "env":
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return Secret{}, fmt.Errorf("source of a secret: an environment variable has a name: %s", form)
		}
	default:
		return Secret{}, fmt.Errorf("source of a secret: %s", form)
	}
	return s, nil
}

// String prints where the secret is found.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return s.kind + ":" + s.name
}

// IsZero reports whether s names nothing.
func (s Secret) IsZero() bool { return s == Secret{} }

// Read returns the secret without the white space that ends it. It is read
// each time, so that a file that was replaced counts.
func (s Secret) Read() (string, error) {
	var text string
	switch s.kind {
	case "env":
		text = os.Getenv(s.name)
	case "file":
		if err := CheckSecretFile(s.name); err != nil {
			return "", fmt.Errorf("secret %s: %w", s, err)
		}
		raw, err := readBounded(s.name)
		if err != nil {
			return "", fmt.Errorf("secret %s: %w", s, err)
		}
		text = raw
	case "credential":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", fmt.Errorf("secret %s: CREDENTIALS_DIRECTORY is not set: load it with LoadCredential= in the systemd unit", s)
		}
		raw, err := readBounded(filepath.Join(dir, s.name))
		if err != nil {
			return "", fmt.Errorf("secret %s: %w", s, err)
		}
		text = raw
	default:
		return "", errors.New("no source of the secret is named")
	}
	if text = strings.TrimRightFunc(text, unicode.IsSpace); text == "" {
		return "", fmt.Errorf("secret %s is empty", s)
	}
	return text, nil
}

func readBounded(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, maxSecret+1)
	n := 0
	for n < len(buf) {
		m, err := f.Read(buf[n:])
		n += m
		if err != nil {
			break
		}
	}
	if n > maxSecret {
		return "", fmt.Errorf("more than %d bytes", maxSecret)
	}
	return string(buf[:n]), nil
}
