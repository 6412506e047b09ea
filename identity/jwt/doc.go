// Package jwt verifies JSON Web Tokens (RFC 7519) by the public keys of their
// issuers, as RFC 8725 recommends it: signed in compact form alone, by a
// closed list of algorithms, with an end, an issuer and an audience that are
// demanded.
//
// It owns the parsing of key sets (RFC 7517) and of tokens. Which issuers
// there are is said in identity/policy, where their keys come from is the
// server's affair, and where a request carries its token the proxy's. It
// stands on the first floor, does no I/O, and takes the time as an argument.
package jwt
