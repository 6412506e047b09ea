// This file holds the tests of denials on the wire.

package wire

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/aval-id/aval/identity"
)

func TestDenialsSurviveTheWire(t *testing.T) {
	id, err := identity.ParseID("spiffe://example.org/a")
	if err != nil {
		t.Fatal(err)
	}
	for _, ids := range []map[identity.ID]time.Time{nil, {id: {}}, {id: time.UnixMilli(1_700_000_000_000)}} {
		d := identity.NewDenials([]string{"0a", "0b"}, ids, []string{"cc"})
		back, err := ToDenials(FromDenials(d))
		if err != nil || back.Hash() != d.Hash() {
			t.Fatalf("%v: %v, %v", ids, back, err)
		}
	}
}

func TestADenialThatCannotBeReadSpoilsAll(t *testing.T) {
	for _, d := range []*Denials{{Ids: []*DeniedID{{SpiffeId: "web"}}}, {Ids: []*DeniedID{{SpiffeId: "spiffe://example.org/a", Before: -1}}}} {
		if _, err := ToDenials(d); err == nil {
			t.Errorf("%v was taken", d)
		}
	}
}

func FuzzToDenials(f *testing.F) {
	seed, _ := proto.Marshal(&Denials{Serials: []string{"0a"}, Ids: []*DeniedID{{SpiffeId: "spiffe://example.org/a", Before: 7}}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var d Denials
		if proto.Unmarshal(raw, &d) != nil {
			return
		}
		parsed, err := ToDenials(&d)
		if err != nil {
			return
		}
		if back, err := ToDenials(FromDenials(parsed)); err != nil || back.Hash() != parsed.Hash() {
			t.Fatalf("%v became %v, %v", &d, back, err)
		}
	})
}
