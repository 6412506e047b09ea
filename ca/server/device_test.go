// This file holds the tests of servers whose root's key is in a device.

package server

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/ca/keys/keystest"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
)

// rootInDevice proves that a server makes its root in a device, renews
// intermediates with it, issues, and starts again; gone takes the device away.
func rootInDevice(t *testing.T, uri string, kind identity.KeyType, gone func()) {
	t.Helper()
	cfg := testConfig(shortDir(t))
	cfg.RootKey, cfg.RootKeyType, cfg.IntermediateTTL = uri, kind, 4*time.Second
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	r.apply(t, registration("shop", "web", "/web", ""))
	s := n.sync(t)
	issuers := map[string]bool{}
	for i := 0; len(issuers) < 2; i++ {
		res := s.issue(t, request(uint64(i), "shop/web", "/web"))[0]
		if len(res.GetChain()) == 0 {
			t.Fatal(res)
		}
		verifies(t, res.GetChain(), n.bundle)
		issuers[string(res.GetChain()[1])] = true
		<-time.NewTimer(50 * time.Millisecond).C
	}
	if got := must(identity.KeyTypeOf(r.certificates()[0].cert.PublicKey)); got != kind {
		t.Errorf("the root has a key of type %s", got)
	}
	r.stop()
	cfg.IntermediateTTL = time.Hour
	r = start(t, cfg)
	until(t, func() bool { return time.Until(r.intermediate().NotAfter) > 50*time.Minute })
	r.stop()
	gone()
	r = start(t, cfg) // with a live intermediate it starts without the device
	st := must(r.admin.ServerStatus(t.Context(), &wire.ServerStatusRequest{}))
	if up := st.GetUpstream(); up.GetFailures() != 1 || !strings.Contains(up.GetError(), "does not answer") {
		t.Errorf("nothing is said of a device that is gone: %v", up)
	}
}

func TestRootInATPMSigns(t *testing.T) {
	socket, stop := keystest.TPM(t)
	uri := "tpmkms:name=root;device=" + socket + ";storage-directory=" + filepath.Join(t.TempDir(), "tpm")
	rootInDevice(t, uri, identity.P256, stop)
}
