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
