// This file holds the admin socket and who may use it.

package server

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/ca"
	"github.com/aval-id/aval/identity/wire/socket"
)

// listenAdmin makes the socket: for its owner alone, or for the admin group
// as well.
func listenAdmin(path string, group *uint32) (net.Listener, error) {
	f := socket.File{Group: group}
	if group != nil {
		f.Mode = 0o660
	}
	l, err := socket.Listen(path, f)
	if err != nil {
		return nil, fmt.Errorf("admin %w", err)
	}
	return l, nil
}

// groupID looks up a group by name or number; nil for none.
func groupID(name string) (*uint32, error) {
	if name == "" {
		return nil, nil
	}
	text := name
	if g, err := user.LookupGroup(name); err == nil {
		text = g.Gid
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("admin group %q is not known", name)
	}
	gid := uint32(n)
	return &gid, nil
}

// operator returns the caller if it may use the admin API: uid 0, the
// server's own uid, or a member of the admin group.
func (s *Server) operator(ctx context.Context) (socket.Peer, error) {
	p, _ := peer.FromContext(ctx)
	caller, ok := p.AuthInfo.(socket.Peer)
	if !ok {
		return socket.Peer{}, status.Error(codes.PermissionDenied, "the caller is not known")
	}
	switch {
	case caller.Owner():
		return caller, nil
	case s.adminGroup != nil && (caller.GID == *s.adminGroup || slices.Contains(caller.Groups, *s.adminGroup)):
		return caller, nil
	}
	return caller, status.Errorf(codes.PermissionDenied, "uid %d may not use the admin socket", caller.UID)
}

// allowOperator refuses and records callers that may not use the admin API.
func (s *Server) allowOperator(ctx context.Context, method string) error {
	caller, err := s.operator(ctx)
	if err != nil {
		s.refusals.note(AuthorityLog, fmt.Sprint(caller.UID), audit.Event{Time: time.Now(), Kind: audit.KindRefused,
			Verdict: audit.VerdictDenied, Reason: ca.ReasonNoPermission, Actor: caller.String(), Detail: "admin API: " + method})
	}
	return err
}

func (s *Server) unaryOperator(ctx context.Context, req any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.allowOperator(ctx, call.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) streamOperator(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.allowOperator(stream.Context(), call.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}

// actor names the caller in records.
func (s *Server) actor(ctx context.Context) string {
	caller, err := s.operator(ctx)
	if err != nil {
		return ""
	}
	return caller.String()
}
