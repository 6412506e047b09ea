// This file holds the one table that turns errors into status codes, and the
// guard that turns a panic into one request's error.

package server

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/ca/store"
	"github.com/aval-id/aval/identity/document"
)

// codeOf returns the status code of an error. Where it holds nothing known
// the code is Internal.
func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	if errors.Is(err, audit.ErrDiskFull) {
		return codes.ResourceExhausted
	}
	if _, ok := errors.AsType[*overPace](err); ok {
		return codes.ResourceExhausted
	}
	if r, ok := errors.AsType[*ca.Refusal](err); ok {
		switch r.Cause {
		case ca.CauseInvalid:
			return codes.InvalidArgument
		case ca.CauseDenied:
			return codes.PermissionDenied
		case ca.CauseUnavailable:
			return codes.Unavailable
		}
		return codes.Internal
	}
	if _, ok := errors.AsType[*document.Error](err); ok {
		return codes.InvalidArgument
	}
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, store.ErrConflict):
		return codes.Aborted
	case errors.Is(err, audit.ErrClosed):
		return codes.Unavailable
	}
	return codes.Internal
}

// reasonOf returns the constant reason of an error for records and metrics.
func reasonOf(err error) string {
	if _, ok := errors.AsType[*overPace](err); ok {
		return ca.ReasonLimit
	}
	if r, ok := errors.AsType[*ca.Refusal](err); ok {
		return r.Reason
	}
	return ca.ReasonInternal
}

// toStatus gives an error its status.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

// guard recovers a handler's panic: it costs that request alone, is logged
// with its stack and counted.
func (s *Server) guard(method string, err *error) {
	if p := recover(); p != nil {
		s.metrics.panics.Inc()
		s.log.Error("request panicked", slog.String("method", method), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		*err = status.Error(codes.Internal, "internal error")
	}
}

func (s *Server) unaryGuard(ctx context.Context, req any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer s.guard(call.FullMethod, &err)
	resp, err = next(ctx, req)
	return resp, toStatus(err)
}

func (s *Server) streamGuard(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer s.guard(call.FullMethod, &err)
	return toStatus(next(srv, stream))
}
