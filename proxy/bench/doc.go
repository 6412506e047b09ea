// Package bench measures the proxy against the floor: a plain crypto/tls copy
// loop. It has no code but its tests and is imported by nobody.
package bench
