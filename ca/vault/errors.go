// This file holds Error: what Vault answered, in one line and without secrets.

package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/aval-id/aval/ca/keys"
)

// Error is a refusal or a failure that Vault answered with.
type Error struct {
	act, address string
	// Code is the status of the answer.
	Code int
	text string
}

// Error says what was asked, of whom, and what came back.
func (e *Error) Error() string {
	hint := ""
	switch {
	case e.Code == http.StatusServiceUnavailable && !strings.Contains(e.text, "sealed"):
		hint = " (sealed, or no server is active)"
	case e.Code == http.StatusForbidden:
		hint = " (the token is lost, or its policy lacks this path: see deploy/vault)"
	}
	return fmt.Sprintf("vault %s: %s: status %d: %s%s", e.address, e.act, e.Code, e.text, hint)
}

// Is says that Vault is away where it could not answer, so that nobody takes
// a sealed server for a missing key.
func (e *Error) Is(target error) bool {
	return target == keys.ErrAway && e.Code != http.StatusNotFound || target == keys.ErrNotFound && e.Code == http.StatusNotFound
}

// maxText bounds what of an answer goes into an error.
const maxText = 300

// wrap words an error of the library.
func (c *Client) wrap(act string, err error) error {
	if e, ok := errors.AsType[*api.ResponseError](err); ok {
		text := strings.Join(strings.Fields(strings.Join(e.Errors, "; ")), " ")
		if text == "" {
			text = http.StatusText(e.StatusCode)
		}
		if len(text) > maxText {
			text = text[:maxText] + "…"
		}
		return &Error{act: act, address: c.cfg.Address, Code: e.StatusCode, text: text}
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // the URL is ours, and said once
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	return fmt.Errorf("vault %s: %s: %w: %w", c.cfg.Address, act, keys.ErrAway, err)
}
