// Package bench measures what issuing costs the server: its own CPU time for
// each SVID over gRPC, with the durable record, against the standard library
// alone. It holds benchmarks only and stands on the second floor.
package bench
