// This file holds the SPIFFE Workload API (SPIFFE_Workload_API.md, X.509-SVID
// profile) and its security header (SPIFFE_Workload_Endpoint.md §4).

package endpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"strings"

	"github.com/aval-id/aval/agent/roster"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// workloadAPI is the Workload API. What it does not override answers
// Unimplemented: the JWT-SVID and WIT-SVID profiles are not served.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	s *Server
}

// securityHeader must come with every call of the Workload API, so that a
// browser or a confused proxy cannot make one (SPIFFE_Workload_Endpoint.md
// §4).
const securityHeader = "workload.spiffe.io"

// checkHeader refuses calls of the Workload API that do not carry the
// security header with exactly the value "true". Other services are free of
// it.
func checkHeader(ctx context.Context, method string) error {
	if !strings.HasPrefix(method, "/"+workload.SpiffeWorkloadAPI_ServiceDesc.ServiceName+"/") {
		return nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(securityHeader); len(v) != 1 || v[0] != "true" {
		return status.Errorf(codes.InvalidArgument, "the metadata %q with the one value \"true\" is missing", securityHeader)
	}
	return nil
}

// FetchX509SVID streams all of the caller's X.509-SVIDs: whole sets, the
// first at once, a new one at each change.
func (w *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	var last [32]byte
	return w.s.follow(stream.Context(), follower{keys: true, push: func(m moment, check func() error) error {
		resp, err := svidResponse(m)
		if err != nil {
			return err
		}
		return pushNew(&last, resp, check, func() error { return stream.Send(resp) })
	}})
}

// FetchX509Bundles streams the bundles that the caller may trust. Who has no
// identity has no bundles.
func (w *workloadAPI) FetchX509Bundles(_ *workload.X509BundlesRequest, stream workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	var last [32]byte
	return w.s.follow(stream.Context(), follower{push: func(m moment, check func() error) error {
		resp := &workload.X509BundlesResponse{Bundles: map[string][]byte{
			m.roster.Bundle.TrustDomain().ID().String(): m.roster.Bundle.DER(),
		}}
		return pushNew(&last, resp, check, func() error { return stream.Send(resp) })
	}})
}

// svidResponse prints a moment. Hints are unique: the first of each is kept.
func svidResponse(m moment) (*workload.X509SVIDResponse, error) {
	resp := &workload.X509SVIDResponse{}
	hints := make(map[string]bool)
	bundle := m.roster.Bundle.DER()
	for _, svid := range m.svids {
		key, err := x509.MarshalPKCS8PrivateKey(svid.Key)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "key of %s: %v", svid.ID, err)
		}
		hint := svid.Hint
		if hints[hint] {
			hint = ""
		}
		hints[hint] = true
		resp.Svids = append(resp.Svids, &workload.X509SVID{
			SpiffeId: svid.ID.String(), X509Svid: svid.ChainDER(), X509SvidKey: key, Bundle: bundle, Hint: hint,
		})
	}
	return resp, nil
}

// pushNew sends a message unless it says what the last one said. What decides
// is a digest of its deterministic form, so that no private key is kept here.
func pushNew(last *[32]byte, m proto.Message, check, send func() error) error {
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return status.Errorf(codes.Internal, "message: %v", err)
	}
	sum := sha256.Sum256(text)
	clear(text)
	if bytes.Equal(sum[:], last[:]) {
		return nil
	}
	if err := check(); err != nil {
		return err
	}
	if err := send(); err != nil {
		return err
	}
	*last = sum
	return nil
}

// names lists SPIFFE IDs for messages.
func names(regs []*roster.Registration) string {
	var out []string
	for _, r := range regs {
		out = append(out, r.ID.String())
	}
	return strings.Join(out, ", ")
}
