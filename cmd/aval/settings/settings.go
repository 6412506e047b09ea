// Package settings layers the configuration of a long-running command: flags
// over environment over file over defaults. A struct with tags declares each
// setting once; the flag, the variable and the key of the file follow from
// it, so that no layer knows a setting that another lacks.
//
// It owns names, precedence and the refusal of what is unknown or
// contradictory. What a value means is checked by the part that it is for.
// It belongs to the command's floor and imports the ground floor alone.
//
// # Tags
//
//	json:"trustDomain"     the key of the YAML file
//	flag:"trust-domain"    the flag; the variable is PREFIX_TRUST_DOMAIN
//	usage:"..."            the help text
//	env:"AVAL_JOIN_TOKEN"  a further variable that means the same
//	exclusive:"token"      at most one setting of this group per layer; a
//	                       higher layer's choice drops those of lower layers
//	secret:"true"          the value never appears in a message
//
// A field that is a struct without a flag tag nests: its fields are keys
// below its own. An embedded struct's fields stand beside the others.
package settings

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Set is the settings of one command, bound to its flags. It serves one
// command line.
type Set struct {
	prefix string
	target reflect.Value // the struct, holding the defaults until Load
	fields []*field
	flags  *pflag.FlagSet
	config string
}

// field is one setting.
type field struct {
	key       string // dotted path in the file
	flag      string
	env       []string
	exclusive string
	secret    bool
	value     reflect.Value
	given     *string // by flag
}

// Bind declares a flag for each setting of the struct that into points to,
// and --config. The struct's content is the defaults. The prefix starts the
// names of variables, such as AVAL_SERVER. A struct that is declared wrongly
// panics: that is a fault of the program.
func Bind(flags *pflag.FlagSet, into any, prefix string) *Set {
	s := &Set{prefix: prefix, target: reflect.ValueOf(into).Elem(), flags: flags}
	flags.StringVar(&s.config, "config", "", fmt.Sprintf("strict YAML file with these settings (env %s_CONFIG)", prefix))
	s.bind(s.target, "")
	return s
}

func (s *Set) bind(v reflect.Value, path string) {
	for sf, fv := range v.Fields() {
		key := sf.Tag.Get("json")
		if sf.Anonymous && key == "" {
			s.bind(fv, path)
			continue
		}
		if key == "" {
			panic("settings: field " + sf.Name + " has no json tag")
		}
		if path != "" {
			key = path + "." + key
		}
		name := sf.Tag.Get("flag")
		if name == "" && fv.Kind() == reflect.Struct {
			s.bind(fv, key)
			continue
		}
		f := &field{
			key: key, flag: name, value: fv,
			env:       []string{s.prefix + "_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))},
			exclusive: sf.Tag.Get("exclusive"),
			secret:    sf.Tag.Get("secret") != "",
		}
		if extra := sf.Tag.Get("env"); extra != "" {
			f.env = append(f.env, extra)
		}
		s.fields = append(s.fields, f)
		s.flags.Var(&flagValue{f}, name, sf.Tag.Get("usage"))
		if fv.Kind() == reflect.Bool {
			s.flags.Lookup(name).NoOptDefVal = "true"
		}
	}
}

// flagValue keeps what a flag was given until Load puts the layers together.
type flagValue struct{ f *field }

// String returns the default, or what was given.
func (v *flagValue) String() string {
	if v.f == nil {
		return ""
	}
	if v.f.given != nil {
		return *v.f.given
	}
	return print(v.f.value)
}

// Set checks and keeps a value.
func (v *flagValue) Set(text string) error {
	probe := reflect.New(v.f.value.Type()).Elem()
	if err := parse(probe, text); err != nil {
		return err
	}
	v.f.given = &text
	return nil
}

// Type names the type in the help text.
func (v *flagValue) Type() string {
	if v.f.value.Type() == reflect.TypeFor[time.Duration]() {
		return "duration"
	}
	return v.f.value.Kind().String()
}

// parse reads a value as flags and variables write it.
func parse(v reflect.Value, text string) error {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("is not a duration such as 4h or 30s")
		}
		v.SetInt(int64(d))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("is neither true nor false")
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("is not a whole number that fits")
		}
		v.SetInt(n)
	default:
		panic("settings: a field of type " + v.Type().String())
	}
	return nil
}

func print(v reflect.Value) string {
	if v.IsZero() {
		return ""
	}
	return fmt.Sprint(v.Interface())
}
