// Package deploy holds what an installation needs beside the binary: systemd
// units and the task pages. This file holds the tests that keep them true.
package deploy

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// exposure is the most that `systemd-analyze security` may find for a unit;
// lower is better, 10 is unconfined.
var exposure = map[string]float64{
	"aval-server.service": 1.5,
	"aval-agent.service":  2.8,
	"aval-proxy@.service": 1.5,
}

func TestUnitsStayConfined(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed (package systemd)")
	}
	overall := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)
	for unit, limit := range exposure {
		t.Run(unit, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("systemd", unit))
			if err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(t.TempDir(), strings.Replace(unit, "@.", "@web.", 1))
			if err := os.WriteFile(copied, text, 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("systemd-analyze", "security", "--offline=true", copied).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			found := overall.FindSubmatch(out)
			if found == nil {
				t.Fatalf("no exposure in\n%s", out)
			}
			if got, err := strconv.ParseFloat(string(found[1]), 64); err != nil || got > limit {
				t.Fatalf("exposure %s, more than %v (%v)", found[1], limit, err)
			}
		})
	}
}

// TestUnitsAreUnderstoodWhole: what systemd does not know of a unit it passes
// over with a warning, and a misspelt confinement confines nothing.
func TestUnitsAreUnderstoodWhole(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed (package systemd)")
	}
	units, err := filepath.Glob("systemd/*.service")
	if err != nil || len(units) != len(exposure) {
		t.Fatal(units, err)
	}
	program := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/aval `)
	dir := t.TempDir()
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if !program.Match(text) {
			t.Errorf("%s starts something else than the binary", unit)
		}
		copied := filepath.Join(dir, strings.Replace(filepath.Base(unit), "@.", "@web.", 1))
		if err := os.WriteFile(copied, program.ReplaceAll(text, []byte("ExecStart=/bin/true ")), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copied).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

func TestLinksOfTheDocsLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md"} {
		pages = append(pages, filepath.Join("..", name))
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}

// TestEveryMetricIsInTheTable: an operator finds each metric of the code in
// the table, and the table names none that is gone.
func TestEveryMetricIsInTheTable(t *testing.T) {
	page, err := os.ReadFile("docs/operation.md")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for row := range strings.Lines(string(page)) {
		if first, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|"); strings.HasPrefix(row, "| `aval_") {
			told = append(told, regexp.MustCompile("aval_[a-z_]+").FindAllString(first, -1)...)
		}
	}
	made := regexp.MustCompile(`"(aval_(?:server|agent|proxy)_[a-z_]+)"`)
	var coded []string
	for _, room := range []string{"ca", "agent", "proxy"} {
		err := filepath.WalkDir(filepath.Join("..", room), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range made.FindAllStringSubmatch(string(text), -1) {
				coded = append(coded, m[1])
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range coded {
		if !slices.Contains(told, name) {
			t.Errorf("docs/operation.md doesn't tell of %s", name)
		}
	}
	for _, name := range told {
		if !slices.Contains(coded, name) {
			t.Errorf("docs/operation.md tells of %s, which no code makes", name)
		}
	}
}

// TestEveryFieldOfTheProxysFileIsInItsPages: what the file takes can be read
// about.
func TestEveryFieldOfTheProxysFileIsInItsPages(t *testing.T) {
	var pages strings.Builder
	for _, name := range []string{"docs/proxy.md", "docs/transparent.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages.WriteString(string(text))
	}
	field := regexp.MustCompile("(?m)^\\t.*`json:\"([a-zA-Z]+)\"`")
	for _, name := range []string{"config.go", "transparent.go", "destination.go", "announce.go", "requestrecord.go", "request/config.go"} {
		text, err := os.ReadFile(filepath.Join("..", "proxy", name))
		if err != nil {
			t.Fatal(err)
		}
		found := field.FindAllSubmatch(text, -1)
		if len(found) == 0 && name != "destination.go" && name != "requestrecord.go" {
			t.Errorf("proxy/%s has no fields: the list of files is stale", name)
		}
		for _, m := range found {
			if !regexp.MustCompile(`\b` + string(m[1]) + `\b`).MatchString(pages.String()) {
				t.Errorf("neither proxy.md nor transparent.md tells of %s (proxy/%s)", m[1], name)
			}
		}
	}
}
