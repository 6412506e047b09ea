// This file holds the tests of layering, strictness and contradiction.

package settings

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

type sample struct {
	Name  string        `json:"name" flag:"name" usage:"a name"`
	TTL   time.Duration `json:"ttl" flag:"ttl" usage:"a lifetime"`
	Limit int           `json:"limit" flag:"limit" usage:"a number"`
	Quiet bool          `json:"quiet" flag:"quiet" usage:"a switch"`
	Token string        `json:"joinToken" flag:"join-token" env:"JOIN_TOKEN" exclusive:"token" secret:"true" usage:"a secret"`
	File  string        `json:"joinTokenFile" flag:"join-token-file" exclusive:"token" usage:"a file with a secret"`
	Deep  struct {
		Default string `json:"default" flag:"deep-default" usage:"nested"`
	} `json:"deep"`
}

func load(t *testing.T, into *sample, file string, environ, args []string) error {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	s := Bind(flags, into, "APP")
	if file != "" {
		path := filepath.Join(t.TempDir(), "app.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	return s.Load(environ)
}

func TestFlagsBeatEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	for mask := range 8 {
		got := sample{Name: "default"}
		want, file, environ, args := "default", "", []string(nil), []string(nil)
		if mask&1 != 0 {
			want, file = "file", "name: file\n"
		}
		if mask&2 != 0 {
			want, environ = "env", []string{"APP_NAME=env"}
		}
		if mask&4 != 0 {
			want, args = "flag", []string{"--name", "flag"}
		}
		if err := load(t, &got, file, environ, args); err != nil {
			t.Fatal(err)
		}
		if got.Name != want {
			t.Errorf("layers %03b: name is %q, want %q", mask, got.Name, want)
		}
	}
}

func TestEveryTypeInEveryLayer(t *testing.T) {
	want := sample{TTL: time.Minute, Limit: 7, Quiet: true}
	want.Deep.Default = "deny"
	for name, layer := range map[string]struct {
		file          string
		environ, args []string
	}{
		"file":  {file: "ttl: 1m\nlimit: 7\nquiet: true\ndeep: {default: deny}\n"},
		"env":   {environ: []string{"APP_TTL=1m", "APP_LIMIT=7", "APP_QUIET=true", "APP_DEEP_DEFAULT=deny"}},
		"flags": {args: []string{"--ttl", "1m", "--limit=7", "--quiet", "--deep-default", "deny"}},
	} {
		var got sample
		if err := load(t, &got, layer.file, layer.environ, layer.args); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestUnknownKeysAreRefusedWithLineAndSuggestion(t *testing.T) {
	var got sample
	err := load(t, &got, "name: x\nlimitt: 3\n", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "app.yaml:2") || !strings.Contains(err.Error(), "did you mean limit?") {
		t.Errorf("file: %v", err)
	}
	err = load(t, &got, "", []string{"APP_LIMITT=3"}, nil)
	if err == nil || !strings.Contains(err.Error(), "did you mean APP_LIMIT?") {
		t.Errorf("environment: %v", err)
	}
}

func TestServiceLinksOfKubernetesAreNotSettings(t *testing.T) {
	var got sample
	environ := []string{"APP_SERVICE_HOST=10.0.0.1", "APP_SERVICE_PORT=443", "APP_SERVICE_PORT_GRPC=443",
		"APP_PORT=tcp://10.0.0.1:443", "APP_PORT_443_TCP_ADDR=10.0.0.1"}
	if err := load(t, &got, "", environ, nil); err != nil {
		t.Error(err)
	}
}

// Every combination of the two settings of an exclusive group over the three
// layers: two in one layer contradict each other, else the highest wins alone.
func TestExclusiveSettingsOverAllCombinations(t *testing.T) {
	for mask := range 64 {
		file, environ, args := "", []string(nil), []string(nil)
		contradiction := false
		want := [2]string{}
		for l := range 3 {
			bits := mask >> (2 * l) & 3
			contradiction = contradiction || bits == 3
			if bits == 0 {
				continue
			}
			want = [2]string{}
			for i, name := range []string{"joinToken", "joinTokenFile"} {
				if bits&(1<<i) == 0 {
					continue
				}
				value := fmt.Sprintf("v%d", l)
				want[i] = value
				flag := []string{"join-token", "join-token-file"}[i]
				switch layer(l) {
				case fromFile:
					file += name + ": " + value + "\n"
				case fromEnv:
					environ = append(environ, "APP_"+strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))+"="+value)
				case fromFlag:
					args = append(args, "--"+flag, value)
				}
			}
		}
		var got sample
		err := load(t, &got, file, environ, args)
		switch {
		case contradiction && err == nil:
			t.Errorf("combination %06b: no error", mask)
		case contradiction && strings.Contains(err.Error(), "v0"):
			t.Errorf("combination %06b: a secret is in %q", mask, err)
		case !contradiction && err != nil:
			t.Errorf("combination %06b: %v", mask, err)
		case !contradiction && (got.Token != want[0] || got.File != want[1]):
			t.Errorf("combination %06b: token %q file %q, want %q", mask, got.Token, got.File, want)
		}
	}
}

func TestTwoNamesOfOneVariableMustAgree(t *testing.T) {
	var got sample
	if err := load(t, &got, "", []string{"JOIN_TOKEN=a", "APP_JOIN_TOKEN=a"}, nil); err != nil || got.Token != "a" {
		t.Errorf("the same: %v, %q", err, got.Token)
	}
	if err := load(t, &got, "", []string{"JOIN_TOKEN=a", "APP_JOIN_TOKEN=b"}, nil); err == nil {
		t.Error("differing variables were accepted")
	}
}

func TestABadValueNamesItsSource(t *testing.T) {
	var got sample
	err := load(t, &got, "", []string{"APP_TTL=soon"}, nil)
	if err == nil || !strings.Contains(err.Error(), "APP_TTL") || !strings.Contains(err.Error(), `"soon"`) {
		t.Errorf("environment: %v", err)
	}
	if err := load(t, &got, "", nil, []string{"--limit", "many"}); err == nil {
		t.Error("a bad flag was accepted")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("name: x\nttl: 4h\n")
	f.Add("{\"limit\": 3}")
	f.Add("deep: {default: 1}\n")
	f.Add("a: &a [*a]\n")
	f.Add("joinToken: a\njoinTokenFile: b\n")
	f.Fuzz(func(t *testing.T, text string) {
		var got sample
		s := Bind(pflag.NewFlagSet("fuzz", pflag.ContinueOnError), &got, "APP")
		if err := s.decode("fuzz.yaml", []byte(text)); err != nil {
			return
		}
		if got.Token != "" && got.File != "" {
			t.Errorf("%q chose both of an exclusive group", text)
		}
	})
}
