// Package neighbour finds which process of this machine holds the other end
// of a connection. It asks the kernel alone: what a client says of itself
// plays no part, and where the kernel does not say, nothing is said.
//
// It owns the question to sock_diag and the reading of /proc. Who may ask, how
// often, and what a record says of the answer is its callers'. It stands on
// the ground floor: the agent and the proxy both look.
package neighbour
