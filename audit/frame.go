// This file holds the bytes of a ledger: the header that begins a segment
// and the frame around each entry.
//
// A segment begins with 64 bytes: a magic of 16, the index of its first
// entry (8, big endian), the chain hash before that entry (32), four zero
// bytes, and the CRC-32C of the 60 before.
//
// A frame is 56 bytes and the payload: a magic of 4, the payload's length
// (4), the index of the first entry of the group that was made durable in
// one write (8), the number of frames after this one that were recorded
// together with it (4), the CRC-32C of the whole frame but itself (4), the
// chain hash (32), the payload. Numbers are big endian.
//
// The chain hash is SHA-256(chain hash before ‖ RFC 6962 leaf hash of the
// payload). The CRC finds bytes that rot or tear, the chain finds entries
// that were moved or replaced, and the signed tree over the leaf hashes
// finds a chain that was computed anew.

package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	segmentMagic = "aval ledger v1\r\n"
	segmentHead  = 64
	frameMagic   = 0xa5d1f9e7
	frameHead    = 56
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chainHash is the running hash over all entries so far; zero before the
// first.
type chainHash [sha256.Size]byte

// next is the chain hash after an entry of this leaf hash.
func (c chainHash) next(leaf tlog.Hash) chainHash {
	var b [2 * sha256.Size]byte
	copy(b[:], c[:])
	copy(b[sha256.Size:], leaf[:])
	return sha256.Sum256(b[:])
}

// appendSegmentHead appends the header of a segment.
func appendSegmentHead(dst []byte, first int64, chain chainHash) []byte {
	start := len(dst)
	dst = append(dst, segmentMagic...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(first))
	dst = append(dst, chain[:]...)
	dst = append(dst, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// parseSegmentHead is the inverse of appendSegmentHead.
func parseSegmentHead(b []byte) (first int64, chain chainHash, err error) {
	if len(b) < segmentHead {
		return 0, chain, fmt.Errorf("segment header: %d bytes of %d: %w", len(b), segmentHead, io.ErrUnexpectedEOF)
	}
	b = b[:segmentHead]
	if binary.BigEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return 0, chain, errors.New("segment header: checksum differs")
	}
	if string(b[:16]) != segmentMagic || binary.BigEndian.Uint32(b[56:]) != 0 {
		return 0, chain, errors.New("segment header: not a segment of a version 1 ledger")
	}
	first = int64(binary.BigEndian.Uint64(b[16:]))
	if first < 0 {
		return 0, chain, errors.New("segment header: first index is out of range")
	}
	copy(chain[:], b[24:])
	return first, chain, nil
}

// appendFrame appends one frame.
func appendFrame(dst []byte, group int64, left uint32, chain chainHash, payload []byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, frameMagic)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.BigEndian.AppendUint64(dst, uint64(group))
	dst = binary.BigEndian.AppendUint32(dst, left)
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, chain[:]...)
	dst = append(dst, payload...)
	binary.BigEndian.PutUint32(dst[start+20:], frameSum(dst[start:]))
	return dst
}

// frameSum is the checksum of a whole frame without its checksum.
func frameSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:20], castagnoli), castagnoli, b[24:])
}

// frame is one parsed frame. Its payload aliases the bytes it came from.
type frame struct {
	group   int64  // index of the first entry of the durable write
	left    uint32 // frames after this one in the same RecordAll
	chain   chainHash
	payload []byte
}

// size is the number of bytes of the frame on disk.
func (f frame) size() int64 { return frameHead + int64(len(f.payload)) }

var (
	// errShort says that the bytes end inside a frame that is sound so far.
	errShort = errors.New("the ledger ends inside a frame")
	errFrame = errors.New("not a frame")
	errSum   = errors.New("the frame's checksum differs")
)

// parseFrame parses the frame at the beginning of b: errShort where b ends
// before the frame does, another error where the bytes are no frame.
func parseFrame(b []byte) (frame, error) {
	if len(b) < frameHead {
		return frame{}, errShort
	}
	n := binary.BigEndian.Uint32(b[4:])
	group := int64(binary.BigEndian.Uint64(b[8:]))
	if binary.BigEndian.Uint32(b) != frameMagic || n > MaxEventBytes || group < 0 {
		return frame{}, errFrame
	}
	if len(b) < frameHead+int(n) {
		return frame{}, errShort
	}
	b = b[:frameHead+int(n)]
	if binary.BigEndian.Uint32(b[20:]) != frameSum(b) {
		return frame{}, errSum
	}
	f := frame{group: group, left: binary.BigEndian.Uint32(b[16:]), payload: b[frameHead:]}
	copy(f.chain[:], b[24:])
	return f, nil
}
