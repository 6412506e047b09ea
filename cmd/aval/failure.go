// This file holds the exit codes, the one table that turns errors into them,
// and how an error is told to the person at the terminal.

package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/aval-id/aval/identity/document"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The exit codes that scripts may rely on.
const (
	exitDone        = 0
	exitNegative    = 1 // a negative finding, or the act did not succeed
	exitUsage       = 2
	exitInvalid     = 3 // an invalid document
	exitUnreachable = 4
	exitDenied      = 5 // denied, or no identity
)

// failure is an error with its exit code and, apart, what to do about it.
type failure struct {
	code int
	hint string
	err  error // nil where everything is already said
}

func (f *failure) Error() string {
	if f.err == nil {
		return "no"
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// usage is an error of the command line.
func usage(err error) error { return &failure{code: exitUsage, err: err} }

// negative is a finding that the command has printed already.
func negative() error { return &failure{code: exitNegative} }

// hinted adds what to do to an error.
func hinted(err error, code int, format string, args ...any) error {
	return &failure{code: code, err: err, hint: fmt.Sprintf(format, args...)}
}

// ran marks an error that came out of a command's body, not of its usage.
type ran struct{ err error }

func (r *ran) Error() string { return r.err.Error() }
func (r *ran) Unwrap() error { return r.err }

func started(err error) error { return &ran{err} }

// callError is a failed call: what was asked, and the status that came back.
type callError struct {
	act string
	st  *status.Status
}

func (e *callError) Error() string              { return e.act + ": " + e.st.Message() }
func (e *callError) GRPCStatus() *status.Status { return e.st }

// called words the error of a call; nil stays nil.
func called(act string, err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	if st.Code() == codes.Unimplemented {
		return hinted(&callError{act, st}, exitUnreachable,
			"another process listens there: --admin-socket is the server's, --socket the agent's")
	}
	return &callError{act, st}
}

// exitCode maps an error to its exit code.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	if _, ok := errors.AsType[document.Errors](err); ok {
		return exitInvalid
	}
	if st, ok := status.FromError(err); ok {
		return statusCode(st.Code())
	}
	if _, ok := errors.AsType[*ran](err); !ok {
		return exitUsage
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return exitUnreachable
	}
	return exitNegative
}

// statusCode maps the status of a call to an exit code.
func statusCode(code codes.Code) int {
	switch code {
	case codes.OK:
		return exitDone
	case codes.InvalidArgument:
		return exitInvalid
	case codes.Unavailable, codes.DeadlineExceeded:
		return exitUnreachable
	case codes.PermissionDenied, codes.Unauthenticated:
		return exitDenied
	default:
		return exitNegative
	}
}

// statusText is how gRPC words a status inside an error; people are spared it.
var statusText = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// report prints an error with its hint and returns the exit code.
func (c *cli) report(err error) int {
	code := exitCode(err)
	if err == nil {
		return code
	}
	f, _ := errors.AsType[*failure](err)
	if f != nil && f.err == nil {
		return code
	}
	if errs, ok := errors.AsType[document.Errors](err); ok && len(errs) > 1 {
		for _, e := range errs {
			fmt.Fprintf(c.err, "error: %s\n", e)
		}
		return code
	}
	text := statusText.ReplaceAllString(strings.TrimSpace(err.Error()), "")
	fmt.Fprintf(c.err, "error: %s\n", text)
	switch {
	case f != nil && f.hint != "":
		fmt.Fprintf(c.err, "hint: %s\n", f.hint)
	case code == exitUsage:
		fmt.Fprintln(c.err, "hint: add --help for usage and examples")
	}
	return code
}
