// Package policy owns the meaning of PeerAuthentication and
// AuthorizationPolicy: it parses their specs strictly, compiles what applies
// to one workload into an immutable Set, and decides connections by it,
// without input or output and without allocating. Names, fields and meaning
// follow security.istio.io/v1; where they differ the comments say so. Every
// data path uses this one evaluator.
//
// It leaves the envelope to identity/document and the enforcement, the
// sniffing of PERMISSIVE ports, the verification of tokens and the records to
// the proxy, and external authorizers (CUSTOM) to a later version. What is
// decided by request is admitted where Settings.Requests says that it is
// enforced. It stands on the ground floor and imports identity and
// identity/document.
//
// The index is the heart of it. Each rule is a few bits, and each attribute
// of a request is looked up once, in a trie or a map, for all rules together;
// words of bits are then combined as the rules say. A decision therefore
// costs about the same whichever rule matches.
package policy
