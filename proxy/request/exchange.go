// This file holds exchange: one request from its arrival to the end of its
// answer, and how it is judged.

package request

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aval-id/aval/identity/policy"
)

// Refusal is a request that the policies refused.
type Refusal struct {
	Peer     Peer
	Decision policy.Decision
	Method   string
	Host     string // canonical, without port
	Path     string // canonical, without query
	// Token says why the request's token is not valid, and is nil where it is
	// or there is none. It repeats nothing of the token.
	Token error
	// Late says that the request had been allowed and was under way when the
	// policies changed.
	Late bool
}

// exchange is one request. The goroutine of its handler owns it; facts do not
// change once it is open.
type exchange struct {
	s      *Server
	c      *conn
	w      http.ResponseWriter
	r      *http.Request
	began  time.Time
	target target
	facts  policy.Request
	http   policy.HTTP
	trace  string
	gate   *gate // nil where tokens are not looked at
	cancel context.CancelCauseFunc
	cause  func() error
	stop   func() bool // of closing the body with the context; may be nil

	upgrade bool // the client asks for a websocket
	grpc    bool
	allowed bool
	verdict policy.Decision // the last one
	status  int             // of the final answer, 0 before it
	sent    int64
	// received counts the body's bytes, for the access log alone.
	received atomic.Int64
	upstream time.Duration // until the application's answer began
}

// serve is the handler of every request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		panic(http.ErrAbortHandler) // unreachable: every connection is a conn
	}
	e := &exchange{s: s, c: c, w: w, r: r, began: time.Now()}
	s.metrics.open.Inc()
	defer e.end()
	if c.guard.switching.Load() {
		w.Header()["Connection"] = []string{"close"}
		e.upgrade = isUpgrade(r)
	}
	if fields(r.Header) > s.cfg.Limits.HeaderFields {
		e.answer(http.StatusRequestHeaderFieldsTooLarge)
		return
	}
	var err error
	if e.target, err = canonicalTarget(r); err != nil || !isMethod(r.Method) {
		e.answer(http.StatusBadRequest)
		return
	}
	e.grpc = isGRPC(r.Header)
	cleanHead(r.Header, e.upgrade)
	e.http = policy.HTTP{Method: r.Method, Host: e.target.name, Path: e.target.path, Header: e.field}
	e.facts = policy.Request{Connection: c.peer.Connection, HTTP: &e.http}
	set := s.house.Set()
	if !e.authenticate(set) {
		return
	}
	c.peer.introduce(r.Header)
	e.trace = traceOf(r.Header)
	if !e.judge(set) {
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	e.cancel, e.cause = cancel, func() error { return context.Cause(ctx) }
	c.add(e)
	defer c.remove(e)
	// A change between the verdict and the entry above found nothing to end.
	if now := s.house.Set(); now != set && !e.judge(now) {
		return
	}
	s.house.Allowed(&c.peer, &e.http, &e.verdict)
	e.forward(ctx)
}

// fields counts the fields of a header, those of one name each for itself.
func fields(h http.Header) (n int) {
	for _, values := range h {
		n += len(values)
	}
	return n
}

// judge asks the policies, and answers where they refuse.
func (e *exchange) judge(set *policy.Set) bool {
	d := set.DecideRequest(&e.facts)
	e.verdict = d
	if e.allowed = d.Allowed; !e.allowed {
		e.s.house.Refused(e.refusal(d, false))
		e.answer(http.StatusForbidden)
	}
	return e.allowed
}

func (e *exchange) refusal(d policy.Decision, late bool) Refusal {
	return Refusal{Peer: e.c.peer, Decision: d, Method: e.http.Method, Host: e.http.Host, Path: e.http.Path, Late: late}
}

func (e *exchange) field(name string) (string, bool) {
	return lookup(e.r.Header, e.target.host, name)
}

// answer gives an answer of the proxy's own, which says no more than its
// status. To gRPC the codes are translated as its protocol demands.
func (e *exchange) answer(status int) {
	h := e.w.Header()
	if code, ok := grpcCodes[status]; ok && e.grpc {
		h["Content-Type"], h["Grpc-Status"] = []string{"application/grpc"}, []string{code}
		h["Grpc-Message"] = []string{strings.ToLower(http.StatusText(status))}
		e.status = http.StatusOK
		e.w.WriteHeader(http.StatusOK)
		return
	}
	text := http.StatusText(status) + "\n"
	h["Content-Type"] = []string{"text/plain; charset=utf-8"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	e.status = status
	e.w.WriteHeader(status)
	if n, err := e.w.Write([]byte(text)); err == nil && e.r.Method != http.MethodHead {
		e.sent = int64(n)
	}
}

// grpcCodes are UNAUTHENTICATED, PERMISSION_DENIED, UNAVAILABLE and
// DEADLINE_EXCEEDED.
var grpcCodes = map[int]string{
	http.StatusUnauthorized:   "16",
	http.StatusForbidden:      "7",
	http.StatusBadGateway:     "14",
	http.StatusGatewayTimeout: "4",
}

// isGRPC reports whether the request is a call of gRPC over HTTP/2.
func isGRPC(h http.Header) bool {
	v := h["Content-Type"]
	if len(v) != 1 {
		return false
	}
	rest, ok := strings.CutPrefix(v[0], "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// isUpgrade reports whether the request asks for a websocket (RFC 6455 §4.1),
// the one upgrade that is forwarded. An upgrade to HTTP/2 would carry requests
// that nobody judges.
func isUpgrade(r *http.Request) bool {
	return r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) && r.ProtoMajor == 1 &&
		len(r.Header["Upgrade"]) == 1 && strings.EqualFold(r.Header["Upgrade"][0], "websocket") &&
		hasToken(strings.Join(r.Header["Connection"], ","), "upgrade")
}

// end counts and writes down the request that is over.
func (e *exchange) end() {
	took := time.Since(e.began)
	e.s.metrics.open.Dec()
	e.s.metrics.done(e.status, e.allowed, took)
	e.c.pair.request(e.status, e.allowed, took)
	if e.s.cfg.Access != nil {
		e.log(took)
	}
}
