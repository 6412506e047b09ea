// Package ca is the certificate authority: a request becomes a Draft by
// passing every check, a Draft becomes a certificate once, and a certificate
// leaves the package only after its audit event is durable.
//
// It owns profiles, the proof values without which nothing is drafted
// (ProvenKey, AttestedNode, Entitlement), join tokens, and issuing. Below it
// live the keys, the store and the server's services. It knows nothing of
// sockets or of where its keys and records are kept. It stands on the second
// floor and imports the ground floor alone.
package ca
