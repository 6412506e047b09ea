// Package attest finds out which process is behind a Unix connection and
// which attributes it has: unix.uid, unix.gid, unix.supplementary_gid,
// unix.path and unix.sha256.
//
// It owns the hold on a process (a pidfd, so that a pid that is used again is
// never mistaken for its predecessor) and the reading of its attributes. It
// leaves to the endpoint what the attributes entitle to. It stands on the
// second floor, inside the agent's room.
//
// BUG: a process that hands its connected socket to another process hands
// its identity with it, and a process of the same uid that may ptrace a
// workload can use its identity. The kernel offers no defence against either.
package attest
