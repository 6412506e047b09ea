// Package audit owns the record: typed events, the append-only hash-chained
// ledger they are committed to, the Merkle tree over it in C2SP tlog-tiles
// form, the signed checkpoints, the proofs, the verifier, the export, and
// the durable file writes that the rest of the house borrows.
//
// It leaves to others what an event means: who may do something, and whether
// an act waits for its record, is decided by the callers. It knows no
// SPIFFE type; identities arrive as strings.
//
// The package stands on the ground floor: it imports the standard library
// and third parties only.
//
// # On disk
//
//	DIR/lock                          held by flock while a Log is open
//	DIR/ledger/<first index>.log      segments of frames, see frame.go
//	DIR/ledger/<first index>.sum      what a segment can't hold, see summary.go
//	DIR/tile/<level>/<n>[.p/<width>]  Merkle tiles of height 8
//	DIR/checkpoint                    the newest signed note (origin, size, root)
//	DIR/key.pub                       the note verifier key of the log
//	DIR/reserve                       disk held back for administration
//
// Directories have mode 0700 and files 0600. An entry's Merkle leaf is its
// JSON payload, hashed as RFC 6962 §2.1 says; its index is its position.
package audit
