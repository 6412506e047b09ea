// This file holds what a run measured, as the JSON object that scripts read.

package demo

import (
	"fmt"
	"math"
	"time"
)

// Result is what one run measured. Times are milliseconds.
type Result struct {
	TrustDomain string `json:"trust_domain"`
	// ServerReadyMS is from the start of the server's process until it says
	// that it is ready; it made the root and the intermediate meanwhile.
	ServerReadyMS float64 `json:"server_ready_ms"`
	// FirstSVIDMS is from the start of the agent's process, which has to
	// join first, until the first SVID on a Workload API stream.
	FirstSVIDMS float64 `json:"first_svid_ms"`
	// RegisterToSVIDMS is from the return of an apply until the SVID is on
	// an open Workload API stream; 0 where it was there before the return.
	RegisterToSVIDMS float64 `json:"register_to_svid_ms"`
	// DeleteToGoneMS is the same for a deletion.
	DeleteToGoneMS float64 `json:"delete_to_gone_ms"`
	// FirstCallMS is the duration of the first call through both proxies,
	// its handshake included.
	FirstCallMS float64 `json:"first_call_ms"`
	// StartToCallMS is from the start of the server until that call was
	// answered.
	StartToCallMS float64 `json:"start_to_call_ms"`

	Allowed   Allowed   `json:"allowed"`
	Denied    Denied    `json:"denied"`
	Plaintext Plaintext `json:"plaintext"`
	Rotation  Rotation  `json:"rotation"`
	Audit     Audit     `json:"audit"`

	// Unmet are expectations that did not hold; then the run fails.
	Unmet []string `json:"unmet,omitempty"`
}

// Allowed is the record of the call that was let through.
type Allowed struct {
	ClientID     string `json:"client_id"`
	ServerID     string `json:"server_id"`
	ClientSerial string `json:"client_serial"`
	ServerSerial string `json:"server_serial"`
	TLSVersion   string `json:"tls_version"`
	Group        string `json:"group"`
	Policy       string `json:"policy"`
}

// Denied is the record of the call that was refused.
type Denied struct {
	ClientID string   `json:"client_id"`
	Reason   string   `json:"reason"`
	Policies []string `json:"policies"`
}

// Plaintext says what became of a call without TLS in each mode: "allowed"
// or "refused".
type Plaintext struct {
	Permissive string `json:"permissive"`
	Strict     string `json:"strict"`
	// StrictMS is from the return of the apply of the strict mode until the
	// plaintext connection that was open was closed.
	StrictMS float64 `json:"strict_ms"`
}

// Rotation is what happened while certificates rotated under load.
type Rotation struct {
	// Count is the number of leaves issued to the two services meanwhile.
	Count    int `json:"count"`
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Serials is the number of different certificates, of both services,
	// seen in the handshakes of that time.
	Serials int `json:"serials"`
	// Kept is how many requests one connection carried that was open all
	// the time; Reopened is how often it had to be made anew.
	Kept       int     `json:"kept"`
	Reopened   int     `json:"reopened"`
	DurationMS float64 `json:"duration_ms"`
	SlowestMS  float64 `json:"slowest_ms"`
}

// Audit is what the verification of the logs said.
type Audit struct {
	// Entries is the number of entries verified, of both logs.
	Entries     int64 `json:"entries"`
	Authority   int64 `json:"authority"`
	Connections int64 `json:"connections"`
	Verified    bool  `json:"verified"`
	// TamperedAt is the entry of the authority log in whose copy one byte
	// was changed, TamperDetectedAt the one that the verification named.
	TamperedAt       int64 `json:"tampered_at"`
	TamperDetectedAt int64 `json:"tamper_detected_at"`
}

// expect notes an expectation that did not hold.
func (r *Result) expect(holds bool, format string, args ...any) {
	if !holds {
		r.Unmet = append(r.Unmet, fmt.Sprintf(format, args...))
	}
}

// millis gives a duration in milliseconds, to a microsecond.
func millis(d time.Duration) float64 {
	return math.Round(d.Seconds()*1e6) / 1e3
}
