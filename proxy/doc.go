// Package proxy gives any TCP application mutual TLS and policy: it accepts,
// looks at the first bytes, shakes hands, authorises, forwards and drains.
//
// It owns what happens to a connection and the record of it. Its identity,
// bundles and policies come whole from the agent's socket, and are swapped
// whole; what a policy means is decided in identity/policy, whether a chain
// is an SVID in identity/mtls, and where records end up is the agent's and
// the server's business. It stands on the second floor, beside ca and agent,
// and imports neither.
package proxy
