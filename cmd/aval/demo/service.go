// This file holds the demo's application: a small HTTP service that knows
// nothing of Aval. It says hello, and where it has an upstream, it asks it.

package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// reply is what a service of the demo answers.
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
	fresh          *http.Client
	kept           keptConnection
}

func newApplication(name, upstream string) *application {
	return &application{
		name:     name,
		upstream: upstream,
		fresh:    &http.Client{Timeout: upstreamTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
	}
}

// handler answers on the named port.
func (a *application) handler(port string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { a.answer(w, r, port, a.askFresh) })
	mux.HandleFunc("GET /keep", func(w http.ResponseWriter, r *http.Request) { a.answer(w, r, port, a.kept.ask) })
	return mux
}

// answer says who answers, and what the upstream said where there is one.
func (a *application) answer(w http.ResponseWriter, r *http.Request, port string, ask asker) {
	out := reply{Service: a.name, PID: os.Getpid(), UID: os.Getuid(), Port: port}
	code := http.StatusOK
	if a.upstream != "" {
		var err error
		out.Upstream, out.Connection, err = ask(r.Context(), a.upstream)
		if err != nil {
			out.Error, code = err.Error(), http.StatusBadGateway
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A client that went away needs no answer.
	_ = json.NewEncoder(w).Encode(out)
}

// asker makes one call, and tells whether its connection was "new" or
// "reused".
type asker func(ctx context.Context, url string) (*reply, string, error)

func (a *application) askFresh(ctx context.Context, url string) (*reply, string, error) {
	out, err := ask(ctx, a.fresh, url)
	return out, "new", err
}

// ask makes one call to a service of the demo. The error is for a call that
// was not answered with 200; the reply may be there even so.
func ask(ctx context.Context, client *http.Client, url string) (*reply, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	return readReply(url, response)
}

// readReply reads and closes an answer to its end.
func readReply(url string, response *http.Response) (*reply, error) {
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	var out reply
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return &out, fmt.Errorf("%s answered %s: %s", url, response.Status, out.Error)
	}
	return &out, nil
}

// keptConnection asks over one connection as long as that lives. Unlike
// http.Transport it never repeats a request on another connection, and never
// changes the connection for a reason of its own.
type keptConnection struct {
	mu     sync.Mutex
	conn   net.Conn // nil before the first call and after a failed one
	reader *bufio.Reader
}

func (k *keptConnection) ask(ctx context.Context, url string) (*reply, string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	connection := "reused"
	if k.conn == nil {
		connection = "new"
		dialer := net.Dialer{Timeout: upstreamTimeout}
		if k.conn, err = dialer.DialContext(ctx, "tcp", request.URL.Host); err != nil {
			return nil, connection, err
		}
		k.reader = bufio.NewReader(k.conn)
	}
	out, err := k.exchange(request)
	if out == nil {
		err = errors.Join(err, k.conn.Close())
		k.conn = nil
	}
	return out, connection, err
}

// exchange makes one request on the connection. Without a reply the
// connection is of no more use.
func (k *keptConnection) exchange(request *http.Request) (*reply, error) {
	if err := k.conn.SetDeadline(time.Now().Add(upstreamTimeout)); err != nil {
		return nil, err
	}
	if err := request.Write(k.conn); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(k.reader, request)
	if err != nil {
		return nil, err
	}
	return readReply(request.URL.String(), response)
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
