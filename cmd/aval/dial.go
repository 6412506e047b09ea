// This file holds the clients of the two sockets that the CLI speaks to.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	defaultAdminSocket = "/run/aval/server/admin.sock"
	defaultAgentSocket = "/run/aval/agent/workload.sock"
)

// admin calls body with a client of the server's admin socket.
func (c *cli) admin(ctx context.Context, body func(wire.AdminClient) error) error {
	conn, err := dialSocket(ctx, c.adminSocket, "server", "name its socket with --admin-socket or AVAL_ADMIN_SOCKET")
	if err != nil {
		return err
	}
	defer conn.Close()
	return body(wire.NewAdminClient(conn))
}

// local calls body with a client of the agent's socket.
func (c *cli) local(ctx context.Context, body func(wire.LocalClient) error) error {
	conn, err := c.dialAgent(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return body(wire.NewLocalClient(conn))
}

func (c *cli) dialAgent(ctx context.Context) (*grpc.ClientConn, error) {
	return dialSocket(ctx, c.agentSocket, "agent", "name its socket with --socket or AVAL_SOCKET")
}

// socketPath takes a path or a unix:// address and returns the absolute path.
func socketPath(address string) (string, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(address, "unix:"), "//")
	if path == "" {
		return "", usage(fmt.Errorf("socket %q: it names no path", address))
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("socket %s: %w", address, err)
	}
	return abs, nil
}

// dialSocket opens a client. It tries the socket once by itself, which tells
// an absent server from a forbidden one.
func dialSocket(ctx context.Context, address, who, where string) (*grpc.ClientConn, error) {
	path, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	probe, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, socketFailure(path, who, where, err)
	}
	probe.Close()
	conn, err := grpc.NewClient("unix:"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessageBytes), grpc.MaxCallSendMsgSize(wire.MaxMessageBytes)))
	if err != nil {
		return nil, fmt.Errorf("reach the %s at %s: %w", who, path, err)
	}
	return conn, nil
}

func socketFailure(path, who, where string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return hinted(fmt.Errorf("reach the %s at %s: permission denied", who, path), exitDenied,
			"run it as root, as the %s's own user, or as a member of its admin group", who)
	case errors.Is(err, fs.ErrNotExist):
		return hinted(fmt.Errorf("reach the %s: %s does not exist", who, path), exitUnreachable,
			"is the %s running? %s", who, where)
	case errors.Is(err, syscall.ECONNREFUSED):
		return hinted(fmt.Errorf("reach the %s: nothing listens on %s", who, path), exitUnreachable,
			"the %s that left this socket is gone; start it again", who)
	}
	return hinted(fmt.Errorf("reach the %s: %w", who, err), exitUnreachable, "%s", where)
}
