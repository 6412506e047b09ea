// This file holds the signing of receipts: batches that were recorded
// together get one signature together, as a signature costs a fifth of an
// issuance.

package server

import (
	"cmp"
	"runtime"
	"slices"
	"sync"

	"github.com/aval-id/aval/audit"
)

// receiptSigner gathers receipts that ask at the same time. One of the askers
// signs for all; there is no goroutine of its own.
type receiptSigner struct {
	sign func([]audit.Receipt) ([]audit.Receipt, error) // consecutive entries

	mu    sync.Mutex
	queue []*receiptOrder // guarded by mu
	busy  bool            // guarded by mu: someone signs
}

// receiptOrder is one asker's receipts, of consecutive entries.
type receiptOrder struct {
	receipts []audit.Receipt
	err      error
	turn     chan bool // true: it is this asker's turn to sign for all
}

// signAll returns the receipts signed.
func (s *receiptSigner) signAll(receipts []audit.Receipt) ([]audit.Receipt, error) {
	if len(receipts) == 0 {
		return nil, nil
	}
	o := &receiptOrder{receipts: receipts, turn: make(chan bool, 1)}
	s.mu.Lock()
	s.queue = append(s.queue, o)
	lead := !s.busy
	s.busy = true
	s.mu.Unlock()
	if !lead && !<-o.turn {
		return o.receipts, o.err
	}
	// Those who were recorded in the same write are about to ask too.
	runtime.Gosched()
	s.mu.Lock()
	orders := s.queue
	s.queue = nil
	s.mu.Unlock()
	s.signOrders(orders)
	for _, other := range orders {
		if other != o {
			other.turn <- false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy = len(s.queue) > 0; s.busy {
		s.queue[0].turn <- true
	}
	return o.receipts, o.err
}

// signOrders signs runs of neighbouring entries with one signature each.
func (s *receiptSigner) signOrders(orders []*receiptOrder) {
	slices.SortFunc(orders, func(a, b *receiptOrder) int { return cmp.Compare(a.receipts[0].Index, b.receipts[0].Index) })
	for len(orders) > 0 {
		var run []audit.Receipt
		n := 0
		for n < len(orders) && (n == 0 || run[len(run)-1].Index+1 == orders[n].receipts[0].Index) {
			run = append(run, orders[n].receipts...)
			n++
		}
		signed, err := s.sign(run)
		for _, o := range orders[:n] {
			if o.err = err; err == nil {
				o.receipts, signed = signed[:len(o.receipts)], signed[len(o.receipts):]
			}
		}
		orders = orders[n:]
	}
}
