// This file tests the strict decoder as configuration files use it.

package document

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

type inner struct {
	Listen netip.AddrPort `json:"listen"`
	Wait   time.Duration  `json:"wait"`
}

type embedded struct {
	Shared string `json:"shared"`
}

type config struct {
	embedded
	Name     string            `json:"name"`
	Count    uint16            `json:"count"`
	Signed   int8              `json:"signed"`
	Ratio    float64           `json:"ratio"`
	On       bool              `json:"on"`
	Text     Scalar            `json:"text"`
	Match    map[string]Values `json:"match"`
	Inbound  []inner           `json:"inbound"`
	Pointer  *inner            `json:"pointer"`
	Free     any               `json:"free"`
	Later    Unsupported       `json:"later"`
	Labels   map[string]string `json:"labels"`
	internal string            // not reachable from a file
}

func TestDecodeFillsEveryType(t *testing.T) {
	c := config{Name: "kept", internal: "kept"}
	err := Decode("c.yaml", []byte(`
shared: s
count: 8080
signed: -128
ratio: 0.5
"on": true
text: 1000
match: {unix.uid: 1000, unix.path: [/a, "/b"], flag: True}
inbound: [{listen: "127.0.0.1:1", wait: 100ms}]
pointer: {wait: 4h}
free: {a: [1, x, true]}
`), &c)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "kept" || c.internal != "kept" || c.Shared != "s" || c.Count != 8080 || c.Signed != -128 || c.Ratio != 0.5 || !c.On || c.Text != "1000" {
		t.Errorf("%+v", c)
	}
	if c.Match["unix.uid"][0] != "1000" || len(c.Match["unix.path"]) != 2 || c.Match["flag"][0] != "true" {
		t.Errorf("%+v", c.Match)
	}
	if c.Inbound[0].Listen.Port() != 1 || c.Inbound[0].Wait != 100*time.Millisecond || c.Pointer.Wait != 4*time.Hour {
		t.Errorf("%+v %+v", c.Inbound, c.Pointer)
	}
	if err := Decode("empty.yaml", []byte("# nothing\n"), &c); err != nil || c.Name != "kept" {
		t.Error(err)
	}
}

func TestDecodeNamesEveryFault(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"nmae: x", "c.yaml:1: nmae: unknown field; allowed: shared, name, count, signed, ratio, on, text, match, inbound, pointer, free, labels; did you mean name?"},
		{"internal: x", "unknown field"},
		{"name: 5", "c.yaml:1: name: wrong type; found number 5; allowed: a string; quote it"},
		{"count: -1", "count: is not a number that fits; found number -1; allowed: a whole number from 0 to 65535"},
		{"count: 65536", "is not a number that fits"},
		{"count: 1.5", "is not a number that fits"},
		{"count: '1'", "wrong type"},
		{"signed: 128", "a whole number of at most 7 bits"},
		{"on: 1", "true or false"},
		{"text: [a]", "a string or a number"},
		{"match: {a: {b: c}}", "c.yaml:1: match.a: wrong type"},
		{"match: {a: [b, [c]]}", "match.a[1]: wrong type"},
		{"match: {a: [b, ~]}", "match.a[1]: has no value"},
		{"labels: {a: ~}", "labels.a: has no value"},
		{"inbound: {}", "inbound: wrong type; found a mapping; allowed: a list"},
		{"inbound:\n- wait: 1\n- wait: soon\n  lisen: x", "c.yaml:3: inbound[1].wait: is not a duration; found \"soon\"; allowed: a duration such as 4h or 30s"},
		{"inbound:\n- wait: 1\n- wait: soon\n  lisen: x", "c.yaml:4: inbound[1].lisen: unknown field; allowed: listen, wait; did you mean inbound[1].listen?"},
		{"inbound: [{listen: nowhere}]", "inbound[0].listen: "},
		{"inbound: [{listen: 7}]", "inbound[0].listen: wrong type"},
		{"pointer:", "pointer: has no value; found nothing; allowed: a mapping; remove the field or give it a value"},
		{"later: 1", "c.yaml:1: later: is not supported by this version"},
		{"later:", "later: is not supported by this version"},
		{"a: 1\n---\nb: 1", "c.yaml:3: has 2 documents instead of one"},
		{"a: [", "not valid YAML"},
	} {
		var into config
		err := Decode("c.yaml", []byte(c.text), &into)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}
