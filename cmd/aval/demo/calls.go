// This file holds the calls of the play: the one that is allowed, the one
// that is refused, and the ones without TLS.

package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/audit"
)

const (
	wantTLSVersion = "1.3"
	wantGroup      = "X25519MLKEM768"
	// strictLimit is how long an open connection may live on after the
	// policy that forbids it.
	strictLimit = 2 * time.Second
)

// reach connects and hangs up: something listens there.
func reach(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// allowedCall lets web call api and tells from the record who was
// authenticated.
func (p *play) allowedCall(ctx context.Context) error {
	url := "http://" + p.site.app["web"] + "/"
	p.out.command("curl", url)
	from, start := p.records.mark(), time.Now()
	answer, err := ask(ctx, p.client, url)
	if err != nil {
		return err
	}
	p.result.FirstCallMS = millis(time.Since(start))
	p.result.StartToCallMS = millis(time.Since(p.serverStart))
	if answer.Upstream == nil || answer.Upstream.Service != "api" {
		return fmt.Errorf("call api through web: the answer is not api's: %+v", *answer)
	}
	r, err := p.records.await(ctx, from, "the call from web to api", inbound(audit.VerdictAllowed, mainPort))
	if err != nil {
		return err
	}
	a := Allowed{ClientID: r.ClientID, ServerID: r.ServerID, ClientSerial: r.ClientSerial, ServerSerial: r.ServerSerial,
		TLSVersion: r.TLSVersion, Group: r.Group, Policy: r.Policy}
	p.result.Allowed = a
	p.out.good("answered by %s (pid %d) in %.1f ms, over mTLS between the two proxies:", answer.Upstream.Service, answer.Upstream.PID, p.result.FirstCallMS)
	p.out.table([][]string{
		{"api's proxy authenticated", a.ClientID, "serial " + shorten(a.ClientSerial)},
		{"web's proxy authenticated", a.ServerID, "serial " + shorten(a.ServerSerial)},
		{"TLS " + a.TLSVersion, a.Group, "allowed by " + a.Policy},
	})
	p.result.expect(a.ClientID == spiffeID("web") && a.ServerID == spiffeID("api"), "the call was recorded between %q and %q", a.ClientID, a.ServerID)
	p.result.expect(a.TLSVersion == wantTLSVersion && a.Group == wantGroup, "the call was made with TLS %q and %q", a.TLSVersion, a.Group)
	return nil
}

// deniedCall lets intruder, which has an identity too, do the same.
func (p *play) deniedCall(ctx context.Context) error {
	url := "http://" + p.site.app["intruder"] + "/"
	p.out.command("curl", url)
	from := p.records.mark()
	if answer, err := ask(ctx, p.client, url); err == nil {
		return fmt.Errorf("call api through intruder: it was answered: %+v", *answer)
	}
	r, err := p.records.await(ctx, from, "the call from intruder to api", inbound(audit.VerdictDenied, mainPort))
	if err != nil {
		return err
	}
	d := Denied{ClientID: r.ClientID, Reason: r.Reason, Policies: slices.Sorted(slices.Values(r.Policies))}
	p.result.Denied = d
	p.out.good("refused: the certificate of %s is valid, and no policy lets it in (%s)", d.ClientID, d.Reason)
	if r.Detail != "" {
		p.out.comment("%s", r.Detail)
	}
	p.out.say("policies consulted: %s", strings.Join(d.Policies, ", "))
	p.result.expect(d.ClientID == spiffeID("intruder") && d.Reason == audit.ReasonPolicyDenied, "the intruder's call was recorded as %q of %q", d.Reason, d.ClientID)
	p.result.expect(slices.Equal(d.Policies, apiPolicies), "the policies consulted are %v, not %v", d.Policies, apiPolicies)
	return nil
}

// plaintextCalls calls api's second port without TLS before and after the
// mode document says strict. The connection that is open meanwhile tells
// when the change has arrived.
func (p *play) plaintextCalls(ctx context.Context) error {
	url := "http://" + p.site.apiInbound2 + "/"
	p.out.command("curl", url)
	from := p.records.mark()
	open, err := openPlaintext(ctx, p.site.apiInbound2)
	if err != nil {
		return fmt.Errorf("call api without TLS: %w", err)
	}
	defer open.Close()
	r, err := p.records.await(ctx, from, "the plaintext call", inbound(audit.VerdictAllowed, statusPort))
	if err != nil {
		return err
	}
	p.result.Plaintext.Permissive = "allowed"
	p.out.good("let through by %s in mode %s, and recorded (%s)", r.Policy, r.Mode, r.Reason)
	p.result.expect(r.Reason == audit.ReasonPlaintextAllowed && r.Mode == "PERMISSIVE", "the plaintext call was recorded as %q in mode %q", r.Reason, r.Mode)

	returned, err := p.apply(ctx, p.papers.strict)
	if err != nil {
		return err
	}
	closed, err := untilClosed(open, strictLimit)
	if err != nil {
		return fmt.Errorf("wait for the open plaintext connection to be closed: %w", err)
	}
	p.result.Plaintext.StrictMS = millis(max(0, closed.Sub(returned)))
	p.out.good("the connection that was open is closed %s apply returned", after(p.result.Plaintext.StrictMS))

	p.out.command("curl", url)
	from = p.records.mark()
	if answer, err := ask(ctx, p.client, url); err == nil {
		return fmt.Errorf("call api without TLS where the mode is strict: it was answered: %+v", *answer)
	}
	r, err = p.records.await(ctx, from, "the refused plaintext call", func(r record) bool {
		return inbound(audit.VerdictDenied, statusPort)(r) && r.Reason != audit.ReasonPolicyChanged
	})
	if err != nil {
		return err
	}
	p.result.Plaintext.Strict = "refused"
	p.out.good("refused in mode %s, set by %s, and recorded (%s)", r.Mode, r.ModeSource, r.Reason)
	p.result.expect(r.Reason == audit.ReasonPlaintextRefused && r.Mode == "STRICT", "the strict refusal was recorded as %q in mode %q", r.Reason, r.Mode)
	return nil
}

// openPlaintext makes one HTTP request and leaves its connection open.
func openPlaintext(ctx context.Context, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := requestOn(ctx, c, address); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// requestOn makes one HTTP request on a connection.
func requestOn(ctx context.Context, c net.Conn, address string) error {
	if err := c.SetDeadline(time.Now().Add(upstreamTimeout)); err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return err
	}
	if err := request.Write(c); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", response.Status)
	}
	return nil
}

// untilClosed waits until the other side closes the connection.
func untilClosed(c net.Conn, limit time.Duration) (time.Time, error) {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return time.Time{}, err
	}
	_, err := c.Read(make([]byte, 1))
	now := time.Now()
	var late net.Error
	switch {
	case err == nil:
		return now, errors.New("data came instead")
	case errors.As(err, &late) && late.Timeout():
		return now, err
	default:
		return now, nil
	}
}
