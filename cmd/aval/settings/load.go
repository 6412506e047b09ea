// This file holds Load: the layers put together, in order.

package settings

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity/document"
)

// Layer says where a setting came from.
type layer uint8

const (
	fromFile layer = iota
	fromEnv
	fromFlag
)

func (l layer) String() string {
	return [...]string{"file", "environment", "flags"}[l]
}

// Load fills the bound struct: the file that --config (or PREFIX_CONFIG)
// names, then the environment (as os.Environ returns it), then flags. It may
// be called once, after the flags are parsed. Unknown keys and variables are
// refused with the nearest known name, and so are two settings of one
// exclusive group in one layer.
func (s *Set) Load(environ []string) error {
	env := s.environment(environ)
	if err := s.unknown(env); err != nil {
		return err
	}
	path := s.config
	if path == "" {
		path = env[s.prefix+"_CONFIG"]
	}
	if path != "" {
		if err := s.file(path); err != nil {
			return err
		}
	}
	if err := s.variables(env); err != nil {
		return err
	}
	given := map[*field]string{}
	for _, f := range s.fields {
		if f.given != nil {
			given[f] = *f.given
		}
	}
	return s.apply(fromFlag, given)
}

// environment keeps the variables that may concern the command. An empty
// variable counts as absent.
func (s *Set) environment(environ []string) map[string]string {
	known := map[string]bool{}
	for _, f := range s.fields {
		for _, name := range f.env {
			known[name] = true
		}
	}
	out := map[string]string{}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if value != "" && (known[name] || strings.HasPrefix(name, s.prefix+"_")) {
			out[name] = value
		}
	}
	return out
}

// serviceLink matches the variables that Kubernetes adds for a service whose
// name begins like the prefix; they are not ours.
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

func (s *Set) unknown(env map[string]string) error {
	var known []string
	for _, f := range s.fields {
		known = append(known, f.env...)
	}
	known = append(known, s.prefix+"_CONFIG")
	var names []string
	for name := range env {
		if !slices.Contains(known, name) && !serviceLink.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	if near := document.Nearest(names[0], known); near != "" {
		return fmt.Errorf("environment: %s is not a known setting; did you mean %s?", names[0], near)
	}
	return fmt.Errorf("environment: %s is not a known setting", names[0])
}

// file decodes the file over the defaults and finds out which settings it
// wrote by decoding it a second time over none.
func (s *Set) file(path string) error {
	data, err := readFile(path)
	if err != nil {
		return err
	}
	return s.decode(path, data)
}

// decode is file without the disk.
func (s *Set) decode(path string, data []byte) error {
	if err := document.Decode(path, data, s.target.Addr().Interface()); err != nil {
		return err
	}
	written := map[string]any{}
	if err := document.Decode(path, data, &written); err != nil {
		return err
	}
	chosen := map[string]*field{}
	for _, f := range s.fields {
		if !has(written, strings.Split(f.key, ".")) {
			continue
		}
		if other := chosen[f.exclusive]; f.exclusive != "" && other != nil {
			return fmt.Errorf("%s: %s and %s exclude each other", path, other.key, f.key)
		}
		chosen[f.exclusive] = f
	}
	return nil
}

func has(m map[string]any, path []string) bool {
	v, ok := m[path[0]]
	if !ok || len(path) == 1 {
		return ok
	}
	inner, ok := v.(map[string]any)
	return ok && has(inner, path[1:])
}

// variables applies the environment. Two names of one setting must agree.
func (s *Set) variables(env map[string]string) error {
	values := map[*field]string{}
	for _, f := range s.fields {
		for _, name := range f.env {
			value, ok := env[name]
			if !ok {
				continue
			}
			if earlier, ok := values[f]; ok && earlier != value {
				return fmt.Errorf("environment: %s and %s differ", f.env[0], name)
			}
			values[f] = value
		}
	}
	return s.apply(fromEnv, values)
}

// apply puts one layer's texts over what is there.
func (s *Set) apply(l layer, values map[*field]string) error {
	chosen := map[string]*field{}
	for _, f := range s.fields {
		text, ok := values[f]
		if !ok {
			continue
		}
		if f.exclusive != "" {
			if other := chosen[f.exclusive]; other != nil {
				return fmt.Errorf("%s: %s and %s exclude each other", l, other.name(l), f.name(l))
			}
			chosen[f.exclusive] = f
			s.drop(f.exclusive)
		}
		if err := parse(f.value, text); err != nil {
			if f.secret {
				return fmt.Errorf("%s: %s %w", l, f.name(l), err)
			}
			return fmt.Errorf("%s: %s: %q %w", l, f.name(l), text, err)
		}
	}
	return nil
}

// drop clears what lower layers chose in a group.
func (s *Set) drop(group string) {
	for _, f := range s.fields {
		if f.exclusive == group {
			f.value.Set(reflect.Zero(f.value.Type()))
		}
	}
}

func (f *field) name(l layer) string {
	switch l {
	case fromFile:
		return f.key
	case fromEnv:
		return f.env[0]
	}
	return "--" + f.flag
}

// maxFileBytes bounds a configuration file.
const maxFileBytes = 1 << 20

func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if st.Size() > maxFileBytes {
		return nil, fmt.Errorf("configuration %s: %d bytes are more than %d", path, st.Size(), maxFileBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return data, nil
}

// Keys returns each setting as "key flag variable", in the order of
// declaration, for help texts and tests.
func (s *Set) Keys() [][3]string {
	out := make([][3]string, 0, len(s.fields))
	for _, f := range s.fields {
		out = append(out, [3]string{f.key, "--" + f.flag, f.env[0]})
	}
	return out
}
