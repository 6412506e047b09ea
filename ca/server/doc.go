// Package server runs the services of a certificate authority: the node API
// over TLS 1.3 and the operators' API on a Unix socket. Everything a node
// reads it answers from memory.
//
// It owns the data directory, the documents and nodes in force, the sessions
// and who may ask for what; certificates are made by package ca, policies are
// evaluated elsewhere. It stands on the second floor.
//
// The trip of a certificate: Sync takes a batch of requests, issueBatch
// checks each against the node's attested attributes and the registrations
// in force, ca.Issuer drafts, signs, records and releases, and the session
// sends the results down.
package server
