// This file holds the demo's application: a small HTTP service that knows
// nothing of Aval. It says hello, and where it has an upstream, it asks it.

package demo

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// Reply is what a service of the demo answers.
type reply struct {
	Service  string `json:"service"`
	PID      int    `json:"pid"`
	UID      int    `json:"uid"`
	Port     string `json:"port"`
	Upstream *reply `json:"upstream,omitempty"`
	// Connection says of an answer with an upstream whether the connection
	// to it was "new" or "reused".
	Connection string `json:"connection,omitempty"`
	Error      string `json:"error,omitempty"`
}

// upstreamTimeout bounds one call to an upstream.
const upstreamTimeout = 5 * time.Second

// Service runs one application of the demo until the context ends. Its
// arguments are flags: --name NAME, --listen HOST:PORT, and optionally
// --status HOST:PORT, a second port, and --upstream URL.
//
// GET / asks the upstream on a new connection, GET /keep on one that is kept
// open; without an upstream both only say hello.
func Service(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("demo-service", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	name := flags.String("name", "", "name of the service")
	listen := flags.String("listen", "", "address of the service")
	status := flags.String("status", "", "address of a second port")
	upstream := flags.String("upstream", "", "URL of the service to ask")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("demo-service: %w", err)
	}
	if *name == "" || *listen == "" || flags.NArg() > 0 {
		return errors.New("demo-service: --name and --listen are required, and nothing but flags is taken")
	}
	app := newApplication(*name, *upstream)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, *listen, app.handler("main")) })
	if *status != "" {
		group.Go(func() error { return serve(ctx, *status, app.handler("status")) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("demo-service %s: %w", *name, err)
	}
	return nil
}

// application is one service: its name, and two ways to its upstream.
type application struct {
	name, upstream string
	fresh, kept    *http.Client
}

func newApplication(name, upstream string) *application {
	return &application{
		name:     name,
		upstream: upstream,
		fresh:    &http.Client{Timeout: upstreamTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
		kept:     &http.Client{Timeout: upstreamTimeout, Transport: &http.Transport{MaxConnsPerHost: 1}},
	}
}

// handler answers on the named port.
func (a *application) handler(port string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { a.answer(w, r, port, a.fresh) })
	mux.HandleFunc("GET /keep", func(w http.ResponseWriter, r *http.Request) { a.answer(w, r, port, a.kept) })
	return mux
}

// answer says who answers, and what the upstream said where there is one.
func (a *application) answer(w http.ResponseWriter, r *http.Request, port string, client *http.Client) {
	out := reply{Service: a.name, PID: os.Getpid(), UID: os.Getuid(), Port: port}
	code := http.StatusOK
	if a.upstream != "" {
		var err error
		out.Upstream, out.Connection, err = ask(r.Context(), client, a.upstream)
		if err != nil {
			out.Error, code = err.Error(), http.StatusBadGateway
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A client that went away needs no answer.
	_ = json.NewEncoder(w).Encode(out)
}

// ask makes one call to a service of the demo. The error is for a call that
// was not answered with 200; the reply may be there even so.
func ask(ctx context.Context, client *http.Client, url string) (*reply, string, error) {
	connection := "new"
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(g httptrace.GotConnInfo) {
			if g.Reused {
				connection = "reused"
			}
		},
	})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	var out reply
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&out); err != nil {
		return nil, connection, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	// What is left unread would keep the connection from being used again.
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return nil, connection, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return &out, connection, fmt.Errorf("%s answered %s: %s", url, response.Status, out.Error)
	}
	return &out, connection, nil
}

// serve answers on addr until the context ends, then gives open requests a
// second.
func serve(ctx context.Context, addr string, h http.Handler) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			return server.Close()
		}
		return nil
	})
	return group.Wait()
}
