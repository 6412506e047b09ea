// This file holds the test of signing receipts together.

package server

import (
	"errors"
	"sync"
	"testing"

	"github.com/aval-id/aval/audit"
)

func TestReceiptsAskedTogetherAreSignedForEachAsker(t *testing.T) {
	var mu sync.Mutex
	signatures := 0
	s := &receiptSigner{sign: func(rs []audit.Receipt) ([]audit.Receipt, error) {
		mu.Lock()
		defer mu.Unlock()
		signatures++
		out := make([]audit.Receipt, len(rs))
		for i, r := range rs {
			if i > 0 && r.Index != rs[i-1].Index+1 {
				return nil, errors.New("not neighbours")
			}
			r.First, r.Count = rs[0].Index, int64(len(rs))
			out[i] = r
		}
		return out, nil
	}}
	var wg sync.WaitGroup
	for n := range 200 {
		wg.Go(func() {
			first := int64(n * 4)
			got, err := s.signAll([]audit.Receipt{{Index: first}, {Index: first + 1}, {Index: first + 2}}) // every fourth is another's
			if err != nil || len(got) != 3 {
				t.Errorf("%v %v", got, err)
				return
			}
			for i, r := range got {
				if r.Index != first+int64(i) || r.Count == 0 {
					t.Errorf("asker of %d got %+v", first, r)
				}
			}
		})
	}
	wg.Wait()
	if signatures == 0 || signatures > 200 || s.busy || len(s.queue) != 0 {
		t.Fatalf("%d signatures, busy %v", signatures, s.busy)
	}
}
