// This file holds the way to the application and back: one round trip, whose
// bodies stream in both directions.

package request

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"time"
)

// forward sends the request on and its answer back.
func (e *exchange) forward(ctx context.Context) {
	early := &interim{w: e.w}
	if e.r.ProtoAtLeast(1, 1) {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: early.pass})
	}
	out := e.outgoing(ctx)
	if out.Body != nil && e.r.ProtoMajor == 1 {
		http.NewResponseController(e.w).EnableFullDuplex()
	}
	if e.stop != nil {
		defer e.stop()
	}
	began := time.Now()
	res, err := e.transport().RoundTrip(out)
	e.upstream = time.Since(began)
	early.end()
	if err != nil {
		e.failed(err)
		return
	}
	defer res.Body.Close()
	e.c.answered()
	if res.StatusCode == http.StatusSwitchingProtocols {
		e.tunnel(ctx, res)
		return
	}
	e.status = res.StatusCode
	e.copyHead(res)
	if err := e.copyBody(res); err != nil {
		e.broken(err)
		return
	}
	e.copyTrailer(res)
}

// transport picks the application's protocol.
func (e *exchange) transport() http.RoundTripper {
	if !e.upgrade && (e.c.peer.H2C || e.grpc && e.r.ProtoMajor == 2) {
		return e.s.two
	}
	return e.s.one
}

// outgoing is the request as the application gets it. Its header is the one
// that came, cleaned.
//
// Its body is closed by the server alone, and after the answer is on its way:
// to close it is to wait for what the client may never send.
func (e *exchange) outgoing(ctx context.Context) *http.Request {
	r := e.r
	out := (&http.Request{Method: r.Method, URL: e.target.url(e.c.peer.Forward), Host: e.target.host, Header: r.Header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return out
	}
	out.Body, out.ContentLength = r.Body, r.ContentLength
	if e.s.cfg.Access != nil {
		out.Body = counted{r.Body, e}
	}
	if r.ProtoMajor == 2 {
		body := &breakable{ReadCloser: out.Body}
		// The client's half of an HTTP/2 stream may be silent for as long as it
		// lasts, and net/http waits for it alone.
		e.stop = context.AfterFunc(ctx, func() { body.Close() })
		out.Body = body
	}
	if r.ContentLength < 0 {
		out.TransferEncoding = []string{"chunked"} // or net/http waits to see whether a GET has a body
		if len(r.Trailer) > 0 {
			out.Trailer = make(http.Header)
			for name := range r.Trailer {
				if !isOwn(name) && !framing(name) && !e.gate.claims(name) {
					out.Trailer[name] = nil
				}
			}
			out.Body = &trailed{ReadCloser: out.Body, from: r, to: out.Trailer}
		}
	}
	return out
}

// breakable is a body of HTTP/2, where closing ends a read that waits. It may
// be closed by anyone, once.
type breakable struct {
	io.ReadCloser
	once sync.Once
}

func (b *breakable) Close() (err error) {
	b.once.Do(func() { err = b.ReadCloser.Close() })
	return err
}

// trailed hands over the trailer fields that were announced, once the body
// has ended. Others, and the proxy's own, stay behind.
type trailed struct {
	io.ReadCloser
	from *http.Request
	to   http.Header
}

func (t *trailed) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	if err == io.EOF {
		for name := range t.to {
			if v, ok := t.from.Trailer[name]; ok && v != nil {
				t.to[name] = v
			}
		}
	}
	return n, err
}

// failed answers where there is no answer of the application's.
func (e *exchange) failed(err error) {
	var timeout net.Error
	switch {
	case errors.Is(e.cause(), errNoLongerAllowed):
		e.answer(http.StatusForbidden)
	case e.c.refused.Load():
		e.answer(http.StatusBadRequest)
	case e.r.Context().Err() != nil:
		e.c.takenBack()
		panic(http.ErrAbortHandler) // the client has gone
	case errors.As(err, &timeout) && timeout.Timeout():
		e.answer(http.StatusGatewayTimeout)
	default:
		e.s.log.Warn("application gives no answer", "error", err)
		e.answer(http.StatusBadGateway)
	}
}

// broken ends an answer that cannot be finished, so that the client knows.
func (e *exchange) broken(error) {
	if e.grpc && e.r.ProtoMajor == 2 && errors.Is(e.cause(), errNoLongerAllowed) {
		h := e.w.Header()
		h[http.TrailerPrefix+"Grpc-Status"] = []string{grpcCodes[http.StatusForbidden]}
		h[http.TrailerPrefix+"Grpc-Message"] = []string{"forbidden"}
		return
	}
	panic(http.ErrAbortHandler)
}

// copyHead writes status and header. Where the body's length is not known the
// client may wait for them before there is a body.
func (e *exchange) copyHead(res *http.Response) {
	dropHopByHop(res.Header)
	h := e.w.Header()
	maps.Copy(h, res.Header)
	if _, ok := res.Header["Content-Type"]; !ok {
		h["Content-Type"] = nil // or net/http guesses one
	}
	for name := range res.Trailer {
		h.Add("Trailer", name)
		delete(h, "Content-Length") // HTTP/1.1 has trailers in chunked bodies alone
	}
	e.w.WriteHeader(res.StatusCode)
	if (res.ContentLength < 0 || len(res.Trailer) > 0) && res.Body != http.NoBody {
		http.NewResponseController(e.w).Flush()
	}
}

// copyBody passes every piece on as it comes.
func (e *exchange) copyBody(res *http.Response) error {
	if res.Body == http.NoBody {
		return nil
	}
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	control := http.NewResponseController(e.w)
	for {
		n, err := res.Body.Read(b[:])
		if n > 0 {
			m, werr := e.w.Write(b[:n])
			if e.sent += int64(m); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n > 0 {
			if err := control.Flush(); err != nil {
				return err
			}
		}
	}
}

type buffer [32 << 10]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// copyTrailer sets the trailer fields, announced or not.
func (e *exchange) copyTrailer(res *http.Response) {
	if len(res.Trailer) == 0 {
		return
	}
	h := e.w.Header()
	for name, values := range res.Trailer {
		if framing(name) {
			continue
		}
		h[http.TrailerPrefix+name] = values
	}
}

// interim passes answers like 103 on while the round trip lasts.
type interim struct {
	mu   sync.Mutex
	w    http.ResponseWriter // guarded by mu
	over bool                // guarded by mu
}

func (i *interim) pass(code int, header textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	// net/http says 100 by itself when the body is first read.
	if i.over || code == http.StatusContinue || code == http.StatusSwitchingProtocols {
		return nil
	}
	dropHopByHop(http.Header(header))
	h := i.w.Header()
	maps.Copy(h, http.Header(header))
	i.w.WriteHeader(code)
	for name := range header {
		delete(h, name)
	}
	return nil
}

func (i *interim) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.over = true
}
