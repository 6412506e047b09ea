// This file holds the trace context of requests (W3C Trace Context, level 1).

package request

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"
)

const (
	traceParent = "Traceparent"
	traceState  = "Tracestate"
)

// traceOf returns the trace ID of a request. A traceparent that is valid is
// forwarded as it is: the proxy adds no span of its own. Otherwise a trace is
// started, sampled as that of an application without configuration is.
func traceOf(h http.Header) string {
	if v := h[traceParent]; len(v) == 1 && validTraceParent(v[0]) {
		return v[0][3:35]
	}
	var b [24]byte
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], rand.Uint64()|1) // never all zeros
	}
	var text [55]byte
	copy(text[:], "00-")
	hex.Encode(text[3:], b[:16])
	text[35] = '-'
	hex.Encode(text[36:], b[16:])
	copy(text[52:], "-01")
	parent := string(text[:])
	h[traceParent] = []string{parent}
	delete(h, traceState) // it belongs to the parent that is not there (§3.3.1)
	return parent[3:35]
}

// validTraceParent checks version-traceid-parentid-flags (§3.2). A later
// version may have more behind.
func validTraceParent(s string) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" {
		return false
	}
	if len(s) > 55 && (s[:2] == "00" || s[55] != '-') {
		return false
	}
	for _, part := range []string{s[:2], s[3:35], s[36:52], s[53:55]} {
		for i := range len(part) {
			if c := part[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return strings.Trim(s[3:35], "0") != "" && strings.Trim(s[36:52], "0") != ""
}
