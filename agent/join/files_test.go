// This file holds the tests of the node's files.

package join

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeyAndCertificateAreOneFileAndComeBack(t *testing.T) {
	td := identitytest.New(t, "example.org")
	f := files{dir: t.TempDir()}
	if svid, bundle, err := f.load(); err != nil || !svid.IsZero() || !bundle.IsZero() {
		t.Fatal(svid, bundle, err)
	}
	want := td.SVID(t, "/aval/node/n1")
	if err := f.save(want, td.Bundle); err != nil {
		t.Fatal(err)
	}
	got, bundle, err := f.load()
	if err != nil || got.Serial() != want.Serial() || !bundle.Equal(td.Bundle) || got.IssuedAt.Sub(want.IssuedAt).Abs() > time.Second {
		t.Fatal(got, err)
	}
	if err := os.Chmod(f.path(credentialFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.load(); err == nil || !strings.Contains(err.Error(), "mode 0640") {
		t.Fatalf("a key that others may read: %v", err)
	}
}

func TestThePendingKeyGoesOnceItIsTheCredentials(t *testing.T) {
	td := identitytest.New(t, "example.org")
	f := files{dir: t.TempDir()}
	key := identitytest.Key(t)
	if err := f.savePending(key); err != nil {
		t.Fatal(err)
	}
	// A credential of another key leaves it alone: a renewal is under way.
	if err := f.save(td.SVID(t, "/aval/node/n1"), td.Bundle); err != nil {
		t.Fatal(err)
	}
	if again, err := f.pendingKey(); err != nil || !again.Equal(key) {
		t.Fatal(again, err)
	}
	leaf := td.Leaf(t, "/aval/node/n1", key.Public())
	svid, err := identity.NewSVID([]*x509.Certificate{leaf, td.Intermediate}, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.save(svid, td.Bundle); err != nil {
		t.Fatal(err)
	}
	if again, err := f.pendingKey(); err != nil || again != nil {
		t.Fatal(again, err)
	}
	left, err := filepath.Glob(filepath.Join(f.dir, "*"))
	if err != nil || len(left) != 2 {
		t.Fatal(left, err)
	}
}

func TestACrashBetweenCredentialAndPendingKeyIsMended(t *testing.T) {
	td := identitytest.New(t, "example.org")
	f := files{dir: t.TempDir()}
	key := identitytest.Key(t)
	svid, err := identity.NewSVID([]*x509.Certificate{td.Leaf(t, "/aval/node/n1", key.Public()), td.Intermediate}, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.save(svid, td.Bundle); err != nil {
		t.Fatal(err)
	}
	if err := f.savePending(key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.load(); err != nil {
		t.Fatal(err)
	}
	if again, err := f.pendingKey(); err != nil || again != nil {
		t.Fatal(again, err)
	}
}

func FuzzCredential(f *testing.F) {
	td := identitytest.New(f, "example.org")
	for _, path := range []string{"/aval/node/n1", "/web"} {
		svid := td.SVID(f, path)
		key, err := identity.EncodeKey(svid.Key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(key, identity.EncodeCertificates(svid.Chain)...))
	}
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		svid, err := parseCredential(text)
		if err == nil && (svid.ID.Role() != identity.RoleNode || svid.Key == nil) {
			t.Fatalf("accepted %q", text)
		}
	})
}

func FuzzBundle(f *testing.F) {
	td := identitytest.New(f, "example.org")
	f.Add(identity.EncodeCertificates(td.Bundle.Roots()), "")
	f.Add(identity.EncodeCertificates(td.Bundle.Roots()), "other.org")
	f.Add([]byte("x"), "Bad")
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		if b, err := readBundle(text, name); err == nil && (b.IsZero() || name != "" && b.TrustDomain().String() != name) {
			t.Fatalf("accepted %q for %q", text, name)
		}
	})
}
