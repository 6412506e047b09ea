// Package vault has the root's key, or the whole root, in Vault or OpenBao:
// PKI has intermediates signed by a pki engine, Transit is the key of a root
// in a transit engine, and Client is the login that both use.
//
// It owns the login, its renewal, and the words of the API; whether what came
// back is any good is checked by package ca. It stands on the second floor.
package vault
