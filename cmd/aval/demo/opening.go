// This file holds the first half of the play: the trust domain, the node,
// the documents, the services and their identities.

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
)

// makeTrustDomain starts the server, which makes the root and its own
// intermediate, and begins to follow its records.
func (p *play) makeTrustDomain(ctx context.Context) error {
	s := p.site
	var err error
	if p.papers, err = writePapers(s); err != nil {
		return err
	}
	args := []string{"server", "--trust-domain", trustDomain, "--data-dir", s.path("server"),
		"--listen", s.server, "--http-listen", s.serverHTTP, "--admin-socket", s.adminSocket(), "--min-ttl", minTTL}
	p.showAval(args...)
	p.serverStart = time.Now()
	if _, err := p.cast.start("server", "aval", os.Geteuid(), args...); err != nil {
		return err
	}
	if err := ready(ctx, startLimit, "the server", p.healthy(s.serverHTTP)); err != nil {
		return err
	}
	p.result.ServerReadyMS = millis(time.Since(p.serverStart))

	if p.connection, err = dialUnix(s.adminSocket()); err != nil {
		return fmt.Errorf("open the admin socket: %w", err)
	}
	p.admin = wire.NewAdminClient(p.connection)
	if p.records, err = follow(ctx, p.admin); err != nil {
		return err
	}
	status, err := p.admin.ServerStatus(ctx, &wire.ServerStatusRequest{})
	if err != nil {
		return fmt.Errorf("ask the server's status: %w", err)
	}
	p.out.good("trust domain %s, ready after %.0f ms", status.GetTrustDomain(), p.result.ServerReadyMS)
	rows := make([][]string, 0, len(status.GetAuthorities()))
	for _, a := range status.GetAuthorities() {
		rows = append(rows, []string{a.GetRole(), "serial " + shorten(a.GetSerial()), "valid until " + day(time.UnixMilli(a.GetNotAfter()))})
	}
	p.out.table(rows)
	p.result.expect(status.GetTrustDomain() == trustDomain, "the server's trust domain is %q", status.GetTrustDomain())
	return nil
}

// joinNode makes a token and starts the agent with it. The demo itself is
// the first workload: it holds a Workload API stream open from here on.
func (p *play) joinNode(ctx context.Context) error {
	s := p.site
	out, err := p.runAval(ctx, "token", "create", "--ttl", "10m", "--node", "node-1", "--attribute", "site=demo", "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, &p.token); err != nil {
		return fmt.Errorf("read what token create printed: %w", err)
	}
	tokenFile := s.path("keys", "join-token")
	if err := os.WriteFile(tokenFile, []byte(p.token.Token+"\n"), 0o600); err != nil {
		return err
	}
	p.out.comment("the token goes into keys/join-token; then, the registration of this demo's own process:")
	if _, err := p.apply(ctx, p.papers.observer); err != nil {
		return err
	}
	args := []string{"agent", "--server", p.token.Server, "--join-token-file", tokenFile, "--bundle-hash", p.token.BundleHash,
		"--data-dir", s.path("agent"), "--socket", s.agentSocket(), "--http-listen", s.agentHTTP}
	p.showAval(args...)
	start := time.Now()
	if _, err := p.cast.start("agent", "aval", os.Geteuid(), args...); err != nil {
		return err
	}
	var first view
	if p.stream, first, err = openStream(ctx, s.agentSocket(), startLimit); err != nil {
		return err
	}
	p.result.FirstSVIDMS = millis(first.at.Sub(start))
	joined, err := p.records.await(ctx, 0, "the node's attestation", func(r record) bool { return r.Kind == audit.KindNodeAttested })
	if err != nil {
		return err
	}
	p.out.good("%s joined, entry %d of the authority log", nodeOf(joined), joined.Index)
	p.out.good("first SVID %s, %.0f ms after the agent's start", strings.Join(first.ids, " "), p.result.FirstSVIDMS)
	return nil
}

// nodeOf names the node of an attestation.
func nodeOf(r record) string {
	if r.Node != "" {
		return r.Node
	}
	return r.SPIFFEID
}

// applyDocuments measures a registration's way to an open stream and back,
// and applies what the rest of the play needs.
func (p *play) applyDocuments(ctx context.Context) error {
	p.out.comment("how fast is one? A registration for this process, with its Workload API stream open:")
	probe, err := parseOne(p.papers.probe)
	if err != nil {
		return err
	}
	data, err := probe.JSON()
	if err != nil {
		return fmt.Errorf("read %s: %w", p.papers.probe, err)
	}
	p.showAval("apply", "-f", p.papers.probe)
	if _, err := p.admin.Apply(ctx, &wire.ApplyRequest{Documents: [][]byte{data}}); err != nil {
		return fmt.Errorf("apply %s: %w", probe.Key(), err)
	}
	if p.result.RegisterToSVIDMS, err = p.delay(ctx, time.Now(), true); err != nil {
		return err
	}
	p.showAval("delete", "registration", "probe", "-n", namespace)
	if _, err := p.admin.Delete(ctx, &wire.DeleteRequest{Keys: []*wire.ResourceKey{wire.FromKey(probe.Key())}}); err != nil {
		return fmt.Errorf("delete %s: %w", probe.Key(), err)
	}
	if p.result.DeleteToGoneMS, err = p.delay(ctx, time.Now(), false); err != nil {
		return err
	}
	p.out.good("the SVID is on the stream %s apply returned, and gone %s delete did", after(p.result.RegisterToSVIDMS), after(p.result.DeleteToGoneMS))
	for _, file := range []string{p.papers.services, p.papers.policies} {
		if _, err := p.apply(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// delay measures from the return of a change until the probe's SVID is on
// the open stream, or gone from it, in milliseconds.
func (p *play) delay(ctx context.Context, returned time.Time, there bool) (float64, error) {
	at, err := p.stream.until(ctx, spiffeID("probe"), there)
	return millis(max(0, at.Sub(returned))), err
}

// after words a delay that may be none.
func after(ms float64) string {
	if ms == 0 {
		return "before"
	}
	return fmt.Sprintf("%.1f ms after", ms)
}

// parseOne reads the only document of a file.
func parseOne(file string) (document.Document, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return document.Document{}, err
	}
	docs, err := document.Parse(file, data)
	if err != nil {
		return document.Document{}, err
	}
	if len(docs) != 1 {
		return document.Document{}, fmt.Errorf("read %s: it holds %d documents, not one", file, len(docs))
	}
	return docs[0], nil
}

// startServices starts three applications, each a copy of the binary with a
// user of its own where that is possible, and a proxy beside each.
func (p *play) startServices(ctx context.Context) error {
	s := p.site
	for _, name := range serviceNames {
		args := []string{"proxy", "--config", s.path("proxy", name+".yaml"), "--http-listen", s.proxyHTTP[name]}
		p.out.command(append([]string{s.path("bin", name)}, args...)...)
		if _, err := p.cast.start(name+" proxy", name, s.uid(name), args...); err != nil {
			return err
		}
	}
	for _, name := range serviceNames {
		args := []string{"demo-service", "--name", name, "--listen", s.app[name]}
		if name == "api" {
			args = append(args, "--status", s.apiStatus)
		} else {
			args = append(args, "--upstream", "http://"+s.outbound[name]+"/")
		}
		p.out.command(append([]string{s.path("bin", name)}, args...)...)
		if _, err := p.cast.start(name, name, s.uid(name), args...); err != nil {
			return err
		}
	}
	rows := make([][]string, 0, len(serviceNames))
	for _, name := range serviceNames {
		if err := ready(ctx, startLimit, name+"'s proxy", p.healthy(s.proxyHTTP[name])); err != nil {
			return err
		}
		if err := ready(ctx, startLimit, name, reach(s.app[name])); err != nil {
			return err
		}
		rows = append(rows, []string{name, "port " + port(s.app[name]), fmt.Sprintf("uid %d", s.uid(name)), "unix.path " + s.path("bin", name)})
	}
	p.out.good("running, each with a proxy of its own:")
	p.out.table(rows)
	return nil
}

// showIdentities reads from the authority log what was issued to whom.
func (p *play) showIdentities(ctx context.Context) error {
	p.showAval("audit", "export", "-o", "jsonl", "--kind", "issuance")
	rows := [][]string{{"SPIFFE ID", "SERIAL", "LIFETIME", "ENTRY"}}
	for _, name := range serviceNames {
		r, err := p.records.await(ctx, 0, "the leaf of "+name, issuanceTo(spiffeID(name)))
		if err != nil {
			return err
		}
		p.issued[name] = r
		lifetime := r.NotAfter.Sub(r.Time).Round(time.Second)
		rows = append(rows, []string{r.SPIFFEID, r.Serial, lifetime.String(), fmt.Sprint(r.Index)})
		p.result.expect(r.Serial != "" && lifetime > 0, "the record of %s's leaf has serial %q and lifetime %s", name, r.Serial, lifetime)
	}
	p.out.table(rows)
	return nil
}

// shorten keeps the beginning of a long serial.
func shorten(serial string) string {
	if len(serial) <= 16 {
		return serial
	}
	return serial[:16] + "…"
}

// day writes a time to the minute.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
