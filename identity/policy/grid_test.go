// This file holds the exhaustive grid of how modes merge, checked against the
// written rule.

package policy

import (
	"fmt"
	"testing"
)

// The values of one scope: no policy, one that says nothing of the mode, and
// one for each mode.
var gridValues = []string{"none", "silent", "UNSET", "DISABLE", "PERMISSIVE", "STRICT"}

// gridMode applies the written rule: from PERMISSIVE, each scope in turn, if
// it is there, set and not UNSET.
func gridMode(scopes ...string) (mode, set string) {
	mode = "PERMISSIVE"
	for i, value := range scopes {
		switch value {
		case "none", "silent", "UNSET":
		default:
			mode, set = value, fmt.Sprint(i)
		}
	}
	return mode, set
}

func TestModesMergeAsWritten(t *testing.T) {
	paths := []string{"aval-system/d", "shop/n", "shop/w"}
	selectors := []string{"", "", backSelector}
	policies := map[string]PeerAuthentication{}
	for i, path := range paths {
		for _, value := range gridValues[1:] {
			spec := selectors[i]
			if value != "silent" {
				spec += "mtls: {mode: " + value + "}\n"
			}
			ports := []string{"none"}
			if i == 2 {
				ports = gridValues
			}
			for _, port := range ports {
				switch port {
				case "none":
				case "silent":
					spec += "portLevelMtls: {8080: {}}"
				default:
					spec += "portLevelMtls: {8080: {mode: " + port + "}}"
				}
				if spec == "" {
					spec = "{}"
				}
				policies[fmt.Sprint(i, value, port)] = pa(t, path, 1, spec)
				spec = selectors[i]
				if value != "silent" {
					spec += "mtls: {mode: " + value + "}\n"
				}
			}
		}
	}
	cells := 0
	for _, domain := range gridValues {
		for _, namespace := range gridValues {
			for _, workload := range gridValues {
				for _, port := range gridValues {
					if workload == "none" && port != "none" {
						continue // ports are of a workload's policy
					}
					cells++
					var all []PeerAuthentication
					for i, value := range []string{domain, namespace, workload} {
						key := fmt.Sprint(i, value, "none")
						if i == 2 {
							key = fmt.Sprint(i, value, port)
						}
						if value != "none" {
							all = append(all, policies[key])
						}
					}
					checkCell(t, Compile(settings, api, all, nil, 1), paths, domain, namespace, workload, port)
				}
			}
		}
	}
	if cells != 6*6*(5*6+1) {
		t.Errorf("%d cells", cells)
	}
}

func checkCell(t *testing.T, s *Set, paths []string, domain, namespace, workload, port string) {
	t.Helper()
	whole, setBy := gridMode(domain, namespace, workload)
	onPort, portSetBy := whole, setBy
	if m, by := gridMode(port); by != "" {
		onPort, portSetBy = m, "2"
	}
	for number, want := range map[uint16][2]string{9090: {whole, setBy}, 8080: {onPort, portSetBy}} {
		source := ""
		if want[1] != "" {
			source = paths[want[1][0]-'0']
		}
		mode, got := s.Mode(number)
		if mode.String() != want[0] || got != source {
			t.Errorf("%s × %s × %s × %s: port %d is %v by %q, not %s by %q", domain, namespace, workload, port, number, mode, got, want[0], source)
		}
		// The verdict follows the mode.
		for _, peer := range []string{"", web} {
			c := from(t, peer)
			c.Port = number
			d := s.Decide(c)
			refused := peer == "" && want[0] == "STRICT"
			unknown := peer == "" || want[0] == "DISABLE"
			if d.Allowed == refused || !refused && (d.Reason == ReasonPlaintextAllowed) != unknown {
				t.Errorf("%s × %s × %s × %s: port %d for %q: %+v", domain, namespace, workload, port, number, peer, d)
			}
		}
	}
}
