// This file says that only what needs neither cgo nor SDKs is built in.

//go:build !full

package keys

const full = false
