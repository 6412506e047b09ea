// Package policy owns the meaning of PeerAuthentication and
// AuthorizationPolicy: it parses their specs strictly, compiles what applies
// to one workload into an immutable Set, and decides connections by it,
// without input or output and without allocating. Names, fields and meaning
// follow security.istio.io/v1; where they differ the comments say so. Every
// data path uses this one evaluator.
//
// It leaves the envelope to identity/document and the enforcement, the
// sniffing of PERMISSIVE ports and the records to the proxy. This version
// covers what is known of a connection; fields about requests are refused. It
// stands on the ground floor and imports identity and identity/document.
package policy
