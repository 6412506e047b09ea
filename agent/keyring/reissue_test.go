// This file holds the tests of orders to reissue.

package keyring

import (
	"encoding/hex"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnOrderReplacesWhatItCoversAndNothingElse(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		l := r.Lease()
		defer l.Close()
		one, two := subject(t, 1), subject(t, 2)
		l.Want([]Subject{one, two})
		synctest.Wait()
		first, second := serial(t, l, one), serial(t, l, two)
		began := time.Now()
		r.Reissue(Order{IDs: map[string]bool{one.ID.String(): true}, Spread: time.Minute}, began)
		time.Sleep(time.Minute)
		synctest.Wait()
		if serial(t, l, one) == first || serial(t, l, two) != second {
			t.Fatal("the order was for the first alone")
		}
		// One of before what is held spares it.
		again := serial(t, l, one)
		r.Reissue(Order{IDs: map[string]bool{one.ID.String(): true}, Before: began.Add(-time.Minute)}, time.Now())
		synctest.Wait()
		if serial(t, l, one) != again {
			t.Fatal("an order of before replaced it")
		}
		issuer := hex.EncodeToString(a.td.Intermediate.SubjectKeyId)
		r.Reissue(Order{Issuers: map[string]bool{"other": true}}, time.Now())
		synctest.Wait()
		if serial(t, l, two) != second {
			t.Fatal("an order about another issuer replaced it")
		}
		r.Reissue(Order{Issuers: map[string]bool{issuer: true}}, time.Now())
		synctest.Wait()
		if serial(t, l, one) == again || serial(t, l, two) == second {
			t.Fatal("an order about the issuer left something")
		}
	})
}

func TestWhatWasUnderWayAtTheOrderIsReplacedToo(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		a.set(func() { a.delay = 5 * time.Second })
		l := r.Lease()
		defer l.Close()
		s := subject(t, 1)
		l.Want([]Subject{s})
		synctest.Wait() // it is on its way
		r.Reissue(Order{Issuers: map[string]bool{hex.EncodeToString(a.td.Intermediate.SubjectKeyId): true}}, time.Now())
		time.Sleep(6 * time.Second)
		synctest.Wait()
		first := serial(t, l, s)
		time.Sleep(6 * time.Second)
		if serial(t, l, s) == first {
			t.Fatal("the SVID that was under way stays")
		}
		time.Sleep(time.Hour)
		if n := len(a.sent()); n != 2 {
			t.Fatalf("%d batches: the order was obeyed more than once", n)
		}
	})
}

func TestIssuersLeavesOutWhatExpired(t *testing.T) {
	inBubble(t, func(t *testing.T, r *Ring, a *authority) {
		l := r.Lease()
		defer l.Close()
		l.Want([]Subject{subject(t, 1)})
		synctest.Wait()
		if got := r.Issuers(time.Now()); len(got) != 1 {
			t.Fatalf("issuers %v", got)
		}
		if got := r.Issuers(time.Now().Add(5 * time.Hour)); len(got) != 0 {
			t.Fatalf("issuers after the end: %v", got)
		}
	})
}
