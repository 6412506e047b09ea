// This file holds the service for people on the machine: why a process has
// the identities that it has, and how the agent does.

package endpoint

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/agent/attest"
	"github.com/aval-id/aval/agent/keyring"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// local serves wire.Local.
type local struct {
	wire.UnimplementedLocalServer
	s *Server
}

// maxExplained bounds the registrations of one explanation.
const maxExplained = 50

// Status tells how the agent does. It holds nothing that the machine's users
// may not know.
func (l *local) Status(context.Context, *wire.StatusRequest) (*wire.StatusResponse, error) {
	return l.s.cfg.Status(), nil
}

// Explain tells which attributes a process has and how far it is from each
// registration, nearest first. Root, the agent's user and the process's own
// user may ask.
func (l *local) Explain(ctx context.Context, req *wire.ExplainRequest) (*wire.ExplainResponse, error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	p, err := attest.Open(int(req.GetPid()))
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "explain: %v", err)
	}
	defer p.Close()
	view, _ := l.s.cfg.Feed.Current()
	var hashes *attest.Hashes
	if view != nil && view.Hashes {
		hashes = &l.s.hashes
	}
	seen, err := p.Attributes(hashes)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "explain: %v", err)
	}
	uid := strconv.FormatUint(uint64(who.UID), 10)
	if who.UID != 0 && int(who.UID) != os.Geteuid() && !slices.Contains(seen[attest.UID], uid) {
		return nil, status.Errorf(codes.PermissionDenied, "explain: process %d is not of uid %s", req.GetPid(), uid)
	}
	resp := &wire.ExplainResponse{Selectors: wire.FromAttributes(seen)}
	if view == nil {
		resp.Error = "the agent holds no snapshot of its server yet"
		return resp, nil
	}
	resp.NodeId = view.Node.ID.String()
	resp.NodeAttributes = wire.FromAttributes(view.Node.Attributes)
	resp.Registrations = l.explain(view, seen)
	return resp, nil
}

// explain lists the registrations by how many parts of their selector do not
// hold.
func (l *local) explain(view *roster.Roster, seen identity.Attributes) []*wire.ExplainedRegistration {
	now := time.Now()
	var out []*wire.ExplainedRegistration
	for _, reg := range view.Registrations {
		missing := reg.Workload.Missing(seen)
		e := &wire.ExplainedRegistration{
			Registration: reg.Path(), SpiffeId: reg.ID.String(), Missing: missing,
			Matches: len(missing) == 0 && len(reg.Workload) > 0,
		}
		for _, m := range missing {
			name, _, _ := strings.Cut(m, "=")
			for _, v := range seen[name] {
				e.Seen = append(e.Seen, name+"="+v)
			}
		}
		if svid, ok := l.s.cfg.Ring.Held(keyring.SubjectOf(reg.Registration), now); ok && e.GetMatches() {
			e.Serial, e.NotAfter = svid.Serial(), svid.NotAfter().UnixMilli()
		}
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b *wire.ExplainedRegistration) int {
		return cmp.Or(cmp.Compare(len(a.GetMissing()), len(b.GetMissing())), strings.Compare(a.GetRegistration(), b.GetRegistration()))
	})
	return out[:min(len(out), maxExplained)]
}
