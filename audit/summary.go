// This file holds the summary of a segment: from when to when its entries
// are, and a filter that says which certificates, identities and nodes none
// of them is about. A search opens only the segments that may have what it
// looks for.
//
// A summary is a file beside its segment, made once the segment has got its
// last entry. It proves nothing and is made anew where it is missing, or
// where a checksum doesn't hold. It is a header of 64 bytes and blocks of 64:
//
//	header  magic (16), first index (8), index after the last (8), earliest
//	        and latest time in Unix nanoseconds (8, 8), number of blocks (4),
//	        zeros (8), CRC-32C of the 60 bytes before
//	block   480 bits of a Bloom filter, CRC-32C of the 60 bytes before
//
// A key's SHA-256 chooses one block and six bits in it, so that a question
// costs two reads of 64 bytes. Numbers are big endian.

package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"time"
)

const (
	summaryMagic  = "aval summary v1\n"
	summaryBlock  = 64
	blockBits     = (summaryBlock - 4) * 8
	bitsOfKey     = 6
	keysPerBlock  = 24 // on average: 20 bits for each, about one false answer in a thousand
	maxBlocks     = 1 << 20
	summarySuffix = ".sum"
)

// summaryPath is where the summary of a segment lies.
func summaryPath(dir string, first int64) string {
	return strings.TrimSuffix(segmentPath(dir, first), ".log") + summarySuffix
}

// summaryHead is the header of a summary.
type summaryHead struct {
	first, end       int64
	earliest, latest time.Time
	blocks           uint32
}

// bytes is the header on disk.
func (h summaryHead) bytes() []byte {
	b := make([]byte, 0, summaryBlock)
	b = append(b, summaryMagic...)
	for _, n := range []int64{h.first, h.end, h.earliest.UnixNano(), h.latest.UnixNano()} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = binary.BigEndian.AppendUint32(b, h.blocks)
	b = append(b, make([]byte, 8)...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// errSummary says that a summary is damaged, or is another segment's.
var errSummary = errors.New("the summary is damaged")

// soundBlock reports whether a block's checksum holds.
func soundBlock(b []byte) bool {
	return len(b) == summaryBlock && binary.BigEndian.Uint32(b[60:]) == crc32.Checksum(b[:60], castagnoli)
}

// parseSummaryHead is the inverse of bytes.
func parseSummaryHead(b []byte) (summaryHead, error) {
	if !soundBlock(b) || string(b[:16]) != summaryMagic || !bytes.Equal(b[52:60], make([]byte, 8)) {
		return summaryHead{}, errSummary
	}
	number := func(at int) int64 { return int64(binary.BigEndian.Uint64(b[at:])) }
	h := summaryHead{
		first: number(16), end: number(24),
		earliest: time.Unix(0, number(32)), latest: time.Unix(0, number(40)),
		blocks: binary.BigEndian.Uint32(b[48:]),
	}
	if h.first < 0 || h.end <= h.first || h.blocks == 0 || h.blocks > maxBlocks {
		return summaryHead{}, errSummary
	}
	return h, nil
}

// summaryKey is what a filter knows of a serial, an ID or a node.
type summaryKey [sha256.Size]byte

// block is the block of the key, of so many.
func (k summaryKey) block(blocks uint32) int64 {
	return int64(binary.BigEndian.Uint64(k[:]) % uint64(blocks))
}

// bit is one of the key's bits in its block.
func (k summaryKey) bit(i int) int { return int(binary.BigEndian.Uint32(k[8+4*i:]) % blockBits) }

// keyedFields are the fields whose values can be searched for, as the encoder
// begins them. None can stand inside a value, where quotes are escaped.
var keyedFields = [][]byte{
	[]byte(`,"spiffe_id":"`), []byte(`,"client_id":"`), []byte(`,"server_id":"`),
	[]byte(`,"serial":"`), []byte(`,"client_serial":"`), []byte(`,"server_serial":"`), []byte(`,"node":"`),
}

// keysOf calls fn with each value that an entry can be found by.
func keysOf(payload []byte, fn func(value []byte)) error {
	for _, field := range keyedFields {
		at := bytes.Index(payload, field)
		if at < 0 {
			continue
		}
		value, err := textAt(payload[at+len(field)-1:])
		if err != nil {
			return err
		}
		fn(value)
	}
	return nil
}

// textAt reads the JSON string that b begins with.
func textAt(b []byte) ([]byte, error) {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '"':
			return b[1:i], nil
		case '\\':
			var s string
			if err := json.NewDecoder(bytes.NewReader(b)).Decode(&s); err != nil {
				return nil, err
			}
			return []byte(s), nil
		}
	}
	return nil, errors.New("a string without end")
}

// summarise reads a whole segment, whose last entry is the one before end,
// and returns its summary.
func summarise(dir string, first, end int64) ([]byte, error) {
	h := summaryHead{first: first, end: end}
	keys := map[summaryKey]struct{}{}
	at := position{segment: first, offset: segmentHead, index: first}
	next, err := scanSegment(dir, at, first, end, func(index int64, f frame) error {
		text, ok := bytes.CutPrefix(f.payload, []byte(`{"time":`))
		if !ok {
			return fmt.Errorf("entry %d has no time", index)
		}
		stamp, err := textAt(text)
		if err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		when, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		when = storableNano(when)
		if index == first || when.Before(h.earliest) {
			h.earliest = when
		}
		if index == first || when.After(h.latest) {
			h.latest = when
		}
		return keysOf(f.payload, func(value []byte) { keys[sha256.Sum256(value)] = struct{}{} })
	})
	if err != nil {
		return nil, err
	}
	if next != end {
		return nil, fmt.Errorf("entry %d is missing in its segment", next)
	}
	h.blocks = uint32(min(len(keys)/keysPerBlock+1, maxBlocks))
	return fillSummary(h, keys), nil
}

// fillSummary writes header and blocks.
func fillSummary(h summaryHead, keys map[summaryKey]struct{}) []byte {
	out := append(h.bytes(), make([]byte, int(h.blocks)*summaryBlock)...)
	for k := range keys {
		block := out[summaryBlock*(1+k.block(h.blocks)):]
		for i := range bitsOfKey {
			block[k.bit(i)/8] |= 1 << (k.bit(i) % 8)
		}
	}
	for at := summaryBlock; at < len(out); at += summaryBlock {
		binary.BigEndian.PutUint32(out[at+60:], crc32.Checksum(out[at:at+60], castagnoli))
	}
	return out
}

// storableNano brings a time into the range of Unix nanoseconds.
func storableNano(t time.Time) time.Time {
	lowest, highest := time.Unix(0, -1<<63), time.Unix(0, 1<<63-1)
	switch {
	case t.Before(lowest):
		return lowest
	case t.After(highest):
		return highest
	}
	return t
}

// mayMatch reports whether a segment may hold an entry that passes the
// filter, by its summary. Without a sound one it may.
func mayMatch(dir string, first, end int64, f Filter) bool {
	file, err := os.Open(summaryPath(dir, first))
	if err != nil {
		return true
	}
	defer file.Close()
	b := make([]byte, summaryBlock)
	if _, err := file.ReadAt(b, 0); err != nil {
		return true
	}
	h, err := parseSummaryHead(b)
	switch {
	case err != nil || h.first != first || h.end != end:
		return true
	case !f.Since.IsZero() && h.latest.Before(storableNano(f.Since)),
		!f.Until.IsZero() && !h.earliest.Before(storableNano(f.Until)) && f.Until.Equal(storableNano(f.Until)):
		return false
	}
	for _, value := range []string{f.SPIFFEID, f.Serial, f.Node} {
		if value == "" {
			continue
		}
		k := summaryKey(sha256.Sum256([]byte(value)))
		if _, err := file.ReadAt(b, summaryBlock*(1+k.block(h.blocks))); err != nil || !soundBlock(b) {
			return true
		}
		for i := range bitsOfKey {
			if b[k.bit(i)/8]&(1<<(k.bit(i)%8)) == 0 {
				return false
			}
		}
	}
	return true
}
