// This file holds the group of commands about policies, and how they get at
// documents: the server's, or those of files.

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

func (c *cli) policyCommand() *cobra.Command {
	return group("policy", "Try, check and explain policies",
		c.policyTestCommand(), c.policyCheckCommand(), c.policyExplainCommand(), c.policyWhoCanCommand(), c.policySimulateCommand())
}

// estateFlags say where documents come from.
type estateFlags struct {
	files       []string
	trustDomain string
	root        string
	defaultDeny bool
}

func (c *cli) estateFlags(cmd *cobra.Command, f *estateFlags) {
	cmd.Flags().StringArrayVarP(&f.files, "filename", "f", nil, "file, directory or - instead of the server's documents; may be repeated")
	cmd.Flags().StringVar(&f.trustDomain, "trust-domain", "", "trust domain of the files")
	cmd.Flags().StringVar(&f.root, "root-namespace", policy.DefaultRootNamespace, "root namespace of the files")
	cmd.Flags().BoolVar(&f.defaultDeny, "default-deny", false, "authorization.default of the files is deny")
	c.namespaceFlag(cmd, defaultNamespace, "namespace of names without one")
	c.adminFlag(cmd)
}

// estate is all documents that policies depend on, parsed.
type estate struct {
	settings      policy.Settings
	registrations []identity.Registration
	modes         []policy.PeerAuthentication
	policies      []policy.AuthorizationPolicy
	tokens        []policy.RequestAuthentication
	warnings      []policy.Warning
	refused       error // what admission says, or nil
}

// estate reads the files that -f names, or asks the server.
func (c *cli) estate(ctx context.Context, f estateFlags) (*estate, error) {
	if len(f.files) > 0 {
		if f.trustDomain == "" {
			return nil, usage(errors.New("policy: -f needs --trust-domain, which the files do not say"))
		}
		domain, err := identity.ParseTrustDomain(f.trustDomain)
		if err != nil {
			return nil, usage(fmt.Errorf("policy: %w", err))
		}
		docs, err := c.readDocuments(f.files)
		if err != nil {
			return nil, err
		}
		return newEstate(docs, policy.Settings{TrustDomain: domain, RootNamespace: f.root, DefaultDeny: f.defaultDeny}), nil
	}
	var e *estate
	err := c.admin(ctx, func(admin wire.AdminClient) error {
		settings, err := policySettings(ctx, admin)
		if err != nil {
			return err
		}
		resp, err := admin.Get(ctx, &wire.GetRequest{})
		if err != nil {
			return called("get the documents", err)
		}
		docs, err := documentsOf(resp)
		if err != nil {
			return err
		}
		e = newEstate(docs, settings)
		return nil
	})
	return e, err
}

func newEstate(docs []document.Document, settings policy.Settings) *estate {
	settings.Requests = true
	e := &estate{settings: settings}
	e.warnings, e.refused = checkDocuments(docs, settings)
	for _, d := range docs {
		if d.Kind() == document.Registration {
			if r, err := identity.ParseRegistration(d, settings.TrustDomain); err == nil {
				e.registrations = append(e.registrations, r)
			}
		}
	}
	slices.SortFunc(e.registrations, func(a, b identity.Registration) int { return compareText(a.Path(), b.Path()) })
	// What admission refuses counts as a proxy would count it: it denies.
	e.modes, e.policies, _ = policy.Load(docs, settings)
	var denying []policy.AuthorizationPolicy
	e.tokens, denying, _ = policy.LoadRequestAuthentications(docs, settings)
	e.policies = append(e.policies, denying...)
	return e
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// compile makes the policies of one registered workload.
func (e *estate) compile(r identity.Registration) *policy.Set {
	w := workloadOf(r)
	return policy.Compile(e.settings, w, e.modes, e.policies, 0).Authenticating(policy.CompileAuthentication(e.settings, w, e.tokens, nil))
}

func workloadOf(r identity.Registration) policy.Workload {
	return policy.Workload{Namespace: r.Namespace, Labels: r.Labels}
}

// workload finds a registration by NAMESPACE/NAME, by NAME in the namespace
// of -n, or by its SPIFFE ID.
func (e *estate) workload(name, namespace string) (identity.Registration, error) {
	var near []string
	for _, r := range e.registrations {
		if r.Path() == name || r.ID.String() == name || r.Path() == namespace+"/"+name {
			return r, nil
		}
		near = append(near, r.Path())
	}
	err := fmt.Errorf("policy: no registration is %q", name)
	if n := document.Nearest(name, near); n != "" {
		return identity.Registration{}, hinted(err, exitNegative, "did you mean %s?", n)
	}
	return identity.Registration{}, hinted(err, exitNegative, "name a workload as NAMESPACE/NAME of its registration, or by its SPIFFE ID")
}
