// This file holds the tests of starting: damaged directories, expired and
// renewed authorities, the admin socket, backup and restore.

package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"github.com/aval-id/aval/identity/wire"
)

func TestSecondServerIsRefused(t *testing.T) {
	cfg := testConfig(shortDir(t))
	start(t, cfg)
	cfg.AdminSocket += "2"
	if _, err := New(cfg); !errors.Is(err, ErrLocked) {
		t.Fatalf("error %v", err)
	}
}

func TestDamagedDataDirectoryIsRefused(t *testing.T) {
	dir := shortDir(t)
	cfg := testConfig(dir)
	start(t, cfg).stop()
	root, inter := filepath.Join(cfg.DataDir, "root.pem"), filepath.Join(cfg.DataDir, "keys", "intermediate.pem")
	replace := func(path string, with func([]byte) []byte) func() {
		old := must(os.ReadFile(path))
		if with == nil {
			os.Remove(path)
		} else {
			os.WriteFile(path, with(old), 0o600)
		}
		return func() { os.WriteFile(path, old, 0o600) }
	}
	garble := func([]byte) []byte { return []byte("garbled") }
	expired := identitytest.New(t, "example.org")
	for name, c := range map[string]struct {
		want string
		do   func(*Config) func()
	}{
		"other trust domain": {"not of the trust domain", func(c *Config) func() {
			c.TrustDomain = must(identity.ParseTrustDomain("other.org"))
			return func() {}
		}},
		"garbled root": {"root certificate", func(*Config) func() { return replace(root, garble) }},
		"missing root": {"put it back", func(*Config) func() { return replace(root, nil) }},
		"another root": {"does not lead to the root", func(*Config) func() {
			return replace(root, func([]byte) []byte { return identity.EncodeCertificates([]*x509.Certificate{expired.Root}) })
		}},
		"missing root key":     {"key is not there", func(*Config) func() { return replace(filepath.Join(cfg.DataDir, "keys", "root.key"), nil) }},
		"garbled intermediate": {"intermediate", func(*Config) func() { return replace(inter, garble) }},
		"loose key": {"others may use it", func(*Config) func() {
			os.Chmod(inter, 0o644)
			return func() { os.Chmod(inter, 0o600) }
		}},
		"cut store": {"cut short", func(*Config) func() {
			return replace(filepath.Join(cfg.DataDir, "store.db"), func(old []byte) []byte { return old[:9000] })
		}},
		"missing store": {"restore a backup", func(*Config) func() { return replace(filepath.Join(cfg.DataDir, "store.db"), nil) }},
		"missing log": {"begins a new log", func(*Config) func() {
			log, away := filepath.Join(cfg.DataDir, "audit", AuthorityLog), filepath.Join(cfg.DataDir, "away")
			os.Rename(log, away)
			return func() { os.Rename(away, log) }
		}},
		"loose directory": {"others may look into it", func(*Config) func() {
			os.Chmod(cfg.DataDir, 0o755)
			return func() { os.Chmod(cfg.DataDir, 0o700) }
		}},
		"unknown group": {"not known", func(c *Config) func() { c.AdminGroup = "no-such-group"; return func() {} }},
		"bad name":      {"name", func(c *Config) func() { c.Name = "a/b"; return func() {} }},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			undo := c.do(&cfg)
			defer undo()
			s, err := New(cfg)
			if err == nil {
				err = s.Run(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
		})
	}
	start(t, cfg)
}

func TestExpiredRootIsRefused(t *testing.T) {
	cfg := testConfig(shortDir(t))
	start(t, cfg).stop()
	if _, err := readRoot(must(cfg.withDefaults()), time.Now().Add(DefaultRootTTL)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Fatalf("error %v", err)
	}
}

func TestServerAwayPastItsIntermediatesEndStarts(t *testing.T) {
	t.Parallel()
	cfg := testConfig(shortDir(t))
	cfg.IntermediateTTL = 3 * time.Second
	r := start(t, cfg)
	first := r.certificates()[1].cert
	r.stop()
	<-time.NewTimer(time.Until(first.NotAfter) + 100*time.Millisecond).C
	r = start(t, cfg)
	if got := r.certificates()[1].cert; got.Equal(first) || !time.Now().Before(got.NotAfter) {
		t.Fatal("the intermediate was not replaced")
	}
}

func TestAuthoritiesAreRenewedWhileNodesStay(t *testing.T) {
	t.Parallel()
	cfg := testConfig(shortDir(t))
	cfg.IntermediateTTL, cfg.ServerTTL, cfg.DefaultTTL = 4*time.Second, 3*time.Second, 2*time.Second
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	r.apply(t, registration("shop", "web", "/web", ""))
	s := n.sync(t)
	issuers := map[string]bool{}
	for i := 0; len(issuers) < 3; i++ {
		res := s.issue(t, request(uint64(i), "shop/web", "/web"))[0]
		if len(res.GetChain()) == 0 {
			t.Fatalf("during a renewal: %v", res)
		}
		verifies(t, res.GetChain(), n.bundle)
		issuers[string(res.GetChain()[1])] = true
		<-time.NewTimer(50 * time.Millisecond).C
	}
	renewed := events(t, r.authorityLog, audit.KindAuthorityRenewed)
	if len(renewed) < 2 {
		t.Fatalf("%d renewals are recorded", len(renewed))
	}
	verifies(t, rawChain(r.Credentials().SVID), n.bundle)
}

func rawChain(s identity.SVID) [][]byte {
	var out [][]byte
	for _, c := range s.Chain {
		out = append(out, c.Raw)
	}
	return out
}

func TestOnlyOperatorsUseTheAdminSocket(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to connect as other users")
	}
	for _, c := range []struct {
		group    string
		uid, gid uint32
		mode     os.FileMode
		ok       bool
	}{{"", 65534, 65534, 0o600, false}, {"4242", 65534, 4242, 0o660, true}, {"4242", 65534, 65534, 0o660, false}} {
		cfg := testConfig(shortDir(t))
		cfg.AdminGroup = c.group
		r := start(t, cfg)
		if fi := must(os.Stat(cfg.AdminSocket)); fi.Mode().Perm() != c.mode {
			t.Errorf("group %q: mode %v", c.group, fi.Mode())
		}
		os.Chmod(filepath.Dir(cfg.AdminSocket), 0o711)
		os.Chmod(cfg.AdminSocket, 0o666) // even where the file lets one in
		out := asUser(t, "admin-call", c.uid, c.gid, cfg.AdminSocket)
		if got := strings.Contains(out, "PermissionDenied"); got == c.ok {
			t.Errorf("uid %d gid %d with group %q: %s", c.uid, c.gid, c.group, out)
		}
		if !c.ok {
			waitEvent(t, r.authorityLog, "refusal", func(e audit.Event) bool {
				return e.Kind == audit.KindRefused && e.Reason == ca.ReasonNoPermission && strings.HasPrefix(e.Actor, "uid=65534 ")
			})
		}
		r.stop()
	}
}

func TestAdminSocketInALooseDirectoryIsRefused(t *testing.T) {
	dir := shortDir(t)
	cfg := testConfig(dir)
	os.Chmod(dir, 0o777)
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "could replace the socket") {
		t.Fatalf("error %v", err)
	}
}

func TestBackupAndRestoreForceAResync(t *testing.T) {
	t.Parallel()
	cfg := testConfig(shortDir(t))
	r := start(t, cfg)
	n, gone := r.join(t, "one", nil), r.join(t, "two", nil)
	old := r.apply(t, registration("shop", "web", "/web", "")).GetPosition()
	stream := must(r.admin.Backup(t.Context(), &wire.BackupRequest{}))
	var copied bytes.Buffer
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		copied.Write(m.GetData())
	}
	path := filepath.Join(t.TempDir(), "backup")
	os.WriteFile(path, copied.Bytes(), 0o600)
	// After the backup: another document, a renewed key, an eviction.
	r.apply(t, registration("shop", "late", "/late", ""))
	next := newKey()
	n.chain = must(identity.ParseChain(must(n.client.Renew(t.Context(), &wire.RenewRequest{Csr: csrOf(next)})).GetChain()))
	n.key = next
	n.connect(t)
	n.sync(t)
	must(r.admin.EvictNode(t.Context(), &wire.EvictNodeRequest{Name: "two"}))
	if _, err := Restore(path, cfg.DataDir); !errors.Is(err, ErrLocked) {
		t.Fatalf("restore under a running server: %v", err)
	}
	r.stop()
	restored := must(Restore(path, cfg.DataDir))
	// A second one that fails takes nothing of the first one back.
	cut := filepath.Join(t.TempDir(), "cut")
	os.WriteFile(cut, copied.Bytes()[:copied.Len()/2], 0o600)
	if _, err := Restore(cut, cfg.DataDir); err == nil {
		t.Fatal("half a backup was restored")
	}
	r = start(t, cfg)
	n.server, gone.server = r, r
	n.connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	raw := must(n.client.Sync(ctx))
	raw.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Hello{Hello: &wire.Hello{Held: old}}})
	welcome := must(raw.Recv()).GetWelcome()
	if !welcome.GetResync() || welcome.GetPosition().GetEpoch() != restored.To.Epoch || restored.To.Epoch <= old.GetEpoch() {
		t.Fatalf("welcome %v after %v", welcome, old)
	}
	s := n.sync(t)
	if got := strings.Join(s.names(), " "); got != "Registration shop/web" {
		t.Fatalf("node holds %s", got)
	}
	gone.connect(t)
	_, err := gone.trySync(t)
	wantCode(t, err, codes.PermissionDenied, "evicted")
	if len(events(t, r.authorityLog, audit.KindStoreRestored)) != 1 {
		t.Fatal("the restore is not recorded")
	}
}

func TestExpiredNodeComesBackByItsKeyAlone(t *testing.T) {
	t.Parallel()
	cfg := testConfig(shortDir(t))
	cfg.NodeTTL = time.Second
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	<-time.NewTimer(time.Until(n.chain[0].NotAfter) + 50*time.Millisecond).C
	if _, err := n.trySync(t); err == nil {
		t.Fatal("an expired node was admitted")
	}
	waitEvent(t, r.connections, "expiry", func(e audit.Event) bool { return e.Reason == audit.ReasonExpired && e.ClientID == n.id })
	_, anonymous := r.dial(t, nil)
	resp, err := anonymous.Attest(t.Context(), &wire.AttestRequest{NodeId: n.id, Csr: csrOf(n.key)})
	if err != nil {
		t.Fatal(err)
	}
	n.chain = must(identity.ParseChain(resp.GetChain()))
	n.connect(t)
	n.sync(t)
}
