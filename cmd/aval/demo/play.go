// This file holds the play: its state, the order of its steps, and what the
// audience is invited to try at the end.

package demo

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/aval-id/aval/identity/wire"
)

// startLimit is how long a process may take to become ready.
const startLimit = 15 * time.Second

// play is one run: what its steps share.
type play struct {
	options Options
	out     *narrator
	site    *site
	cast    *cast
	papers  papers
	client  *http.Client
	result  Result

	connection *grpc.ClientConn // to the server's admin socket
	admin      wire.AdminClient
	records    *records
	stream     *stream

	serverStart time.Time
	token       joinToken
	issued      map[string]record // service → its first leaf's record
}

// joinToken is what `aval token create -o json` prints.
type joinToken struct {
	Token      string `json:"token"`
	Server     string `json:"server"`
	BundleHash string `json:"bundle_hash"`
	Command    string `json:"command"`
}

// step is one step of the play.
type step struct {
	title string
	act   func(context.Context) error
}

func newPlay(o Options, s *site, c *cast) *play {
	return &play{
		options: o,
		out:     &narrator{w: o.narration(), color: o.Color, dir: s.dir},
		site:    s,
		cast:    c,
		client:  &http.Client{Timeout: upstreamTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
		result:  Result{TrustDomain: trustDomain},
		issued:  map[string]record{},
	}
}

func (p *play) steps() []step {
	return []step{
		{"A trust domain", p.makeTrustDomain},
		{"A node joins", p.joinNode},
		{"Registrations and policies", p.applyDocuments},
		{"Services and their proxies", p.startServices},
		{"Identities are issued", p.showIdentities},
		{"web calls api", p.allowedCall},
		{"intruder calls api", p.deniedCall},
		{"Plaintext, permissive and strict", p.plaintextCalls},
		{"Certificates rotate under load", p.rotate},
		{"The record is verified", p.verifyRecord},
	}
}

// close ends what the play itself holds open.
func (p *play) close() {
	p.stream.close()
	p.records.stop()
	if p.connection != nil {
		p.connection.Close()
	}
	p.client.CloseIdleConnections()
}

// runAval shows a command of the binary and runs it.
func (p *play) runAval(ctx context.Context, args ...string) ([]byte, error) {
	p.showAval(args...)
	return p.site.aval(ctx, args...)
}

// showAval shows a command of the binary.
func (p *play) showAval(args ...string) {
	p.out.command(append([]string{p.site.path("bin", "aval")}, args...)...)
}

// apply applies one file as a person would, and tells when the command had
// ended.
func (p *play) apply(ctx context.Context, file string) (time.Time, error) {
	out, err := p.runAval(ctx, "apply", "-f", file)
	returned := time.Now()
	p.quote(out)
	return returned, err
}

// quote repeats what a command printed.
func (p *play) quote(out []byte) {
	for line := range strings.Lines(string(out)) {
		p.out.say("%s", strings.TrimRight(line, "\n"))
	}
}

// healthy asks a process's health endpoint.
func (p *play) healthy(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := p.client.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s/readyz answers %s", address, response.Status)
		}
		return nil
	}
}

// invite prints where everything is and what to try.
func (p *play) invite() {
	s := p.site
	p.out.title("\nEverything is still running, until Ctrl-C.")
	p.out.table([][]string{
		{"Workload API", "unix://" + s.agentSocket()},
		{"admin socket", "unix://" + s.adminSocket()},
		{"metrics of the server", "http://" + s.serverHTTP + "/metrics"},
		{"documents, logs", s.path("documents") + ", " + s.path("log")},
	})
	p.out.title("\nTry, in another terminal:")
	p.enter()
	p.out.command("curl", "http://"+s.app["web"]+"/")
	p.showAval("audit", "tail", "-f")
	p.showAval("get", "registrations", "-n", namespace)
	p.showAval("svid", "fetch", "--write", "svid")
	p.out.shell("bin/aval explain pid $$")
}

// introduce says where the play is, and how to type along.
func (p *play) introduce() {
	p.out.title("Aval on one machine, in " + p.site.dir)
	p.out.comment("each command below can be typed there:")
	p.enter()
}

// enter says how to type along in another terminal.
func (p *play) enter() {
	p.out.shell("cd " + shellLine([]string{p.site.dir}))
	p.out.shell("export AVAL_ADMIN_SOCKET=$PWD/admin/server.sock AVAL_SOCKET=$PWD/run/agent.sock")
}
