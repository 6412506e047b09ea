// This file holds the tests of the keyring. Most run in a synctest bubble,
// where hours pass at once.

package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/identitytest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority issues for the ring.
type authority struct {
	t  testing.TB
	td *identitytest.TrustDomain

	mu      sync.Mutex
	ttl     time.Duration
	delay   time.Duration
	err     error            // of whole batches
	refuse  map[string]error // by registration
	retry   time.Duration
	wrongID bool
	batches []int
	csrs    map[string]bool
}

func (a *authority) Issue(ctx context.Context, batch []Request) ([]Result, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.batches = append(a.batches, len(batch))
	if a.delay > 0 {
		a.mu.Unlock()
		time.Sleep(a.delay)
		a.mu.Lock()
	}
	if a.err != nil {
		return nil, a.err
	}
	out := make([]Result, len(batch))
	for i, r := range batch {
		if a.csrs[string(r.CSR)] {
			a.t.Error("a CSR was used twice")
		}
		a.csrs[string(r.CSR)] = true
		if err := a.refuse[r.Registration]; err != nil {
			out[i] = Result{Err: err, RetryAfter: a.retry}
			continue
		}
		path := r.ID.Path()
		if a.wrongID {
			path += "/x"
		}
		now := time.Now()
		for _, c := range a.td.SignCSR(a.t, path, r.CSR, identitytest.Lifetime(now.Add(-time.Minute), now.Add(a.ttl))) {
			out[i].Chain = append(out[i].Chain, c.Raw)
		}
	}
	return out, nil
}

func (a *authority) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// sent returns the sizes of the batches so far.
func (a *authority) sent() []int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.batches)
}

// inBubble runs a ring in a bubble.
func inBubble(t *testing.T, test func(t *testing.T, r *Ring, a *authority)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &authority{t: t, td: identitytest.New(t, "example.org"), ttl: 4 * time.Hour, refuse: map[string]error{}, csrs: map[string]bool{}}
		r, err := New(Config{Issuer: a})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		test(t, r, a)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func subject(t testing.TB, n int) Subject {
	t.Helper()
	id, err := identity.ParseID(fmt.Sprintf("spiffe://example.org/w/%d", n))
	if err != nil {
		t.Fatal(err)
	}
	return SubjectOf(identity.Registration{Namespace: "ns", Name: fmt.Sprintf("w%d", n), ID: id})
}

func serial(t testing.TB, l *Lease, s Subject) string {
	t.Helper()
	svids, settled, err := l.SVIDs(time.Now())
	if !settled || err != nil {
		t.Fatalf("settled %v: %v", settled, err)
	}
	return svids[s].Serial()
}

func TestAClockThatWasSetBackRenewsEverythingOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		l := r.Lease()
		defer l.Close()
		good, refused := subject(t, 1), subject(t, 2)
		a.set(func() { a.refuse[refused.Registration], a.retry = errors.New("not now"), time.Hour })
		l.Want([]Subject{good, refused})
		time.Sleep(time.Second)
		before, old := len(a.sent()), serial(t, &Lease{ring: r, wanted: []Subject{good}}, good)
		r.Renew(t.Context(), time.Now().Add(-30*time.Second)) // less than a certificate is backdated by
		synctest.Wait()
		if n := len(a.sent()); n != before {
			t.Fatalf("%d requests for nothing", n-before)
		}
		r.Renew(t.Context(), time.Now().Add(-3*time.Hour))
		time.Sleep(time.Minute)
		if sent := a.sent()[before:]; !slices.Equal(sent, []int{2}) {
			t.Fatalf("sent %v, not both at once", sent)
		}
		if now := serial(t, &Lease{ring: r, wanted: []Subject{good}}, good); now == old {
			t.Error("the SVID of the future is still served")
		}
	})
}

func TestAMonthOfRenewalsNeverServesAnExpiredSVID(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		l := r.Lease()
		defer l.Close()
		s := subject(t, 1)
		l.Want([]Subject{s})
		seen := map[string]bool{}
		for range 30 * 24 * 6 {
			time.Sleep(10 * time.Minute)
			seen[serial(t, l, s)] = true
		}
		// Every 1.6 to 2.4 hours.
		if len(seen) < 300 || len(seen) > 450 {
			t.Fatalf("%d SVIDs in a month", len(seen))
		}
	})
}

func TestWhatBecomesDueTogetherTravelsTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		a.set(func() { a.delay = time.Second })
		var leases []*Lease
		for n := range 450 {
			l := r.Lease()
			l.Want([]Subject{subject(t, n)})
			leases = append(leases, l)
			if n == 0 {
				synctest.Wait() // the first goes at once, alone
			}
		}
		time.Sleep(10 * time.Second)
		batches, total := a.sent(), 0
		for _, n := range batches {
			if n > MaxBatch {
				t.Fatalf("a batch of %d", n)
			}
			total += n
		}
		if batches[0] != 1 || total != 450 || len(batches) > 10 {
			t.Fatalf("batches %v", batches)
		}
		for n, l := range leases {
			serial(t, l, subject(t, n))
			l.Close()
		}
	})
}

func TestWithTheServerAwayAnSVIDServesToItsEndAndReturnsWithIt(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		l := r.Lease()
		defer l.Close()
		s := subject(t, 1)
		l.Want([]Subject{s})
		synctest.Wait()
		first := serial(t, l, s)
		a.set(func() { a.err = ErrAway })
		time.Sleep(3*time.Hour + 59*time.Minute)
		if serial(t, l, s) != first {
			t.Fatal("another SVID")
		}
		time.Sleep(2 * time.Minute)
		if svids, settled, err := l.SVIDs(time.Now()); len(svids) != 0 || !settled || !errors.Is(err, ErrAway) {
			t.Fatal(svids, settled, err)
		}
		a.set(func() { a.err = nil })
		r.Reconnected()
		synctest.Wait()
		if serial(t, l, s) == first {
			t.Fatal("the expired SVID")
		}
	})
}

func TestARefusalIsRetriedNoEarlierThanTheServerSays(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		refused := errors.New("not now")
		a.set(func() { a.refuse["ns/w1"], a.retry = refused, 10*time.Minute })
		l := r.Lease()
		defer l.Close()
		l.Want([]Subject{subject(t, 1), subject(t, 2)})
		synctest.Wait()
		svids, settled, err := l.SVIDs(time.Now())
		if !settled || !errors.Is(err, refused) || len(svids) != 1 {
			t.Fatal(svids, settled, err)
		}
		tries := len(a.sent())
		time.Sleep(9 * time.Minute)
		if len(a.sent()) != tries {
			t.Fatalf("%d tries before the time", len(a.sent())-tries)
		}
		a.set(func() { delete(a.refuse, "ns/w1") })
		time.Sleep(2 * time.Minute)
		serial(t, l, subject(t, 1))
	})
}

func TestBackoffBoundsTheTries(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		a.set(func() { a.err = errors.New("broken") })
		l := r.Lease()
		defer l.Close()
		l.Want([]Subject{subject(t, 1)})
		time.Sleep(time.Hour)
		if n := len(a.sent()); n < 100 || n > 300 {
			t.Fatalf("%d tries in an hour", n)
		}
	})
}

func TestWhatNobodyWantsIsKeptUntilItIsDueAndThenDropped(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		s := subject(t, 1)
		l := r.Lease()
		l.Want([]Subject{s})
		synctest.Wait()
		l.Close()
		time.Sleep(time.Hour)
		if _, ok := r.Held(s, time.Now()); !ok {
			t.Fatal("dropped while it could serve the next caller")
		}
		time.Sleep(2 * time.Hour)
		if _, ok := r.Held(s, time.Now()); ok || len(a.sent()) != 1 {
			t.Fatalf("held %v, %d batches", ok, len(a.sent()))
		}
	})
}

func TestRetainDropsKeysAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		one, two := subject(t, 1), subject(t, 2)
		l := r.Lease()
		defer l.Close()
		l.Want([]Subject{one, two})
		synctest.Wait()
		<-l.Changed()
		r.Retain(func(s Subject) bool { return s == two })
		<-l.Changed()
		if _, ok := r.Held(one, time.Now()); ok {
			t.Fatal("held")
		}
		// Dropped while a batch is under way: its result is thrown away.
		a.set(func() { a.delay = time.Second })
		three := subject(t, 3)
		l.Want([]Subject{two, three})
		time.Sleep(time.Second / 2)
		r.Retain(func(s Subject) bool { return s == two })
		time.Sleep(time.Second)
		if _, ok := r.Held(three, time.Now()); ok {
			t.Fatal("the result of a dropped subject is held")
		}
	})
}

func TestAnSVIDForAnotherIDIsNotServed(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		a.set(func() { a.wrongID = true })
		l := r.Lease()
		defer l.Close()
		l.Want([]Subject{subject(t, 1)})
		synctest.Wait()
		if svids, settled, err := l.SVIDs(time.Now()); len(svids) != 0 || !settled || err == nil {
			t.Fatal(svids, settled, err)
		}
	})
}

func TestASubjectIsAllThatAnSVIDDependsOn(t *testing.T) {
	base := identity.Registration{Namespace: "a", Name: "b", TTL: time.Hour, DNSNames: []string{"x"}, Hint: "h", Labels: map[string]string{"k": "v"}}
	same := base
	same.Hint, same.Labels = "", nil
	if SubjectOf(base) != SubjectOf(same) {
		t.Error("a hint or label asks for another SVID")
	}
	for name, change := range map[string]func(*identity.Registration){
		"ttl": func(r *identity.Registration) { r.TTL = 2 * time.Hour }, "dns": func(r *identity.Registration) { r.DNSNames = []string{"y"} },
		"name": func(r *identity.Registration) { r.Name = "c" },
	} {
		other := base
		change(&other)
		if SubjectOf(base) == SubjectOf(other) {
			t.Errorf("%s: the same subject", name)
		}
	}
}
