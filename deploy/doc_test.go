// Package deploy holds what an installation needs beside the binary: systemd
// units and the task pages. This file holds the tests that keep them true.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
