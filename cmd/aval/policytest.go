// This file holds policy test: a table of expected verdicts, tried.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/spf13/cobra"
)

// maxCaseBytes bounds the input of one call.
const maxCaseBytes = 1 << 30

// casesAtOnce is how many cases are read ahead.
const casesAtOnce = 1024

func (c *cli) policyTestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "test FILE|-",
		Short: "Try a table of expected verdicts",
		Long: `Test reads cases, as JSON lines or as YAML documents, and tries each with the
evaluator that proxies use, at the level of requests. It prints those whose
verdict is not the wanted one, with the rule that decided, and exits with 1 if
there are any.

A case names its documents (ours, or Istio's, in which cluster.local is the
own trust domain), the workload, the request, and what is wanted:

  {"id": "web may read", "policies": [{...}],
   "workload": {"namespace": "shop", "labels": {"app": "api"},
                "trust_domain": "example.org", "root_namespace": "aval-system",
                "authorization_default": "allow"},
   "trusted_domains": ["partner.org"],
   "request": {"peer": "spiffe://example.org/ns/shop/sa/web",
               "source_ip": "10.0.0.1", "remote_ip": "203.0.113.7",
               "destination_ip": "10.0.0.9", "destination_port": 8080, "sni": "api",
               "http": {"method": "GET", "host": "api", "path": "/x", "headers": {"k": "v"}},
               "jwt": {"iss": "https://issuer", "sub": "alice"}},
   "want": "ALLOW", "want_policy": "shop/api", "want_mode": "STRICT",
   "want_dry_run": "DENY"}

A null peer is plaintext, a null http a connection that is not HTTP, a null
jwt no token. A jwt is the claims of a token whose signature and time are good.
Where a RequestAuthentication is among the policies and applies to the
workload, a jwt whose iss or aud none of its rules takes is denied
(token_invalid); where none of those in the case applies, the token is not
looked at; in a case without any, the claims count as they are. The verdict is that on the whole: a peer of a trust domain that
is neither the own one nor among trusted_domains is denied, and so is a path
that a proxy refuses. On a port whose mode is DISABLE there is no TLS, so
nobody's peer is known. A document that admission refuses denies, as it would
at a proxy, and is named on standard error.`,
		Example: `  aval policy test cases.jsonl
  aval policy test cases.yaml -o json
  generate-cases | aval policy test -`,
		Args: takes("FILE|-"),
	}
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(_ context.Context, args []string) error { return c.policyTest(args[0]) })
	return cmd
}

// outcome is what came of one case.
type outcome struct {
	ID       string   `json:"id"`
	Line     int      `json:"line"`
	Mismatch string   `json:"mismatch,omitempty"`
	Error    string   `json:"error,omitempty"` // the case itself is wrong
	Want     string   `json:"want,omitempty"`
	Got      *verdict `json:"got,omitempty"`
	refused  []string
}

func (o *outcome) failed() bool { return o.Mismatch != "" || o.Error != "" }

// testReport is the answer in JSON and YAML.
type testReport struct {
	OK       bool      `json:"ok"`
	Cases    int       `json:"cases"`
	Passed   int       `json:"passed"`
	Failed   int       `json:"failed"`
	Failures []outcome `json:"failures"`
	Refused  []refusal `json:"refused"`
}

// refusal is a document that admission refuses.
type refusal struct {
	ID    string `json:"id"`
	Fault string `json:"fault"`
}

func (c *cli) policyTest(name string) error {
	data, err := c.readCases(name)
	if err != nil {
		return err
	}
	report := testReport{Failures: []outcome{}, Refused: []refusal{}}
	next := valuesIn(data)
	for done := false; !done; {
		var batch []rawDocument
		for len(batch) < casesAtOnce {
			raw, err := next()
			if errors.Is(err, io.EOF) {
				done = true
				break
			}
			if err != nil {
				return hinted(fmt.Errorf("policy test: %s: %w", name, err), exitInvalid, "one JSON object on each line, or YAML documents with --- between them")
			}
			batch = append(batch, raw.parts()...)
		}
		report.add(tryAll(batch))
	}
	report.OK = report.Failed == 0
	if report.Cases == 0 {
		return usage(fmt.Errorf("policy test: no case in %s", name))
	}
	if err := c.show(report, func() error { c.printTest(report); return nil }); err != nil {
		return err
	}
	if !report.OK {
		return negative()
	}
	return nil
}

func (c *cli) readCases(name string) ([]byte, error) {
	in := c.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usage(fmt.Errorf("policy test: %w", err))
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxCaseBytes+1))
	if err != nil {
		return nil, fmt.Errorf("policy test: read %s: %w", name, err)
	}
	if len(data) > maxCaseBytes {
		return nil, fmt.Errorf("policy test: %s is more than %d bytes", name, maxCaseBytes)
	}
	return data, nil
}

// tryAll tries cases on all cores, and returns their outcomes in order.
func tryAll(batch []rawDocument) []outcome {
	out := make([]outcome, len(batch))
	var group sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		group.Go(func() {
			for i := w; i < len(batch); i += workers {
				out[i] = try(batch[i])
			}
		})
	}
	group.Wait()
	return out
}

func try(raw rawDocument) outcome {
	pc, err := parseCase(raw.json)
	o := outcome{ID: pc.ID, Line: raw.line, Want: pc.Want}
	var v verdict
	if err == nil {
		v, o.refused, err = pc.judge()
	}
	if err != nil {
		o.Error = err.Error()
		return o
	}
	if o.Mismatch = pc.mismatch(v); o.Mismatch != "" {
		o.Got = &v
	}
	return o
}

func (t *testReport) add(outcomes []outcome) {
	for _, o := range outcomes {
		t.Cases++
		if o.failed() {
			t.Failed++
			t.Failures = append(t.Failures, o)
		} else {
			t.Passed++
		}
		for _, fault := range o.refused {
			t.Refused = append(t.Refused, refusal{ID: o.ID, Fault: fault})
		}
	}
}

func (c *cli) printTest(t testReport) {
	for _, r := range t.Refused {
		fmt.Fprintf(c.err, "warning: %s: admission refuses a document: %s\n", plain(r.ID), plain(r.Fault))
	}
	for _, o := range t.Failures {
		label := plain(o.ID)
		if label == "" {
			label = "case"
		}
		if o.Error != "" {
			fmt.Fprintf(c.out, "%s %s (line %d): %s\n", c.paint(red, "ERROR"), label, o.Line, plain(o.Error))
			continue
		}
		fmt.Fprintf(c.out, "%s %s (line %d): %s\n", c.paint(red, "FAIL "), label, o.Line, plain(o.Mismatch))
		fmt.Fprintf(c.out, "      %s\n", plain(o.Got.String()))
	}
	fmt.Fprintf(c.out, "%s, %d as wanted, %d not\n", plural(t.Cases, "case"), t.Passed, t.Failed)
}

// String words a verdict and what decided it.
func (v *verdict) String() string {
	text := v.Verdict + " by "
	switch {
	case v.Policy != "" && v.Rule != nil:
		text += fmt.Sprintf("%s spec.rules[%d]", v.Policy, *v.Rule)
	case v.Policy != "":
		text += v.Policy + ", which cannot be read"
	case v.Reason == "plaintext_refused":
		text += "the mode"
	case v.Verdict == wordDeny && v.Reason == "policy_denied":
		text += "no ALLOW policy matching"
	case v.Verdict == wordAllow:
		text += "no policy: no DENY matches, and no ALLOW policy selects the workload"
	default:
		text += "no policy"
	}
	text += fmt.Sprintf(" (%s); mode %s", v.Reason, v.Mode)
	if v.ModeSource != "" {
		text += " by " + v.ModeSource
	}
	if v.DryRun != "" {
		text += "; with those on dry run " + v.DryRun
		if v.DryRunBy != "" {
			text += " by " + v.DryRunBy
		}
	}
	return text
}
