// Package keyring keeps the SVIDs that this agent serves and their private
// keys, in memory alone.
//
// It owns when an SVID is asked for, renewed and dropped: on the first want,
// at half its life with a new key each time, and when nobody has wanted it by
// then or its registration is gone. It leaves to its caller who wants which,
// and to its Issuer how requests reach a server. It stands on the second
// floor, inside the agent's room.
package keyring

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
)

const (
	// MaxBatch is how many requests travel together at most.
	MaxBatch = 100
	// maxFlights is how many batches are under way at once. While all are,
	// what becomes due gathers for the next.
	maxFlights = 4
	// issueTimeout bounds the wait for the results of one batch.
	issueTimeout = 15 * time.Second
	// The waits between tries after a refusal.
	backoffBase = 200 * time.Millisecond
	backoffMax  = 30 * time.Second
)

// ErrAway says that no server could be asked.
var ErrAway = errors.New("the server is away")

// Request asks for one SVID.
type Request struct {
	Registration string // namespace/name
	ID           identity.ID
	CSR          []byte // PKCS#10 DER
}

// Result answers one request: a chain, leaf first, or an error.
type Result struct {
	Chain      [][]byte
	Err        error
	RetryAfter time.Duration // with an error: when a repeat makes sense; zero leaves it open
}

// Issuer takes requests to a server.
type Issuer interface {
	// Issue sends the requests as one batch and returns one result for each,
	// in their order. An error means that the batch has no results; it is
	// ErrAway where no server could be asked. Several batches may be under way
	// at once.
	Issue(ctx context.Context, batch []Request) ([]Result, error)
}

// Subject is all that an SVID depends on. A registration that changes in one
// of these has another subject. Subjects compare with ==.
type Subject struct {
	Registration string
	ID           identity.ID
	TTL          time.Duration
	dnsNames     string
}

// SubjectOf returns the subject of a registration.
func SubjectOf(r identity.Registration) Subject {
	return Subject{Registration: r.Path(), ID: r.ID, TTL: r.TTL, dnsNames: strings.Join(r.DNSNames, ",")}
}

// Config is what a Ring needs.
type Config struct {
	Issuer Issuer       // required
	Logger *slog.Logger // nil discards
	// Changed is told that Issuers may have another answer. It must not
	// block; nil is told nothing.
	Changed func()
}

// Ring holds SVIDs by subject. It is safe for concurrent use.
type Ring struct {
	issuer  Issuer
	logger  *slog.Logger
	wake    chan struct{}
	changed func()
	flights sync.WaitGroup
	counts  counts

	mu      sync.Mutex // guards what follows
	entries map[Subject]*entry
	flying  int
}

// entry is the state of one subject, guarded by Ring.mu.
type entry struct {
	subject Subject
	svid    identity.SVID // zero until the first is issued
	due     time.Time     // when to ask next
	planned time.Time     // when due was set
	attempt int           // tries since the last success
	err     error         // of the last try, nil after a success
	flying  bool
	settled bool    // was tried at least once
	orders  []Order // to reissue that came while it was flying
	leases  map[*Lease]struct{}
}

// New returns an empty ring.
func New(cfg Config) (*Ring, error) {
	if cfg.Issuer == nil {
		return nil, errors.New("keyring: issuer is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Ring{
		issuer: cfg.Issuer, logger: cfg.Logger, changed: cfg.Changed,
		wake: make(chan struct{}, 1), entries: make(map[Subject]*entry),
	}, nil
}

// Run asks for what is wanted and renews what is due until ctx ends. It
// returns once no request is under way any more.
func (r *Ring) Run(ctx context.Context) error {
	defer r.flights.Wait()
	return rotation.Loop(ctx, r, r.wake)
}

// Renew starts what is due at now and returns when the next will be. It is
// called by the loop of Run.
func (r *Ring) Renew(ctx context.Context, now time.Time) time.Time {
	for {
		batch, next := r.collect(now)
		if len(batch) == 0 {
			return next
		}
		r.flights.Go(func() { r.fly(ctx, batch) })
	}
}

// Retain drops every subject that keep does not want, with its key.
func (r *Ring) Retain(keep func(Subject) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s, e := range r.entries {
		if !keep(s) {
			r.drop(e)
		}
	}
}

// Reconnected makes everything due that the server's absence held up.
func (r *Ring) Reconnected() {
	r.mu.Lock()
	for _, e := range r.entries {
		if e.err != nil && errors.Is(e.err, ErrAway) {
			e.due, e.attempt = time.Time{}, 0
		}
	}
	r.mu.Unlock()
	r.poke()
}

// Issuers returns the subject key identifiers (hex) of the authorities that
// signed what is held and valid at now, in order.
func (r *Ring) Issuers(now time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := make(map[string]bool)
	for _, e := range r.entries {
		if !e.svid.IsZero() && now.Before(e.svid.NotAfter()) {
			set[hex.EncodeToString(e.svid.Leaf().AuthorityKeyId)] = true
		}
	}
	delete(set, "")
	return slices.Sorted(maps.Keys(set))
}

// Held returns the SVID of a subject and whether there is one that is valid
// at now.
func (r *Ring) Held(s Subject, now time.Time) (identity.SVID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[s]
	if !ok || e.svid.IsZero() || !now.Before(e.svid.NotAfter()) {
		return identity.SVID{}, false
	}
	return e.svid, true
}

// collect takes up to MaxBatch entries that are due, those without an SVID
// first, and marks them as under way. It returns when the next is due.
func (r *Ring) collect(now time.Time) (batch []*entry, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flying >= maxFlights {
		return nil, time.Time{} // the end of a flight wakes the loop
	}
	var renewals []*entry
	for _, e := range r.entries {
		switch {
		case e.flying:
		case e.due.After(now) && !rotation.SetBack(e.planned, now):
			if next.IsZero() || e.due.Before(next) {
				next = e.due
			}
		case len(e.leases) == 0:
			r.drop(e)
		case e.svid.IsZero():
			batch = append(batch, e)
		default:
			renewals = append(renewals, e)
		}
		if len(batch) == MaxBatch {
			break
		}
	}
	slices.SortFunc(renewals, func(a, b *entry) int { return a.svid.NotAfter().Compare(b.svid.NotAfter()) })
	batch = append(batch, renewals[:min(len(renewals), MaxBatch-len(batch))]...)
	for _, e := range batch {
		e.flying = true
	}
	if len(batch) > 0 {
		r.flying++
	}
	return batch, next
}

// drop forgets an entry, guarded by r.mu. The result of a flight that it is
// on is lost with it.
func (r *Ring) drop(e *entry) {
	delete(r.entries, e.subject)
	r.changed()
	for l := range e.leases {
		l.poke()
	}
}

// poke wakes the loop.
func (r *Ring) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// outcome is the end of one try for one entry.
type outcome struct {
	svid  identity.SVID
	err   error
	retry time.Duration
}

// settle takes the outcomes of a batch. Each lease is told once.
func (r *Ring) settle(ctx context.Context, batch []*entry, outcomes []outcome, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	told := make(map[*Lease]bool)
	for i, e := range batch {
		o := outcomes[i]
		if o.err != nil {
			r.counts.failed.Add(1)
			if e.attempt == 0 && ctx.Err() == nil && !errors.Is(o.err, ErrAway) {
				r.logger.Warn("SVID was not issued", "error", o.err)
			}
			wait := rotation.Backoff(e.attempt, backoffBase, backoffMax)
			e.attempt++
			e.due = now.Add(max(wait, min(o.retry, time.Hour)))
		} else {
			r.counts.issued.Add(1)
			e.svid, e.attempt = o.svid, 0
			e.due = rotation.Due(o.svid.IssuedAt, o.svid.NotAfter(), rotation.Jitter())
			for _, order := range e.orders {
				if order.Covers(o.svid) {
					e.due = order.Due(now)
				}
			}
		}
		e.orders = nil
		e.flying, e.settled, e.err, e.planned = false, true, o.err, now
		for l := range e.leases {
			told[l] = true
		}
	}
	for l := range told {
		l.poke()
	}
	r.changed()
}
