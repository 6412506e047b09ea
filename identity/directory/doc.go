// Package directory holds the registry of endpoints as its readers and writers
// share it: Endpoint, one address and port where a workload takes connections;
// Set, which finds who is expected behind an address; and Journal and Replica,
// the two ends of the deltas that carry a registry from a server to a node.
//
// It owns what an endpoint may say and what it means for a connection. Who may
// register which address is the server's affair, whether a peer has the
// identity it should have is mtls's. It stands on the ground floor.
package directory
