// Package storetest is the suite that every backend of a store passes. It
// must not be imported outside tests. It stands on the second floor.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/aval-id/aval/ca/store"
)

// Backend makes stores for the suite.
type Backend struct {
	// Open opens the store in dir, or makes an empty one.
	Open func(dir string) (store.Store, error)
}

// Run runs the suite.
func Run(t *testing.T, b Backend) {
	tests := map[string]func(*testing.T, store.Store){
		"GetFindsWhatWasPut":              testGet,
		"TransactionIsAllOrNothing":       testAtomic,
		"ConditionsGuard":                 testConditions,
		"WithoutEffectNoRevision":         testNoEffect,
		"ScanSeesThePast":                 testScanPast,
		"ScanTakesAPrefixInOrder":         testScanPrefix,
		"WatchIsCompleteToARevision":      testWatch,
		"WatchSeesEveryConcurrentWriter":  testWatchConcurrent,
		"CompactForgetsThePastOnly":       testCompact,
		"FutureIsRefused":                 testFuture,
		"OversizeIsRefused":               testOversize,
		"RevisionsAreInCommitOrder":       testOrder,
		"WatchEndsWithTheStoreAndContext": testWatchEnds,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, b, t.TempDir())
			defer s.Close()
			test(t, s)
		})
	}
	t.Run("ReopenKeepsEverything", func(t *testing.T) { testReopen(t, b) })
}

func open(t *testing.T, b Backend, dir string) store.Store {
	t.Helper()
	s, err := b.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func txn(t *testing.T, s store.Store, ops ...store.Op) uint64 {
	t.Helper()
	p, err := s.Txn(t.Context(), nil, ops)
	if err != nil {
		t.Fatal(err)
	}
	return p.Revision
}

func put(k, v string) store.Op { return store.Put(k, []byte(v)) }

func testGet(t *testing.T, s store.Store) {
	rev := txn(t, s, put("a", "1"), put("empty", ""))
	e, ok, err := s.Get("a")
	if err != nil || !ok || string(e.Value) != "1" || e.Created != rev || e.Modified != rev {
		t.Fatalf("got %+v %v %v", e, ok, err)
	}
	if e, ok, _ := s.Get("empty"); !ok || len(e.Value) != 0 {
		t.Fatalf("an empty value is %+v %v", e, ok)
	}
	next := txn(t, s, put("a", "2"))
	if e, _, _ := s.Get("a"); string(e.Value) != "2" || e.Created != rev || e.Modified != next || next != rev+1 {
		t.Fatalf("after an update: %+v", e)
	}
	txn(t, s, store.Delete("a"))
	if _, ok, _ := s.Get("a"); ok {
		t.Fatal("a deleted key is there")
	}
	again := txn(t, s, put("a", "3"))
	if e, _, _ := s.Get("a"); e.Created != again {
		t.Fatalf("a key that came back keeps its creation: %+v", e)
	}
}

func testAtomic(t *testing.T, s store.Store) {
	txn(t, s, put("a", "1"))
	_, err := s.Txn(t.Context(), []store.Condition{{Key: "b", Modified: 7}}, []store.Op{put("a", "2"), put("c", "1")})
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("error %v", err)
	}
	if e, _, _ := s.Get("a"); string(e.Value) != "1" {
		t.Fatal("half a transaction was applied")
	}
	if _, ok, _ := s.Get("c"); ok {
		t.Fatal("half a transaction was applied")
	}
	if _, err := s.Txn(t.Context(), nil, []store.Op{put("x", "1"), put("x", "2")}); err == nil {
		t.Fatal("one key twice in a transaction was accepted")
	}
}

func testConditions(t *testing.T, s store.Store) {
	absent := []store.Condition{{Key: "a"}}
	p, err := s.Txn(t.Context(), absent, []store.Op{put("a", "1")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(t.Context(), absent, []store.Op{put("a", "2")}); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("created twice: %v", err)
	}
	if _, err := s.Txn(t.Context(), []store.Condition{{Key: "a", Modified: p.Revision}}, []store.Op{put("a", "3")}); err != nil {
		t.Fatal(err)
	}
}

func testNoEffect(t *testing.T, s store.Store) {
	rev := txn(t, s, put("a", "1"))
	if got := txn(t, s, store.Delete("missing")); got != rev {
		t.Fatalf("revision %d was spent on nothing", got)
	}
}

func testScanPast(t *testing.T, s store.Store) {
	r1 := txn(t, s, put("k/a", "1"), put("k/b", "1"), put("z", "1"))
	r2 := txn(t, s, put("k/a", "2"), store.Delete("k/b"), put("k/c", "2"))
	txn(t, s, put("k/b", "3"), store.Delete("k/c"))
	for rev, want := range map[uint64]string{
		r1: "k/a=1@1 k/b=1@1 ", r2: "k/a=2@2 k/c=2@2 ", 0: "k/a=2@2 k/b=3@3 ",
	} {
		entries, at, err := s.Scan("k/", rev)
		if err != nil || rev != 0 && at != rev {
			t.Fatalf("scan at %d: %v %v", rev, at, err)
		}
		var got strings.Builder
		for _, e := range entries {
			got.WriteString(fmt.Sprintf("%s=%s@%d ", e.Key, e.Value, e.Modified-r1+1))
		}
		if got.String() != want {
			t.Errorf("at %d: %q, want %q", rev, got.String(), want)
		}
	}
}

func testScanPrefix(t *testing.T, s store.Store) {
	txn(t, s, put("b", ""), put("a/2", ""), put("a/10", ""), put("a", ""), put("a0", ""))
	entries, _, err := s.Scan("a/", 0)
	if err != nil || len(entries) != 2 || entries[0].Key != "a/10" || entries[1].Key != "a/2" {
		t.Fatalf("got %v %v", entries, err)
	}
}

var errEnough = errors.New("enough")

// collect watches until the revision is covered, and checks that batches are
// in order and complete.
func collect(t *testing.T, s store.Store, prefix string, from, until uint64) []store.Change {
	t.Helper()
	var got []store.Change
	last := from
	err := s.Watch(t.Context(), prefix, from, func(b store.Batch) error {
		if b.Through < last {
			t.Errorf("batch through %d came after %d", b.Through, last)
		}
		for _, c := range b.Changes {
			if c.Modified <= last || c.Modified > b.Through {
				t.Errorf("change at %d in the batch after %d through %d", c.Modified, last, b.Through)
			}
		}
		last = b.Through
		got = append(got, b.Changes...)
		if last >= until {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	return got
}

func testWatch(t *testing.T, s store.Store) {
	r1 := txn(t, s, put("k/a", "1"))
	r2 := txn(t, s, put("other", "1"))
	r3 := txn(t, s, store.Delete("k/a"), put("k/b", "2"))
	got := collect(t, s, "k/", 0, r3)
	if len(got) != 3 || got[0].Modified != r1 || string(got[0].Value) != "1" || !got[1].Deleted || got[1].Key != "k/a" || string(got[2].Value) != "2" {
		t.Fatalf("got %+v", got)
	}
	if got := collect(t, s, "k/", r1, r2); len(got) != 2 {
		t.Fatalf("from the middle: %+v", got)
	}
	if got := collect(t, s, "k/", r3, r3); len(got) != 0 {
		t.Fatalf("from the end: %+v", got)
	}
}

func testWatchConcurrent(t *testing.T, s store.Store) {
	const writers, each = 4, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				if _, err := s.Txn(t.Context(), nil, []store.Op{put(fmt.Sprintf("k/%d/%d", w, n), "x"), put(fmt.Sprintf("l/%d/%d", w, n), "x")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got := collect(t, s, "k/", 0, writers*each)
	wg.Wait()
	if len(got) != writers*each {
		t.Fatalf("%d changes of %d", len(got), writers*each)
	}
}

func testCompact(t *testing.T, s store.Store) {
	r1 := txn(t, s, put("a", "1"))
	r2 := txn(t, s, put("a", "2"))
	r3 := txn(t, s, put("b", "3"))
	if err := s.Compact(t.Context(), r2); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Scan("", r1); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("scan of the forgotten past: %v", err)
	}
	if err := s.Watch(t.Context(), "", r1, func(store.Batch) error { return errEnough }); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("watch of the forgotten past: %v", err)
	}
	if entries, _, err := s.Scan("", r2); err != nil || len(entries) != 1 || string(entries[0].Value) != "2" {
		t.Fatalf("scan at the floor: %v %v", entries, err)
	}
	if got := collect(t, s, "", r2, r3); len(got) != 1 {
		t.Fatalf("watch from the floor: %v", got)
	}
}

func testFuture(t *testing.T, s store.Store) {
	rev := txn(t, s, put("a", "1"))
	if _, _, err := s.Scan("", rev+1); !errors.Is(err, store.ErrFuture) {
		t.Fatalf("scan: %v", err)
	}
	if err := s.Watch(t.Context(), "", rev+1, func(store.Batch) error { return nil }); !errors.Is(err, store.ErrFuture) {
		t.Fatalf("watch: %v", err)
	}
	if err := s.Compact(t.Context(), rev+1); !errors.Is(err, store.ErrFuture) {
		t.Fatalf("compact: %v", err)
	}
}

func testOversize(t *testing.T, s store.Store) {
	for _, op := range []store.Op{
		store.Put("", nil), store.Put(string(make([]byte, store.MaxKeyBytes+1)), nil), store.Put("v", make([]byte, store.MaxValueBytes+1)),
	} {
		if _, err := s.Txn(t.Context(), nil, []store.Op{op}); err == nil {
			t.Errorf("key of %d and value of %d bytes were accepted", len(op.Key), len(op.Value))
		}
	}
}

func testOrder(t *testing.T, s store.Store) {
	before := s.Position()
	for n := range 10 {
		p, err := s.Txn(t.Context(), nil, []store.Op{put("a", fmt.Sprint(n))})
		if err != nil {
			t.Fatal(err)
		}
		if p.Epoch != before.Epoch || p.Revision != before.Revision+1 || s.Position() != p {
			t.Fatalf("position %v after %v", p, before)
		}
		before = p
	}
}

func testWatchEnds(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	started := make(chan struct{}, 2)
	watch := func(ctx context.Context) {
		ended <- s.Watch(ctx, "", 0, func(store.Batch) error { started <- struct{}{}; return nil })
	}
	go watch(ctx)
	<-started
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("after its context: %v", err)
	}
	go watch(t.Context())
	<-started
	s.Close()
	if err := <-ended; err == nil {
		t.Fatal("a watch outlived its store without an error")
	}
}

func testReopen(t *testing.T, b Backend) {
	dir := t.TempDir()
	s := open(t, b, dir)
	txn(t, s, put("a", "1"))
	rev := txn(t, s, put("a", "2"))
	before := s.Position()
	var backup bytes.Buffer
	if err := s.Backup(t.Context(), &backup); err != nil || backup.Len() == 0 {
		t.Fatalf("backup of %d bytes: %v", backup.Len(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, b, dir)
	defer s.Close()
	if s.Position() != before {
		t.Fatalf("position %v, was %v", s.Position(), before)
	}
	if got := collect(t, s, "", 0, rev); len(got) != 2 {
		t.Fatalf("history %v", got)
	}
}
