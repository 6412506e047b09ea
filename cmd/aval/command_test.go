// This file holds the tests of the command line itself: help, usage, exit
// codes, forms of output.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity/document"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// execute runs a command line in this process.
func execute(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, streams{in: strings.NewReader(stdin), out: &out, err: &errs})
	return code, out.String(), errs.String()
}

func everyCommand(t *testing.T) []*cobra.Command {
	t.Helper()
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		all = append(all, cmd)
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	walk((&cli{}).root())
	if len(all) < 20 {
		t.Fatalf("only %d commands", len(all))
	}
	return all
}

func TestEveryCommandHasAShortTextAndAnExample(t *testing.T) {
	for _, cmd := range everyCommand(t) {
		if cmd.Short == "" {
			t.Errorf("%s has no short text", cmd.CommandPath())
		}
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
	}
}

func TestEveryExampleUsesFlagsThatExist(t *testing.T) {
	for _, cmd := range everyCommand(t) {
		if cmd.HasSubCommands() || cmd.DisableFlagParsing {
			continue
		}
		for line := range strings.Lines(cmd.Example) {
			for word := range strings.FieldsSeq(line) {
				name, ok := strings.CutPrefix(word, "--")
				if !ok {
					continue
				}
				name, _, _ = strings.Cut(name, "=")
				if cmd.Flags().Lookup(name) == nil && name != "help" {
					t.Errorf("%s: the example has --%s, which is not a flag of it", cmd.CommandPath(), name)
				}
			}
		}
	}
}

func TestHelpOfEveryCommandExitsZero(t *testing.T) {
	for _, cmd := range everyCommand(t) {
		if cmd.Hidden {
			continue
		}
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		code, out, errs := execute(t, "", args...)
		if code != exitDone || out == "" {
			t.Errorf("%v: exit %d, %q", args, code, errs)
		}
	}
}

func TestFaultsOfUsageExitWithTwo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	for _, args := range [][]string{
		{"serve"},
		{"server", "--no-such-flag"},
		{"server", "--data-dir", t.TempDir()},
		{"server", "--trust-domain", "Not A Domain", "--data-dir", t.TempDir()},
		{"server", "--trust-domain", "example.org", "--authorization-default", "maybe"},
		{"server", "--trust-domain", "example.org", "--log-format", "xml"},
		{"server", "--min-ttl", "soon"},
		{"agent", "--socket", "x"},
		{"agent", "--server", "a:1", "--join-token", "a", "--join-token-file", "b"},
		{"agent", "--server", "a:1", "--bundle-hash", "a", "--bundle-file", "b"},
		{"proxy"},
		{"proxy", "--config", filepath.Join(t.TempDir(), "absent.yaml")},
		{"token"},
		{"token", "creat"},
		{"token", "create", "--ttl", "0s"},
		{"token", "create", "--attribute", "zone"},
		{"token", "create", "-o", "xml"},
		{"apply"},
		{"apply", "-f", filepath.Join(t.TempDir(), "absent.yaml")},
		{"apply", "-f", t.TempDir()},
		{"apply", "web.yaml"},
		{"get"},
		{"get", "registrationz", "--admin-socket", socket},
		{"delete", "registration"},
		{"delete", "registration", "web", "-f", "web.yaml"},
		{"node", "evict"},
		{"explain", "pid"},
		{"explain", "pid", "x"},
		{"audit", "verify"},
		{"audit", "verify", "--data-dir", "a", "--log", "b"},
		{"audit", "verify", "--log", filepath.Join(t.TempDir(), "absent")},
		{"audit", "export", "--kind", "issuanze"},
		{"audit", "export", "--since", "soon"},
		{"audit", "export", "--log", "other"},
		{"audit", "show", "-1"},
		{"backup"},
		{"restore", "--data-dir", "x"},
		{"completion", "tcsh"},
		{"version", "more"},
	} {
		code, _, errs := execute(t, "", args...)
		if code != exitUsage {
			t.Errorf("%v: exit %d, %q", args, code, errs)
		}
		if !strings.HasPrefix(errs, "error: ") {
			t.Errorf("%v: %q does not begin with error:", args, errs)
		}
	}
}

func TestAnAbsentServerOrAgentExitsWithFour(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	for _, args := range [][]string{
		{"get", "registrations", "--admin-socket", socket},
		{"token", "create", "--admin-socket", socket},
		{"node", "list", "--admin-socket", socket},
		{"audit", "tail", "--admin-socket", socket},
		{"svid", "fetch", "--socket", socket},
		{"svid", "fetch", "--socket", "unix://" + socket},
		{"explain", "pid", "1", "--socket", socket},
	} {
		code, _, errs := execute(t, "", args...)
		if code != exitUnreachable || !strings.Contains(errs, "hint: ") {
			t.Errorf("%v: exit %d, %q", args, code, errs)
		}
	}
}

func TestErrorsHaveTheirExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("unknown command"), exitUsage},
		{started(errors.New("it broke")), exitNegative},
		{usage(errors.New("x")), exitUsage},
		{negative(), exitNegative},
		{started(document.Errors{{Reason: "x"}}), exitInvalid},
		{started(fmt.Errorf("wrapped: %w", called("x", status.Error(codes.InvalidArgument, "x")))), exitInvalid},
		{called("x", status.Error(codes.Unavailable, "x")), exitUnreachable},
		{called("x", status.Error(codes.DeadlineExceeded, "x")), exitUnreachable},
		{called("x", status.Error(codes.PermissionDenied, "x")), exitDenied},
		{called("x", status.Error(codes.Unauthenticated, "x")), exitDenied},
		{called("x", status.Error(codes.NotFound, "x")), exitNegative},
		{called("x", status.Error(codes.Internal, "x")), exitNegative},
		{started(context.DeadlineExceeded), exitUnreachable},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%v: exit %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestEveryFaultOfEveryFileIsNamedBeforeAnythingIsSent(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", "apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: a}\nspec:\n  id: /a\n  workloud: {unix.uid: 1}\n")
	write(t, dir, "sub/b.yml", "apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: b}\nspec:\n  id: /b\n  workload: {unix.uidd: 1}\n  ttl: soon\n")
	code, out, errs := execute(t, "", "apply", "-f", dir, "--admin-socket", filepath.Join(dir, "none.sock"))
	if code != exitInvalid || out != "" {
		t.Errorf("exit %d, %q", code, out)
	}
	for _, want := range []string{"a.yaml:6", "workloud", "did you mean", "b.yml:7", "spec.ttl"} {
		if !strings.Contains(errs, want) {
			t.Errorf("%q is not in:\n%s", want, errs)
		}
	}
}

func TestADocumentDeclaredTwiceIsRefused(t *testing.T) {
	doc := "apiVersion: aval.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n"
	code, _, errs := execute(t, doc+"---\n"+doc, "apply", "-f", "-", "--admin-socket", "/none")
	if code != exitInvalid || !strings.Contains(errs, "declared twice") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMomentsAreDurationsBackOrTimes(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                     {},
		"24h":                  now.Add(-24 * time.Hour),
		"7d":                   now.Add(-7 * 24 * time.Hour),
		"90s":                  now.Add(-90 * time.Second),
		"2026-01-02T15:04:05Z": time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
	} {
		if got, err := moment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1h", "soon", "2026-01-02", "99999999d"} {
		if _, err := moment(text, now); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestYAMLKeepsOrderAndTypesOfJSON(t *testing.T) {
	var b bytes.Buffer
	v := struct {
		Zone  string   `json:"zone"`
		Items []string `json:"items"`
		UID   string   `json:"uid"`
		On    string   `json:"on"`
		N     int      `json:"n"`
	}{"eu", []string{"a", "b"}, "1000", "true", 3}
	if err := printYAML(&b, v); err != nil {
		t.Fatal(err)
	}
	want := "zone: eu\nitems:\n  - a\n  - b\nuid: \"1000\"\non: \"true\"\nn: 3\n"
	if b.String() != want {
		t.Errorf("got:\n%s", b.String())
	}
}

func TestAnEmptyListIsAList(t *testing.T) {
	var b bytes.Buffer
	if err := printJSON(&b, items[string](nil)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(b.String()), ""); got != `{"items":[]}` {
		t.Errorf("got %s", got)
	}
}

func TestVersionAndCompletion(t *testing.T) {
	if code, out, _ := execute(t, "", "version", "-o", "json"); code != exitDone || !strings.Contains(out, `"go": "go1.`) {
		t.Errorf("exit %d, %s", code, out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, out, _ := execute(t, "", "completion", shell); code != exitDone || !strings.Contains(out, "aval") {
			t.Errorf("%s: exit %d", shell, code)
		}
	}
	if code, out, _ := execute(t, "", "__complete", "apply", "--from", ""); code != exitDone || !strings.Contains(out, "istio") {
		t.Errorf("code %d, output %q", code, out)
	}
	if code, out, _ := execute(t, "", "__complete", "get", ""); code != exitDone || !strings.Contains(out, "registrations") {
		t.Errorf("completion of kinds: exit %d, %s", code, out)
	}
}

func TestNoColorIsHonoured(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if colorTerminal(f, nil) || colorTerminal(f, []string{"NO_COLOR=1"}) {
		t.Error("a file that is no terminal gets colours")
	}
}
