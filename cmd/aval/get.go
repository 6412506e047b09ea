// This file holds get: documents, shown.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (c *cli) getCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "Show documents",
		Long: `Get shows the documents of a kind in one namespace (-n), or in all of them
(-A, or where -n is not given and no name is). One name shows the document
itself, else a list {"items": [...]} comes.

Kinds: registrations, peerauthentications, authorizationpolicies,
requestauthentications, plaintextexceptions, all.

Endpoints are no documents: get endpoints shows which workload takes connections
where, as proxies announce it, and why an announcement does not count.`,
		Example: `  aval get registrations -n shop
  aval get registration web -n shop -o yaml
  aval get all -o json
  aval get endpoints -n shop`,
		Args: takes("KIND", "[NAME]"),
	}
	c.namespaceFlag(cmd, "", "namespace; for a name it is \"default\" unless given")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "all namespaces")
	cmd.MarkFlagsMutuallyExclusive("namespace", "all-namespaces")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.ValidArgsFunction = c.completeKindAndName
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		if isEndpoints(args[0]) {
			return c.admin(ctx, func(admin wire.AdminClient) error { return c.getEndpoints(ctx, admin, args) })
		}
		req, err := c.getRequest(args, all)
		if err != nil {
			return err
		}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.get(ctx, admin, req) })
	})
	return cmd
}

func (c *cli) getRequest(args []string, all bool) (*wire.GetRequest, error) {
	req := &wire.GetRequest{Namespace: c.namespace}
	if strings.ToLower(args[0]) != "all" {
		kind, err := kindNamed(args[0])
		if err != nil {
			return nil, err
		}
		req.Kind = kind
	}
	if len(args) == 1 {
		return req, nil
	}
	if req.Kind == "" || all {
		return nil, usage(errors.New("get: a name needs one kind and one namespace"))
	}
	req.Name = args[1]
	if req.Namespace == "" {
		req.Namespace = defaultNamespace
	}
	return req, nil
}

func (c *cli) get(ctx context.Context, admin wire.AdminClient, req *wire.GetRequest) error {
	resp, err := admin.Get(ctx, req)
	if err != nil && (req.Name == "" || status.Code(err) != codes.NotFound) {
		return called("get", err)
	}
	docs, err := documentsOf(resp)
	if err != nil {
		return err
	}
	keys, err := keySetStates(ctx, admin, docs)
	if err != nil {
		return err
	}
	if req.Name != "" {
		if len(docs) == 0 {
			key := document.Key{Kind: req.Kind, Namespace: req.Namespace, Name: req.Name}
			return hinted(fmt.Errorf("get: there is no %s", label(key)), exitNegative,
				"aval get %s -A shows all of them", strings.ToLower(req.Kind))
		}
		return c.showOne(docs[0], keys)
	}
	return c.showAll(docs, keys)
}

func documentsOf(resp *wire.GetResponse) ([]document.Document, error) {
	var docs []document.Document
	for _, data := range resp.GetDocuments() {
		d, err := document.FromJSON(data)
		if err != nil {
			return nil, fmt.Errorf("get: a document of the server: %w", err)
		}
		docs = append(docs, d)
	}
	return docs, nil
}

func (c *cli) showOne(d document.Document, keys keyStates) error {
	raw, err := d.JSON()
	if err != nil {
		return err
	}
	return c.show(json.RawMessage(raw), func() error { return documentTable([]document.Document{d}, keys, c.out) })
}

func (c *cli) showAll(docs []document.Document, keys keyStates) error {
	var raws []json.RawMessage
	for _, d := range docs {
		raw, err := d.JSON()
		if err != nil {
			return err
		}
		raws = append(raws, raw)
	}
	return c.show(items(raws), func() error {
		if len(docs) == 0 {
			fmt.Fprintln(c.err, "nothing found")
			return nil
		}
		return documentTable(docs, keys, c.out)
	})
}

// documentTable prints documents, one kind after the other.
func documentTable(docs []document.Document, keys keyStates, w io.Writer) error {
	kinds := []struct {
		kind    string
		heading []string
		cells   func(document.Document) []string
	}{
		{document.Registration, []string{"ID", "WORKLOAD", "NODE", "TTL"}, registrationCells},
		{document.PeerAuthentication, []string{"MODE", "SELECTOR"}, modeCells},
		{document.AuthorizationPolicy, []string{"ACTION", "SELECTOR", "RULES"}, actionCells},
		{document.RequestAuthentication, []string{"ISSUERS", "SELECTOR", "KEYS"}, keys.cells},
		{document.PlaintextException, []string{"FROM", "SELECTOR", "ENDS", "REASON"}, exceptionCells},
	}
	printed := false
	for _, k := range kinds {
		t := table{heading: append([]string{"KIND", "NAMESPACE", "NAME"}, append(k.heading, "AGE")...)}
		for _, d := range docs {
			if d.Kind() != k.kind {
				continue
			}
			m := d.Metadata()
			cells := append([]string{strings.ToLower(k.kind), m.Namespace, m.Name}, k.cells(d)...)
			t.add(append(cells, aged(m.CreationTimestamp))...)
		}
		if len(t.rows) == 0 {
			continue
		}
		if printed {
			fmt.Fprintln(w)
		}
		if err := t.print(w); err != nil {
			return err
		}
		printed = true
	}
	return nil
}

func aged(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return short(time.Since(t))
}

// registrationCells shows what was written, whatever the trust domain is.
func registrationCells(d document.Document) []string {
	var spec struct {
		Spec struct {
			ID       string                     `json:"id"`
			Node     map[string]json.RawMessage `json:"node"`
			Workload map[string]json.RawMessage `json:"workload"`
			TTL      string                     `json:"ttl"`
		} `json:"spec"`
	}
	if !decodeJSON(d, &spec) {
		return []string{"?", "?", "?", "?"}
	}
	node, ttl := selectorText(spec.Spec.Node), spec.Spec.TTL
	if node == "" {
		node = "any"
	}
	if ttl == "" {
		ttl = "default"
	}
	return []string{spec.Spec.ID, selectorText(spec.Spec.Workload), node, ttl}
}

func selectorText(raw map[string]json.RawMessage) string {
	s := identity.Selector{}
	for name, value := range raw {
		var many []any
		if json.Unmarshal(value, &many) != nil {
			many = []any{nil}
			if json.Unmarshal(value, &many[0]) != nil {
				continue
			}
		}
		for _, v := range many {
			s[name] = append(s[name], fmt.Sprint(v))
		}
	}
	return s.String()
}

type policySpec struct {
	Spec struct {
		Selector struct {
			MatchLabels map[string]string `json:"matchLabels"`
		} `json:"selector"`
		MTLS struct {
			Mode string `json:"mode"`
		} `json:"mtls"`
		Ports  map[string]any    `json:"portLevelMtls"`
		Action string            `json:"action"`
		Rules  []json.RawMessage `json:"rules"`
	} `json:"spec"`
}

func (p policySpec) selector() string {
	s := identity.Selector{}
	for k, v := range p.Spec.Selector.MatchLabels {
		s[k] = []string{v}
	}
	if len(s) == 0 {
		return "all"
	}
	return s.String()
}

func modeCells(d document.Document) []string {
	var p policySpec
	if !decodeJSON(d, &p) {
		return []string{"?", "?"}
	}
	mode := p.Spec.MTLS.Mode
	if mode == "" {
		mode = "UNSET"
	}
	if n := len(p.Spec.Ports); n > 0 {
		mode += " (+" + plural(n, "port") + ")"
	}
	return []string{mode, p.selector()}
}

func actionCells(d document.Document) []string {
	var p policySpec
	if !decodeJSON(d, &p) {
		return []string{"?", "?", "?"}
	}
	action := p.Spec.Action
	if action == "" {
		action = "ALLOW"
	}
	return []string{action, p.selector(), fmt.Sprint(len(p.Spec.Rules))}
}

func exceptionCells(d document.Document) []string {
	var x struct {
		Spec struct {
			From   []string  `json:"from"`
			Until  time.Time `json:"until"`
			Reason string    `json:"reason"`
		} `json:"spec"`
	}
	var p policySpec
	if !decodeJSON(d, &x) || !decodeJSON(d, &p) {
		return []string{"?", "?", "?", "?"}
	}
	ends := ago(x.Spec.Until, time.Now())
	if !time.Now().Before(x.Spec.Until) {
		ends = "ended " + ends
	}
	return []string{strings.Join(x.Spec.From, ","), p.selector(), ends, plain(x.Spec.Reason)}
}

func decodeJSON(d document.Document, into any) bool {
	raw, err := d.JSON()
	return err == nil && json.Unmarshal(raw, into) == nil
}
