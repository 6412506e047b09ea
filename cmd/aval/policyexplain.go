// This file holds policy explain and policy who-can: what policies say about
// one peer, and about all of them.

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/policy"
	"github.com/spf13/cobra"
)

// plaintextPeer is how a peer without identity is written.
const plaintextPeer = "plaintext"

// requestFlags say what is asked about.
type requestFlags struct {
	port               uint16
	method, path, host string
	headers            []string
	source             string
	sni                string
	claims             string
}

func (f *requestFlags) declare(cmd *cobra.Command) {
	cmd.Flags().Uint16Var(&f.port, "port", 0, "port of the workload; without it, one that no policy names")
	cmd.Flags().StringVar(&f.method, "method", "", "method of an HTTP request")
	cmd.Flags().StringVar(&f.path, "path", "", "path of an HTTP request")
}

// request returns what is asked; HTTP is nil unless a flag is about it.
func (f *requestFlags) request() (policy.Request, error) {
	r := policy.Request{Connection: policy.Connection{Port: f.port, SNI: f.sni}}
	if f.source != "" {
		var err error
		if r.Source, err = netip.ParseAddr(f.source); err != nil {
			return r, usage(fmt.Errorf("policy: --source-ip: %w", err))
		}
	}
	if f.claims != "" {
		var err error
		if r.JWT, err = claimsOf(f.claims); err != nil {
			return r, usage(fmt.Errorf("policy: --claims %w", err))
		}
	}
	if f.method == "" && f.path == "" && f.host == "" && f.headers == nil && f.claims == "" {
		return r, nil
	}
	h := caseHTTP{Method: f.method, Host: f.host, Path: f.path, Headers: map[string]caseValues{}}
	for _, pair := range f.headers {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return r, usage(fmt.Errorf("policy: --header %q is not NAME=VALUE", pair))
		}
		h.Headers[name] = caseValues(value)
	}
	var err error
	if r.HTTP, err = h.request(); err != nil {
		return r, usage(fmt.Errorf("policy: a proxy refuses this request: %w", err))
	}
	return r, nil
}

func (c *cli) policyExplainCommand() *cobra.Command {
	var from estateFlags
	var asked requestFlags
	var peer, to string
	cmd := &cobra.Command{
		Use:   "explain --from ID --to WORKLOAD",
		Short: "Why a peer may connect to a workload, or may not",
		Long: `Explain judges a connection, or with --method, --path, --host, --header or
--claims a request, as the proxy in front of the workload would: the verdict, the rule
that decided, the mode and the document that set it, and every other rule that
matches. It exits with 1 where the answer is no.

The peer is a SPIFFE ID, or "plaintext". The workload is the NAMESPACE/NAME of
a registration, or its SPIFFE ID.`,
		Example: `  aval policy explain --from spiffe://example.org/ns/shop/sa/web --to shop/api --port 8080
  aval policy explain --from plaintext --to shop/api
  aval policy explain --from spiffe://example.org/web --to shop/api --method GET --claims '{"iss":"https://issuer.example.org","sub":"alice"}'
  aval policy explain --from spiffe://example.org/web --to shop/api --method GET --path /items -f documents/ --trust-domain example.org`,
		Args: takes(),
	}
	cmd.Flags().StringVar(&peer, "from", "", "SPIFFE ID of the peer, or plaintext")
	cmd.Flags().StringVar(&to, "to", "", "the workload")
	asked.declare(cmd)
	cmd.Flags().StringVar(&asked.host, "host", "", "host of an HTTP request")
	cmd.Flags().StringArrayVar(&asked.headers, "header", nil, "header of an HTTP request, NAME=VALUE; may be repeated")
	cmd.Flags().StringVar(&asked.source, "source-ip", "", "address of the peer; without it, rules about addresses do not allow")
	cmd.Flags().StringVar(&asked.claims, "claims", "", "claims of the token of an HTTP request, in JSON, of which signature and time are good")
	cmd.Flags().StringVar(&asked.sni, "sni", "", "server name of the TLS handshake")
	c.estateFlags(cmd, &from)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error { return c.policyExplain(ctx, from, asked, peer, to) })
	return cmd
}

func (c *cli) policyExplain(ctx context.Context, from estateFlags, asked requestFlags, peer, to string) error {
	if peer == "" || to == "" {
		return usage(errors.New("policy explain: --from or --to is missing"))
	}
	r, err := asked.request()
	if err != nil {
		return err
	}
	if peer != plaintextPeer {
		if r.Peer, err = identity.ParseID(peer); err != nil {
			return usage(fmt.Errorf("policy explain: --from: %w", err))
		}
	}
	e, err := c.estate(ctx, from)
	if err != nil {
		return err
	}
	w, err := e.workload(to, c.namespace)
	if err != nil {
		return err
	}
	return c.showExplained(e, w, &r)
}

// explainedPolicy is the answer of policy explain in JSON and YAML.
type explainedPolicy struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Workload string `json:"workload"`
	Port     uint16 `json:"port"`
	verdict
	Consulted []string       `json:"consulted"`
	Matching  []matchingRule `json:"matching"`
	// Tokens are the RequestAuthentications that apply: a request without a
	// token passes them, one with a token that none takes does not.
	Tokens []string `json:"tokens,omitempty"`
	// TokenFault says why none takes the token.
	TokenFault string `json:"token_fault,omitempty"`
	// Dropped are fields that only HTTP has, which count only in requests.
	Dropped []string `json:"dropped,omitempty"`
}

type matchingRule struct {
	Policy string `json:"policy"`
	Rule   int    `json:"rule"`
	Action string `json:"action"`
}

func (c *cli) showExplained(e *estate, w identity.Registration, r *policy.Request) error {
	set := e.compile(w)
	token := r.JWT
	valid := authenticate(set, r)
	d := set.DecideRequest(r)
	if !valid {
		d = set.RefuseToken(r)
	}
	out := explainedPolicy{From: plaintextPeer, To: w.ID.String(), Workload: w.Path(), Port: r.Port, verdict: newVerdict(d), Consulted: d.Consulted, Matching: []matchingRule{}}
	if !r.Peer.IsZero() {
		out.From = r.Peer.String()
	}
	if out.Consulted == nil {
		out.Consulted = []string{}
	}
	for _, m := range set.Matching(r, false) {
		out.Matching = append(out.Matching, matchingRule{m.Policy, m.Rule, m.Action.String()})
	}
	out.Tokens = set.Authentication().Policies()
	if !valid {
		out.TokenFault = tokenFault(set.Authentication(), token)
	}
	if r.HTTP == nil {
		out.Dropped = set.RequestFields(r.Port)
	}
	err := c.show(out, func() error { c.printExplained(out, d); return nil })
	if err == nil && !d.Allowed {
		return negative()
	}
	return err
}

func (c *cli) printExplained(out explainedPolicy, d policy.Decision) {
	color := green
	if !d.Allowed {
		color = red
	}
	fmt.Fprintf(c.out, "%s\n", c.paint(color, out.verdict.String()))
	fmt.Fprintf(c.out, "  from       %s\n  to         %s (registration %s), port %s\n", out.From, out.To, out.Workload, portText(out.Port))
	source := "the default"
	if out.ModeSource != "" {
		source = out.ModeSource
	}
	fmt.Fprintf(c.out, "  mode       %s, set by %s\n", out.Mode, source)
	if d.Mode == policy.Disable {
		fmt.Fprintln(c.out, "             no TLS is offered there, so nobody's identity is known")
	}
	fmt.Fprintf(c.out, "  consulted  %s\n", orDash(strings.Join(out.Consulted, ", ")))
	for _, m := range out.Matching {
		fmt.Fprintf(c.out, "  matches    %s %s spec.rules[%d]\n", m.Action, m.Policy, m.Rule)
	}
	if out.TokenFault != "" {
		fmt.Fprintf(c.out, "  token      %s\n", out.TokenFault)
	}
	if len(out.Tokens) > 0 && len(out.Dropped) == 0 {
		fmt.Fprintf(c.out, "  tokens     by %s; a request without one passes them\n", strings.Join(out.Tokens, ", "))
	}
	for _, field := range out.Dropped {
		fmt.Fprintf(c.out, "  dropped    %s: only requests of HTTP have it; port %s is judged without\n", field, portText(out.Port))
	}
}

func portText(port uint16) string {
	if port == 0 {
		return "of none that is named"
	}
	return fmt.Sprint(port)
}

func (c *cli) policyWhoCanCommand() *cobra.Command {
	var from estateFlags
	var asked requestFlags
	cmd := &cobra.Command{
		Use:   "who-can WORKLOAD",
		Short: "Who may connect to a workload",
		Long: `Who-can asks for each registered identity, and for a peer without one, whether
it may connect to the workload, on the port that --port names or on each that
its policies name. With --method or --path it asks about that request.
Otherwise SOME in the last column says that only certain requests, addresses
or server names are allowed.`,
		Example: `  aval policy who-can shop/api
  aval policy who-can shop/api --port 8080 --method DELETE --path /items/1
  aval policy who-can api -n shop -f documents/ --trust-domain example.org`,
		Args: takes("WORKLOAD"),
	}
	asked.declare(cmd)
	c.estateFlags(cmd, &from)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		every := !cmd.Flags().Changed("port")
		return act(func(ctx context.Context, args []string) error {
			r, err := asked.request()
			if err != nil {
				return err
			}
			e, err := c.estate(ctx, from)
			if err != nil {
				return err
			}
			w, err := e.workload(args[0], c.namespace)
			if err != nil {
				return err
			}
			return c.showWhoCan(e.whoCan(w, r, every))
		})(cmd, args)
	}
	return cmd
}

// able is one peer that may connect.
type able struct {
	Peer         string `json:"peer"`
	Registration string `json:"registration,omitempty"`
	Port         uint16 `json:"port,omitempty"` // 0 means every port that no policy names
	Policy       string `json:"policy,omitempty"`
	Rule         *int   `json:"rule,omitempty"`
	Requests     string `json:"requests"` // all or some
}

// whoCan asks for every registered peer and for plaintext.
func (e *estate) whoCan(w identity.Registration, r policy.Request, every bool) []able {
	set := e.compile(w)
	relaxed := policy.Compile(e.settings, workloadOf(w), e.modes, policy.Relaxed(e.policies), 0)
	ports := []uint16{r.Port}
	if every {
		ports = append(ports, set.Ports()...)
	}
	var out []able
	for _, port := range ports {
		ask := func(name, registration string, peer identity.ID) {
			r := r
			r.Peer, r.Port = peer, port
			d, requests := set.DecideRequest(&r), "all"
			if !d.Allowed && r.HTTP == nil {
				d, requests = relaxed.DecideRequest(&r), "some"
			}
			if !d.Allowed {
				return
			}
			v := newVerdict(d)
			out = append(out, able{Peer: name, Registration: registration, Port: port, Policy: v.Policy, Rule: v.Rule, Requests: requests})
		}
		for _, peer := range e.registrations {
			ask(peer.ID.String(), peer.Path(), peer.ID)
		}
		ask(plaintextPeer, "", identity.ID{})
	}
	return out
}

func (c *cli) showWhoCan(all []able) error {
	return c.show(items(all), func() error {
		if len(all) == 0 {
			fmt.Fprintln(c.err, "nobody")
			return nil
		}
		t := table{heading: []string{"PEER", "REGISTRATION", "PORT", "BY", "REQUESTS"}}
		for _, a := range all {
			port, by := "other", "-"
			if a.Port != 0 {
				port = fmt.Sprint(a.Port)
			}
			if a.Policy != "" && a.Rule != nil {
				by = fmt.Sprintf("%s spec.rules[%d]", a.Policy, *a.Rule)
			}
			t.add(a.Peer, orDash(a.Registration), port, by, a.Requests)
		}
		return t.print(c.out)
	})
}
