// This file says that every home is built in.

//go:build full

package keys

const full = true
