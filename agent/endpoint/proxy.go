// This file holds the service for proxies: whole snapshots of credentials and
// policies down, connection records up.

package endpoint

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aval-id/aval/agent/attest"
	"github.com/aval-id/aval/agent/roster"
	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// proxies serves wire.Proxy.
type proxies struct {
	wire.UnimplementedProxyServer
	s *Server
}

// maxRecords bounds the records of one batch, and maxLost the loss that it may
// claim: a sum that ran over would hide the losses of others.
const (
	maxRecords = 10_000
	maxLost    = 1 << 32
)

// Watch streams snapshots for one of the caller's identities. Each is
// complete in itself; a new one comes at each change of what it holds.
func (p *proxies) Watch(req *wire.WatchRequest, stream wire.Proxy_WatchServer) error {
	who, err := caller(stream.Context())
	if err != nil {
		return err
	}
	var last [32]byte
	w := &watcher{acks: req.GetAcknowledges()}
	p.s.holdings.open(w)
	defer p.s.holdings.close(w)
	return p.s.follow(stream.Context(), follower{
		keys: true,
		choose: func(matches []*roster.Registration) ([]*roster.Registration, error) {
			return pick(matches, req.GetIdentity())
		},
		push: func(m moment, check func() error) error {
			snap, err := snapshot(m)
			if err != nil {
				return err
			}
			who.Watch(snap.GetSpiffeId())
			// The position moves with every change anywhere; it is no news.
			content := proto.CloneOf(snap)
			content.Position = nil
			return pushNew(&last, content, check, func() error {
				snap.Tag = p.s.holdings.next(w, m.svids[0], m.roster.Bundle)
				return stream.Send(snap)
			})
		},
	})
}

// Took notes that the calling proxy uses a snapshot, and nothing older.
func (p *proxies) Took(ctx context.Context, req *wire.TookRequest) (*wire.TookResponse, error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if !p.s.holdings.took(req.GetTag(), func(id string) bool { return id == who.Watched() }) {
		return nil, status.Errorf(codes.NotFound, "no snapshot %d is on its way on this connection", req.GetTag())
	}
	return &wire.TookResponse{}, nil
}

// pick returns the one registration that gives the wanted identity, or the
// only one.
func pick(matches []*roster.Registration, wanted string) ([]*roster.Registration, error) {
	if wanted == "" {
		if len(matches) == 1 {
			return matches, nil
		}
		return nil, status.Errorf(codes.PermissionDenied, "this process has several identities, name one of them: %s", names(matches))
	}
	for i, reg := range matches {
		if reg.ID.String() == wanted {
			return matches[i : i+1], nil
		}
	}
	return nil, status.Errorf(codes.PermissionDenied, "this process is not entitled to %s; it is to %s", wanted, names(matches))
}

// snapshot prints a moment of one identity.
func snapshot(m moment) (*wire.Snapshot, error) {
	svid, reg := m.svids[0], m.regs[0]
	key, err := x509.MarshalPKCS8PrivateKey(svid.Key)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "key of %s: %v", svid.ID, err)
	}
	snap := &wire.Snapshot{
		Position: m.roster.Position.Wire(), Settings: m.roster.Node.Settings,
		SpiffeId: svid.ID.String(), Key: key, IssuedAt: svid.IssuedAt.UnixMilli(),
		WorkloadNamespace: reg.Namespace, WorkloadLabels: reg.Labels,
		NodeId: m.roster.Node.ID.String(),
	}
	for _, c := range svid.Chain {
		snap.Chain = append(snap.Chain, c.Raw)
	}
	for _, b := range m.roster.Bundles {
		snap.Bundles = append(snap.Bundles, wire.FromBundle(b))
	}
	policies := m.roster.PoliciesFor(reg.Namespace)
	for _, p := range policies {
		snap.Policies = append(snap.Policies, p.Resource)
	}
	snap.KeySets = m.roster.KeySetsFor(policies)
	if !m.roster.Denials.Empty() {
		snap.Denials = wire.FromDenials(m.roster.Denials)
	}
	return snap, nil
}

// Report takes connection records, stamps who reports them, and acknowledges
// each batch once it is in the spool. A record that is none is left out and
// counted as lost.
func (p *proxies) Report(stream wire.Proxy_ReportServer) error {
	who, err := caller(stream.Context())
	if err != nil {
		return err
	}
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(batch.GetEvents()) > maxRecords {
			return status.Errorf(codes.ResourceExhausted, "batch of %d records, more than %d", len(batch.GetEvents()), maxRecords)
		}
		stamp, err := p.reporter(stream.Context(), who)
		if err != nil {
			return err
		}
		events, bad := stampAll(batch.GetEvents(), stamp)
		if bad != nil {
			p.s.cfg.Logger.Warn("connection records of a proxy were refused", "reporter", stamp.ID.String(),
				"refused", len(batch.GetEvents())-len(events), "error", bad)
		}
		lost := min(batch.GetLost(), maxLost)
		p.s.cfg.Records.Add(stamp.ID.String(), events, lost+uint64(len(batch.GetEvents())-len(events)))
		if err := stream.Send(&wire.RecordsAck{Sequence: batch.GetSequence()}); err != nil {
			return err
		}
	}
}

// reporter is who a proxy's records are stamped with.
type reporter struct {
	ID           identity.ID
	Registration string
	Node         string
}

// reporter attests the caller anew and returns the identity that it watches
// on this connection, or its only one.
func (p *proxies) reporter(_ context.Context, who *attest.Peer) (reporter, error) {
	view, _ := p.s.cfg.Feed.Current()
	if view == nil {
		return reporter{}, errNotSynced
	}
	seen, err := p.s.attributes(who, view)
	if err != nil {
		return reporter{}, err
	}
	matches := view.Match(seen)
	if len(matches) == 0 {
		return reporter{}, errNoIdentity(seen)
	}
	chosen, err := pick(matches, who.Watched())
	if err != nil {
		return reporter{}, err
	}
	return reporter{ID: chosen[0].ID, Registration: chosen[0].Path(), Node: view.Node.ID.String()}, nil
}

// Loss is the record that says that n records of a reporter, known by its
// SPIFFE ID where it is known, were dropped.
func Loss(reporter string, n uint64) []byte {
	text, err := json.Marshal(audit.Event{Time: time.Now(), Kind: audit.KindLoss, Verdict: audit.VerdictDone,
		Reporter: reporter, Lost: n, Detail: "connection records dropped"})
	if err != nil {
		panic(err) // nothing in it can fail to print
	}
	return text
}

// stampAll stamps the good records and returns the fault of the first bad
// one.
func stampAll(events [][]byte, by reporter) (out [][]byte, bad error) {
	for _, text := range events {
		e, err := parseRecord(text)
		if err != nil {
			if bad == nil {
				bad = err
			}
			continue
		}
		e.Reporter, e.Node, e.Workload = by.ID.String(), by.Node, by.Registration
		text, err := json.Marshal(e)
		if err != nil {
			if bad == nil {
				bad = fmt.Errorf("record: %w", err)
			}
			continue
		}
		out = append(out, text)
	}
	return out, bad
}

// parseRecord reads one record strictly: one JSON object of known fields, a
// connection or a loss.
func parseRecord(text []byte) (audit.Event, error) {
	if len(text) > audit.MaxEventBytes {
		return audit.Event{}, fmt.Errorf("record of %d bytes, more than %d", len(text), audit.MaxEventBytes)
	}
	var e audit.Event
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return audit.Event{}, fmt.Errorf("record: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return audit.Event{}, errors.New("record: text after the object")
	}
	if !e.Kind.Reported() {
		return audit.Event{}, fmt.Errorf("record of kind %q is not a proxy's to report", e.Kind)
	}
	if e.KeptFrom != 0 {
		return audit.Event{}, errors.New("record: what a log dropped is the log's to tell")
	}
	if err := e.Validate(); err != nil {
		return audit.Event{}, fmt.Errorf("record: %w", err)
	}
	return e, nil
}
