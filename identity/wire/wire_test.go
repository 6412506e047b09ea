// This file holds the tests of positions and conversions.

package wire_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
)

func TestAnEpochBeatsARevision(t *testing.T) {
	old := &wire.Position{Epoch: 1, Revision: 900}
	restored := &wire.Position{Epoch: 2, Revision: 3}
	if !old.Before(restored) || restored.Before(old) || old.Before(old) || !(*wire.Position)(nil).Before(old) {
		t.Fatal("positions are not ordered by epoch, then revision")
	}
}

func TestConversionsReturnWhatWentIn(t *testing.T) {
	d := identitytest.New(t, "example.org")
	b, err := wire.ToBundle(wire.FromBundle(d.Bundle))
	if err != nil || !b.Equal(d.Bundle) {
		t.Fatalf("bundle: %v", err)
	}
	a := identity.Attributes{"node.name": {"n1"}, "zone": {"a", "b"}}
	if !wire.ToAttributes(wire.FromAttributes(a)).Equal(a) {
		t.Fatal("attributes changed")
	}
	k := document.Key{Kind: "Registration", Namespace: "shop", Name: "web"}
	if wire.ToKey(wire.FromKey(k)) != k {
		t.Fatal("key changed")
	}
}

func FuzzToBundle(f *testing.F) {
	d := identitytest.New(f, "example.org")
	seed, err := proto.Marshal(wire.FromBundle(d.Bundle))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m wire.Bundle
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		if b, err := wire.ToBundle(&m); err == nil && b.IsZero() {
			t.Fatal("an invalid bundle passed")
		}
	})
}
