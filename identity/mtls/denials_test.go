// This file holds the tests of revoked peers: no cache lets one in.

package mtls

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
)

// wantRevoked checks a verdict against what is denied.
func wantRevoked(t *testing.T, err error, revoked bool) {
	t.Helper()
	r, rejected := errors.AsType[*Rejection](err)
	switch {
	case revoked && (!rejected || r.Reason != ReasonRevoked):
		t.Fatalf("a revoked chain: %v", err)
	case !revoked && err != nil:
		t.Fatalf("a chain that is not revoked: %v", err)
	}
}

func TestADeniedChainIsRefusedWhateverTheCachesHold(t *testing.T) {
	td := identitytest.New(t, "example.org")
	now := time.Now()
	var svids []identity.SVID
	for _, path := range []string{"/a", "/a", "/b", "/c"} {
		svids = append(svids, td.SVID(t, path))
	}
	v := NewVerifier(3) // small, so that entries come and go
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var serials, issuers []string
		ids := map[identity.ID]time.Time{}
		denied := func(s identity.SVID) bool { return false }
		one := svids[r.IntN(len(svids))]
		switch r.IntN(6) {
		case 0:
			serials = []string{one.Serial()}
			denied = func(s identity.SVID) bool { return s.Serial() == one.Serial() }
		case 1:
			ids[one.ID] = time.Time{}
			denied = func(s identity.SVID) bool { return s.ID == one.ID }
		case 2:
			ids[one.ID] = one.Leaf().NotBefore.Add(time.Second)
			denied = func(s identity.SVID) bool { return s.ID == one.ID }
		case 3:
			ids[one.ID] = one.Leaf().NotBefore.Add(-time.Hour)
		case 4:
			issuers = []string{hex.EncodeToString(one.Leaf().AuthorityKeyId)}
			denied = func(s identity.SVID) bool { return true }
		}
		creds := identity.NewCredentials(identity.SVID{}, 1, td.Bundle).WithDenials(identity.NewDenials(serials, ids, issuers))
		s := svids[r.IntN(len(svids))]
		_, err := v.Verify(s.Chain, creds, PurposeClient, now)
		wantRevoked(t, err, denied(s))
	}
}
