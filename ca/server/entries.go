// This file holds the reading of the logs by operators: a time, kinds, the
// newest entries, one entry, and the entries to come.

package server

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

const (
	maxEntriesLast  = 100000
	maxEntriesBytes = 256 << 10 // of one message
)

// Entries streams entries of one log or both.
func (s adminService) Entries(req *wire.EntriesRequest, stream wire.Admin_EntriesServer) error {
	q, err := s.query(req)
	if err != nil {
		return err
	}
	if req.GetSetIndex() {
		return s.oneEntry(req, stream)
	}
	out := &entrySender{stream: stream}
	from := map[string]int64{}
	for _, name := range q.logs {
		if from[name], err = q.past(stream.Context(), s.logs()[name], name, out); err != nil {
			return err
		}
	}
	if !req.GetFollow() {
		return nil
	}
	return q.follow(stream.Context(), s.logs(), from, out)
}

// query is a request that was checked.
type query struct {
	logs   []string
	filter audit.Filter
	last   int64
}

func (s *Server) query(req *wire.EntriesRequest) (query, error) {
	q := query{logs: []string{AuthorityLog, ConnectionsLog}, last: req.GetLast()}
	if req.GetLog() != "" {
		if !slices.Contains(q.logs, req.GetLog()) {
			return q, status.Errorf(codes.InvalidArgument, "log %q: there are %s and %s", clip(req.GetLog(), 80), AuthorityLog, ConnectionsLog)
		}
		q.logs = []string{req.GetLog()}
	}
	if q.last < 0 || q.last > maxEntriesLast {
		return q, status.Errorf(codes.InvalidArgument, "%d newest entries: up to %d can be asked for", q.last, maxEntriesLast)
	}
	if req.GetSince() != 0 {
		q.filter.Since = time.UnixMilli(req.GetSince())
	}
	if req.GetUntil() != 0 {
		q.filter.Until = time.UnixMilli(req.GetUntil())
	}
	q.filter.Serial, q.filter.SPIFFEID, q.filter.Node = req.GetSerial(), req.GetSpiffeId(), req.GetNode()
	for _, k := range req.GetKinds() {
		if !slices.Contains(audit.Kinds(), audit.Kind(k)) {
			return q, status.Errorf(codes.InvalidArgument, "kind %q is not known", clip(k, 80))
		}
		q.filter.Kinds = append(q.filter.Kinds, audit.Kind(k))
	}
	return q, nil
}

// oneEntry sends the entry at an index.
func (s *Server) oneEntry(req *wire.EntriesRequest, stream wire.Admin_EntriesServer) error {
	if req.GetLog() == "" {
		return status.Error(codes.InvalidArgument, "an index needs the name of its log")
	}
	log := s.logs()[req.GetLog()]
	if i := req.GetIndex(); i < 0 || i >= log.Size() {
		return status.Errorf(codes.NotFound, "log %s has no entry %d", req.GetLog(), i)
	}
	var found []byte
	err := log.Read(req.GetIndex(), func(e audit.Entry) error {
		found = e.AppendJSON(nil)
		return errStop
	})
	if errors.Is(err, audit.ErrDropped) {
		return status.Errorf(codes.NotFound, "log %s dropped its entry %d", req.GetLog(), req.GetIndex())
	}
	if err != nil && !errors.Is(err, errStop) {
		return err
	}
	return stream.Send(&wire.EntriesResponse{Log: req.GetLog(), Entries: [][]byte{found}})
}

// past sends the entries that are there and returns where the future begins.
func (q query) past(ctx context.Context, log *audit.Log, name string, out *entrySender) (int64, error) {
	end := log.Size()
	from, err := q.start(log, name, end)
	if err != nil {
		return 0, err
	}
	if q.last > 0 {
		return q.newest(ctx, log, name, from, out)
	}
	for from < end {
		next, err := q.send(ctx, log, name, from, out)
		if errors.Is(err, audit.ErrDropped) {
			from = max(from+1, log.Stats().First)
			continue
		}
		if err != nil {
			return 0, err
		}
		from = max(next, from+1)
	}
	return max(from, end), out.flush(name)
}

// start returns the first index that can match. Only the authority log is in
// order of time: connections are told by nodes, late where a spool waited, and
// at any time that a node cares to claim, which must not hide what it lies
// beside.
func (q query) start(log *audit.Log, name string, end int64) (int64, error) {
	from := log.Stats().First
	if name == AuthorityLog && !q.filter.Since.IsZero() {
		at, err := indexAt(log, q.filter.Since.Add(-10*time.Minute))
		if err != nil {
			return 0, err
		}
		from = max(from, at)
	}
	f := q.filter
	if all := len(f.Kinds) == 0 && f.Until.IsZero() && f.Serial == "" && f.SPIFFEID == "" && f.Node == ""; q.last > 0 && all {
		from = max(from, end-q.last)
	}
	return from, nil
}

// newest keeps the last entries that match and sends them.
func (q query) newest(ctx context.Context, log *audit.Log, name string, from int64, out *entrySender) (int64, error) {
	var kept [][]byte
	next, err := log.Search(ctx, from, q.filter, func(e audit.Entry) error {
		kept = append(kept, e.AppendJSON(nil))
		if len(kept) >= int(2*q.last) {
			kept = slices.Clone(kept[len(kept)-int(q.last):])
		}
		return nil
	})
	if err != nil && !errors.Is(err, audit.ErrDropped) {
		return 0, err
	}
	for _, raw := range kept[max(0, len(kept)-int(q.last)):] {
		if err := out.add(name, raw); err != nil {
			return 0, err
		}
	}
	return next, out.flush(name)
}

// send sends what matches from an index on and returns the index after the
// last one read.
func (q query) send(ctx context.Context, log *audit.Log, name string, from int64, out *entrySender) (int64, error) {
	return log.Search(ctx, from, q.filter, func(e audit.Entry) error { return out.add(name, e.AppendJSON(nil)) })
}

// follow sends what is appended from now on, until the caller leaves.
func (q query) follow(ctx context.Context, logs map[string]*audit.Log, from map[string]int64, out *entrySender) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, name := range q.logs {
		wg.Go(func() { cancel(q.followOne(ctx, logs[name], name, from[name], out)) })
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (q query) followOne(ctx context.Context, log *audit.Log, name string, from int64, out *entrySender) error {
	for {
		if err := log.Wait(ctx, from); err != nil {
			return err
		}
		next, err := q.send(ctx, log, name, from, out)
		if errors.Is(err, audit.ErrDropped) {
			next = max(from+1, log.Stats().First)
		} else if err != nil {
			return err
		}
		if err := out.flush(name); err != nil {
			return err
		}
		from = next
	}
}

// entrySender gathers entries into messages. It is safe for concurrent use.
type entrySender struct {
	stream wire.Admin_EntriesServer

	mu      sync.Mutex
	pending map[string][][]byte // guarded by mu, by log
	bytes   int                 // guarded by mu
}

func (o *entrySender) add(log string, raw []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pending == nil {
		o.pending = map[string][][]byte{}
	}
	o.pending[log] = append(o.pending[log], raw)
	if o.bytes += len(raw); o.bytes < maxEntriesBytes {
		return nil
	}
	return o.send(log)
}

func (o *entrySender) flush(log string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.send(log)
}

func (o *entrySender) send(log string) error {
	entries := o.pending[log]
	if len(entries) == 0 {
		return nil
	}
	delete(o.pending, log)
	o.bytes = 0
	return o.stream.Send(&wire.EntriesResponse{Log: log, Entries: entries})
}
