//go:build full

package keys

const full = true
