// This file holds share: what the spool keeps of one reporter. Beyond the
// spool's bound the oldest record of whoever keeps most is dropped, so that n
// reporters have at least the nth part of the bound each, and one that floods
// pushes out nothing but its own.

package spool

import "iter"

// share is guarded by the spool's mutex. A share that keeps nothing and lost
// nothing is forgotten.
type share struct {
	reporter string
	records  []record // oldest first
	bytes    int64
	lost     uint64   // dropped and not yet told
	segments []uint64 // its files by first number, oldest first
	size     int64    // of the newest file; segmentBytes or more where it takes no more
}

// share returns the share of a reporter, a new one if need be.
func (s *Spool) share(reporter string) *share {
	sh, ok := s.shares[reporter]
	if !ok {
		sh = &share{reporter: reporter, size: segmentBytes}
		s.shares[reporter] = sh
	}
	return sh
}

// forget drops a share that is empty.
func (s *Spool) forget(sh *share) {
	if len(sh.records) == 0 && sh.lost == 0 && len(sh.segments) == 0 {
		delete(s.shares, sh.reporter)
	}
}

// push appends one record, and drops what is beyond the bound.
func (s *Spool) push(sh *share, r record) {
	sh.records = append(sh.records, r)
	s.next = max(s.next, r.number+1)
	s.count(sh, 1, r)
	for s.bytes > s.bound {
		largest := sh
		for _, other := range s.shares {
			if other.bytes > largest.bytes {
				largest = other
			}
		}
		s.shift(largest)
		largest.lost++
		s.dropped++
		if largest != sh {
			s.trim(largest)
		}
	}
}

// shift forgets a share's oldest record.
func (s *Spool) shift(sh *share) {
	s.count(sh, -1, sh.records[0])
	sh.records[0] = record{}
	sh.records = sh.records[1:]
}

func (s *Spool) count(sh *share, n int, r record) {
	cost := int64(n) * (int64(len(r.event)) + overhead)
	sh.bytes += cost
	s.bytes += cost
	s.waiting += n
}

// holds reports whether there is anything to send.
func (s *Spool) holds() bool {
	for _, sh := range s.shares {
		if sh.lost > 0 {
			return true
		}
	}
	return s.waiting > 0
}

// oldest yields the records of all shares by their numbers.
func (s *Spool) oldest() iter.Seq[record] {
	return func(yield func(record) bool) {
		left := make([][]record, 0, len(s.shares))
		for _, sh := range s.shares {
			if len(sh.records) > 0 {
				left = append(left, sh.records)
			}
		}
		for len(left) > 0 {
			least := 0
			for i := range left {
				if left[i][0].number < left[least][0].number {
					least = i
				}
			}
			if !yield(left[least][0]) {
				return
			}
			if left[least] = left[least][1:]; len(left[least]) == 0 {
				left[least] = left[len(left)-1]
				left = left[:len(left)-1]
			}
		}
	}
}

// trim removes a share's files of which every record is gone.
func (s *Spool) trim(sh *share) {
	if s.journal == nil {
		return
	}
	oldest := s.next
	if len(sh.records) > 0 {
		oldest = sh.records[0].number
	}
	if err := s.journal.trim(sh, oldest, len(sh.records) == 0); err != nil {
		s.logger.Warn("old connection records were not removed", "error", err)
	}
}
