// This file holds Refusal, the typed "no" of the authority.

package ca

import (
	"errors"
	"fmt"
)

// Cause sorts refusals by what the asker can do about them.
type Cause uint8

// The causes.
const (
	// CauseInvalid: the request itself is wrong and will never pass.
	CauseInvalid Cause = iota + 1
	// CauseDenied: the asker has no right to it.
	CauseDenied
	// CauseUnavailable: it may pass later.
	CauseUnavailable
)

// Refusal says why nothing was drafted. Reason is short and constant, for
// records and metrics; the text never holds key, token or CSR bytes.
type Refusal struct {
	Cause  Cause
	Reason string
	Err    error
}

// Error describes the refusal.
func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the underlying error.
func (r *Refusal) Unwrap() error { return r.Err }

// Reasons of refusals.
const (
	ReasonBadCSR        = "bad_csr"
	ReasonBadToken      = "bad_token"
	ReasonTokenExpired  = "token_expired"
	ReasonTokenReused   = "token_reused"
	ReasonUnknownNode   = "unknown_node"
	ReasonEvicted       = "node_evicted"
	ReasonUnknownKey    = "unknown_key"
	ReasonWrongRole     = "wrong_role"
	ReasonNotEntitled   = "not_entitled"
	ReasonNoLifetime    = "lifetime"
	ReasonIssuerEnding  = "issuer_ending"
	ReasonNotRecorded   = "not_recorded"
	ReasonInternal      = "internal"
	ReasonLimit         = "limit"
	ReasonNoPermission  = "no_permission"
	ReasonNoCertificate = "no_client_certificate"
)

// ErrSpent means that a Draft was used a second time, or by an authority that
// did not make it.
var ErrSpent = errors.New("draft is spent or of another authority")

func invalid(reason, format string, args ...any) *Refusal {
	return &Refusal{Cause: CauseInvalid, Reason: reason, Err: fmt.Errorf(format, args...)}
}

func denied(reason, format string, args ...any) *Refusal {
	return &Refusal{Cause: CauseDenied, Reason: reason, Err: fmt.Errorf(format, args...)}
}

func unavailable(reason, format string, args ...any) *Refusal {
	return &Refusal{Cause: CauseUnavailable, Reason: reason, Err: fmt.Errorf(format, args...)}
}
