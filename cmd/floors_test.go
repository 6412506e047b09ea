// Package cmd holds nothing but the test of the floors: which room may import
// which. The commands are below it.
package cmd

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/aval-id/aval/"

// floors say on which floor each top-level room stands. A room may import
// rooms of lower floors, and itself.
var floors = map[string]int{
	"cmd": 3,
	"ca":  2, "agent": 2, "proxy": 2, "deploy": 2,
	"identity": 1, "audit": 1, "rotation": 1,
}

// maxDepth is the longest allowed chain of imports within the house.
const maxDepth = 7

// onlyStandardLibrary are the rooms that import nothing else.
var onlyStandardLibrary = []string{"rotation"}

// forTests are the packages that only tests import.
var forTests = []string{"identitytest", "storetest", "avaltest", "netnstest", "measure", "jwttest"}

type goPackage struct {
	ImportPath string
	Imports    []string
	Doc        string
	GoFiles    []string
}

func packages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Doc,GoFiles", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]goPackage{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

func room(path string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(path, module), "/")
	return name
}

func TestNoRoomImportsUpwardOrSideways(t *testing.T) {
	for path, p := range packages(t) {
		from := room(path)
		if _, ok := floors[from]; !ok {
			t.Errorf("%s stands on no floor: name its room in the floors", path)
		}
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, module) {
				if slices.Contains(onlyStandardLibrary, from) && strings.Contains(strings.Split(imported, "/")[0], ".") {
					t.Errorf("%s imports %s: the room has the standard library alone", path, imported)
				}
				if strings.HasPrefix(imported, "k8s.io/") && from != "deploy" {
					t.Errorf("%s imports %s: only deploy may", path, imported)
				}
				continue
			}
			to := room(imported)
			if from != to && floors[to] >= floors[from] {
				t.Errorf("%s (floor %d) imports %s (floor %d)", path, floors[from], imported, floors[to])
			}
			if slices.Contains(forTests, imported[strings.LastIndex(imported, "/")+1:]) {
				t.Errorf("%s imports %s, which is for tests", path, imported)
			}
		}
	}
}

func TestImportDepthIsBounded(t *testing.T) {
	all := packages(t)
	depths := map[string]int{}
	var depth func(path string) int
	depth = func(path string) int {
		if d, ok := depths[path]; ok {
			return d
		}
		d := 0
		for _, imported := range all[path].Imports {
			if strings.HasPrefix(imported, module) {
				d = max(d, depth(imported))
			}
		}
		depths[path] = d + 1
		return d + 1
	}
	for path := range all {
		if d := depth(path); d > maxDepth {
			t.Errorf("%s is %d imports deep, more than %d", path, d, maxDepth)
		}
	}
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	forbidden := []string{"common", "util", "utils", "pkg", "helpers", "types"}
	for path, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no doc comment", path)
		}
		if name := path[strings.LastIndex(path, "/")+1:]; slices.Contains(forbidden, name) {
			t.Errorf("%s is named after no idea", path)
		}
	}
}
