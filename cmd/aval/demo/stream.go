// This file holds the demo's own place on the Workload API: an open stream
// that notes when each identity came and went.

package demo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// viewBuffer holds what nobody waits for: more messages than the play causes.
const viewBuffer = 64

// view is the set of IDs on the stream from a moment on.
type view struct {
	at  time.Time
	ids []string
}

// stream is an open FetchX509SVID call of this process.
type stream struct {
	connection *grpc.ClientConn
	halt       context.CancelFunc
	reader     sync.WaitGroup
	views      chan view // closed when the stream ends; err says why
	err        error
}

// dialUnix makes a client of a Unix socket that need not be there yet. It
// tries again so soon that waiting is not part of what is measured.
func dialUnix(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: readyPause, Multiplier: 1, MaxDelay: readyPause},
			MinConnectTimeout: time.Second,
		}))
}

// openStream waits up to limit for the agent to answer with an SVID, and
// then reads the stream in a goroutine that close ends.
func openStream(ctx context.Context, socket string, limit time.Duration) (*stream, view, error) {
	connection, err := dialUnix(socket)
	if err != nil {
		return nil, view{}, fmt.Errorf("open the Workload API: %w", err)
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"))
	s := &stream{connection: connection, halt: cancel, views: make(chan view, viewBuffer)}
	late := time.AfterFunc(limit, cancel)
	defer late.Stop()
	var call workload.SpiffeWorkloadAPI_FetchX509SVIDClient
	var first view
	err = ready(ctx, limit, "the first SVID", func(context.Context) error {
		var err error
		call, err = workload.NewSpiffeWorkloadAPIClient(connection).FetchX509SVID(ctx, &workload.X509SVIDRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		first, err = receive(call)
		return err
	})
	if err != nil {
		cancel()
		connection.Close()
		return nil, view{}, err
	}
	s.reader.Go(func() { s.read(ctx, call) })
	return s, first, nil
}

// read hands on each message until the stream ends.
func (s *stream) read(ctx context.Context, call workload.SpiffeWorkloadAPI_FetchX509SVIDClient) {
	defer close(s.views)
	for {
		next, err := receive(call)
		if err != nil {
			s.err = err
			return
		}
		select {
		case s.views <- next:
		case <-ctx.Done():
			s.err = ctx.Err()
			return
		}
	}
}

// receive reads one message and notes its time.
func receive(call workload.SpiffeWorkloadAPI_FetchX509SVIDClient) (view, error) {
	message, err := call.Recv()
	if err != nil {
		return view{}, err
	}
	out := view{at: time.Now()}
	for _, svid := range message.GetSvids() {
		out.ids = append(out.ids, svid.GetSpiffeId())
	}
	return out, nil
}

// until waits for the message from which on the ID is there, or is not.
func (s *stream) until(ctx context.Context, id string, there bool) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	for {
		select {
		case next, ok := <-s.views:
			if !ok {
				return time.Time{}, fmt.Errorf("wait on the open stream for %s: %w", id, s.err)
			}
			if slices.Contains(next.ids, id) == there {
				return next.at, nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("wait %s on the open stream for %s: %w", recordLimit, id, ctx.Err())
		}
	}
}

// close ends the stream. It may be called on nil.
func (s *stream) close() {
	if s == nil {
		return
	}
	s.halt()
	s.reader.Wait()
	s.connection.Close()
}
