// Package identity holds the values that the whole house speaks in: SPIFFE
// IDs and trust domains, X.509-SVIDs, bundles, the credentials of one moment,
// selectors and registrations. Each is immutable, parsed once at the edge,
// comparable where it can be, and prints back what it was parsed from.
//
// It leaves policies to identity/policy, the document envelope to
// identity/document, the wire to identity/wire and TLS configurations to
// identity/mtls. It stands on the ground floor and imports nothing of the
// house but its own lower rooms.
package identity
