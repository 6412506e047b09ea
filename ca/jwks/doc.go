// Package jwks gets the keys of issuers of tokens: from hosts that the
// server's operator lists, and from files below a directory of his.
//
// It owns what may be asked and how: over TLS alone, without redirects, never
// at an address of a private network that isn't listed, within bounds of time
// and size. When keys are fetched, kept and passed on is the server's affair,
// what is in them identity/jwt's. It stands on the second floor.
package jwks
