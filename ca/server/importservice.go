// This file holds the operators' API of intermediates that are signed
// elsewhere.

package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
)

// maxImported bounds the certificates of one import.
const maxImported = 8

// RequestIntermediate returns a request for this server's intermediate. Its
// key waits in the data directory.
func (s adminService) RequestIntermediate(context.Context, *wire.RequestIntermediateRequest) (*wire.RequestIntermediateResponse, error) {
	s.importing.Lock()
	defer s.importing.Unlock()
	csr, err := s.request()
	if err != nil {
		return nil, err
	}
	return &wire.RequestIntermediateResponse{Csr: csr}, nil
}

// ImportIntermediate checks, records and puts in force what was signed.
func (s adminService) ImportIntermediate(ctx context.Context, req *wire.ImportIntermediateRequest) (*wire.ImportIntermediateResponse, error) {
	if n := len(req.GetCertificates()); n == 0 || n > maxImported {
		return nil, status.Errorf(codes.InvalidArgument, "import: %d certificates: 1 to %d are taken", n, maxImported)
	}
	certs, err := identity.ParseChain(req.GetCertificates())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "import: %v", err)
	}
	a, err := s.importLive(ctx, certs, s.actor(ctx), time.Now())
	if err != nil {
		if code := codeOf(err); code != codes.Internal {
			return nil, status.Error(code, err.Error())
		}
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &wire.ImportIntermediateResponse{Intermediate: authorityState(certificate{roleIntermediate, a.Certificate()})}, nil
}
