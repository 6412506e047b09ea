// This file holds the crash test of the whole server: killed at random
// points, again and again, while it issues and applies.

package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/cmd/aval/avaltest"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

const (
	crashTime  = 16 * time.Second // how long servers are killed
	crashUIDs  = 4242             // of registrations that nothing matches
	crashShort = 8                // registrations whose SVIDs renew all the time
)

// ledger is what was acknowledged to the test. Of a call that failed nothing
// is known: it may or may not have taken effect.
type ledger struct {
	mu      sync.Mutex
	present map[string]bool // registrations: true applied, false deleted
	unknown map[string]bool // their last act was not acknowledged
	serials map[string]bool
	tokens  int
}

func (l *ledger) acked(name string, present bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.unknown[name] = true
		return
	}
	delete(l.unknown, name)
	l.present[name] = present
}

func TestNothingAcknowledgedIsLostInCrashes(t *testing.T) {
	if testing.Short() {
		t.Skip("kills servers for a quarter of a minute; -short leaves it out")
	}
	f := avaltest.New(t)
	f.StartServer("--min-ttl", "1s")
	f.StartAgent("crash")
	l := &ledger{present: map[string]bool{}, unknown: map[string]bool{}, serials: map[string]bool{}}
	for i := range crashShort {
		f.Apply(fmt.Sprintf("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: short%d, namespace: crash}\n"+
			"spec: {id: /short/%d, ttl: 2s, workload: {unix.uid: %d}}\n", i, i, os.Getuid()))
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers sync.WaitGroup
	for w := range 3 {
		admin := f.Operator()
		writers.Go(func() { l.write(ctx, admin, w) })
	}
	messages := f.Stream()
	writers.Go(func() { l.watch(ctx, t, messages) })

	kills := 0
	for end := time.Now().Add(crashTime); time.Now().Before(end); kills++ {
		life := time.NewTimer(time.Duration(rand.IntN(2000)) * time.Millisecond)
		<-life.C
		f.Server.Kill()
		f.StartServer("--min-ttl", "1s")
	}
	stop()
	writers.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("%d kills; %d documents and deletions, %d tokens and %d serials acknowledged; %d acts without an answer",
		kills, len(l.present), l.tokens, len(l.serials), len(l.unknown))
	if kills < 5 || len(l.present) < 50 || len(l.serials) < crashShort {
		t.Errorf("too little happened between the kills to prove anything")
	}
	l.check(t, f)
}

// write applies, changes and deletes documents of its own, one after the
// other, and makes tokens.
func (l *ledger) write(ctx context.Context, admin wire.AdminClient, w int) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("w%d-%d", w, n)
		call, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := admin.Apply(call, &wire.ApplyRequest{Documents: [][]byte{crashDocument(name)}})
		l.acked(name, true, err)
		if n%5 == 4 {
			gone := fmt.Sprintf("w%d-%d", w, n-2)
			_, err := admin.Delete(call, &wire.DeleteRequest{Keys: []*wire.ResourceKey{{Kind: document.Registration, Namespace: "crash", Name: gone}}})
			l.acked(gone, false, err)
		}
		if n%7 == 6 {
			if _, err := admin.CreateToken(call, &wire.CreateTokenRequest{Ttl: 60_000}); err == nil {
				l.mu.Lock()
				l.tokens++
				l.mu.Unlock()
			}
		}
		cancel()
		if err != nil {
			rotation.Pause(ctx, 10*time.Millisecond)
		}
	}
}

func crashDocument(name string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"aval.dev/v1alpha1","kind":"Registration","metadata":{"name":%q,"namespace":"crash"},`+
		`"spec":{"id":"/crash/%s","workload":{"unix.uid":"%d"}}}`, name, name, crashUIDs)
}

// watch collects the serials of every SVID that reached this process.
func (l *ledger) watch(ctx context.Context, t *testing.T, messages <-chan *workload.X509SVIDResponse) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-messages:
			for _, s := range m.GetSvids() {
				chain, err := x509.ParseCertificates(s.GetX509Svid())
				if err != nil {
					t.Errorf("an SVID of %s: %v", s.GetSpiffeId(), err)
					continue
				}
				l.mu.Lock()
				l.serials[identity.Serial(chain[0])] = true
				l.mu.Unlock()
			}
		}
	}
}

// check compares what was acknowledged with what the server has.
func (l *ledger) check(t *testing.T, f *avaltest.Fleet) {
	resp, err := f.Operator().Get(t.Context(), &wire.GetRequest{Kind: document.Registration, Namespace: "crash"})
	avaltest.Must(t, err)
	docs, err := documentsOf(resp)
	avaltest.Must(t, err)
	have := map[string]bool{}
	for _, d := range docs {
		have[d.Metadata().Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(l.present)) {
		if want := l.present[name]; !l.unknown[name] && have[name] != want {
			t.Errorf("document %s: there %v, acknowledged as %v", name, have[name], want)
		}
	}
	f.Server.Stop()

	issued, applied, deleted, tokens := map[string]bool{}, map[string]bool{}, map[string]bool{}, 0
	for e, err := range audit.EntriesIn(logDir(f.ServerDir, logAuthority), 0) {
		avaltest.Must(t, err)
		switch e.Kind {
		case audit.KindIssuance:
			if issued[e.Serial] {
				t.Errorf("serial %s is recorded twice", e.Serial)
			}
			issued[e.Serial] = true
		case audit.KindDocumentApplied:
			applied[e.Document] = true
		case audit.KindDocumentDeleted:
			deleted[e.Document] = true
		case audit.KindTokenCreated:
			tokens++
		}
	}
	for serial := range l.serials {
		if !issued[serial] {
			t.Errorf("serial %s reached a workload and is not in the record", serial)
		}
	}
	for _, d := range docs {
		if !applied[d.Key().String()] {
			t.Errorf("%s is in the store and not in the record", d.Key())
		}
	}
	for name, present := range l.present {
		key := document.Key{Kind: document.Registration, Namespace: "crash", Name: name}.String()
		if present && !applied[key] || !present && !deleted[key] && !l.unknown[name] {
			t.Errorf("%s was acknowledged (there: %v) and is not in the record", key, present)
		}
	}
	if tokens < l.tokens {
		t.Errorf("%d tokens are recorded, %d were acknowledged", tokens, l.tokens)
	}
	for _, log := range []string{logAuthority, logConnections} {
		target := logTarget{log, logDir(f.ServerDir, log), logKey(f.ServerDir, log)}
		kept := filepath.Join(f.Dir, "node-crash", "checkpoints")
		if log == logConnections {
			kept = ""
		}
		report, err := verifyLog(target, kept)
		avaltest.Must(t, err)
		if !report.Verified {
			t.Errorf("%s log: %+v", log, report)
		}
	}
}
