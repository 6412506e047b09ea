// This file turns Istio's documents into ours, and says what they mean
// differently here.

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
)

const (
	istioGroup       = "security.istio.io/"
	istioTrustDomain = "cluster.local"
	istioRoot        = "istio-system"
	istioDryRun      = "istio.io/dry-run"
)

// imported is one document, and what is different about it.
type imported struct {
	doc     document.Document
	istio   bool // it was one of Istio's
	skipped bool // it decides nothing here
	notes   []string
}

type object = map[string]any

// importDocument reads a document of ours or of Istio's. Faults name it after
// the file, which may be "".
func importDocument(file string, raw []byte, namespace string, s policy.Settings) (imported, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return imported{}, fmt.Errorf("document: %w", err)
	}
	out := imported{istio: strings.HasPrefix(head.APIVersion, istioGroup)}
	if out.istio {
		var err error
		if raw, out.notes, err = fromIstio(raw, s); err != nil {
			return imported{}, err
		}
		if raw == nil {
			out.skipped = true
			return out, nil
		}
	}
	if head.Metadata.Namespace != "" {
		namespace = head.Metadata.Namespace
	}
	name := strings.TrimSpace(file + " " + label(document.Key{Kind: head.Kind, Namespace: namespace, Name: head.Metadata.Name}))
	docs, err := document.Parse(name, raw)
	if err != nil {
		return imported{}, err
	}
	if len(docs) != 1 {
		return imported{}, fmt.Errorf("document: there are %d", len(docs))
	}
	out.doc, err = docs[0].WithNamespace(namespace)
	return out, err
}

// importer translates one document of Istio's.
type importer struct {
	own   identity.TrustDomain
	notes []string
}

func (m *importer) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(m.notes, text) {
		m.notes = append(m.notes, text)
	}
}

// fromIstio writes a document of Istio's as one of ours, or returns nil where
// there is nothing in it that decides anything.
func fromIstio(raw []byte, s policy.Settings) ([]byte, []string, error) {
	var doc object
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, nil, fmt.Errorf("document: %w", err)
	}
	m := &importer{own: s.TrustDomain}
	meta, _ := doc["metadata"].(object)
	out := object{"apiVersion": document.APIVersion, "kind": doc["kind"], "metadata": m.metadata(meta)}
	if spec, ok := doc["spec"]; ok {
		out["spec"] = spec
	}
	spec, _ := out["spec"].(object)
	switch doc["kind"] {
	case document.PeerAuthentication:
		m.peerAuthentication(spec)
	case document.AuthorizationPolicy:
		m.authorizationPolicy(spec)
	case document.RequestAuthentication:
		if !m.requestAuthentication(spec) {
			return nil, m.notes, nil
		}
	default:
		return nil, nil, fmt.Errorf("document: kind %v of Istio's is not one of AuthorizationPolicy, PeerAuthentication, RequestAuthentication", doc["kind"])
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, nil, fmt.Errorf("document: %w", err)
	}
	return data, m.notes, nil
}

// metadata keeps what documents have here.
func (m *importer) metadata(meta object) object {
	out := object{}
	for _, name := range []string{"name", "namespace", "labels", "creationTimestamp"} {
		if v, ok := meta[name]; ok && v != nil {
			out[name] = v
		}
	}
	annotations, _ := meta["annotations"].(object)
	kept := maps.Clone(annotations)
	delete(kept, "kubectl.kubernetes.io/last-applied-configuration")
	if v, ok := kept[istioDryRun]; ok {
		delete(kept, istioDryRun)
		kept[policy.DryRunAnnotation] = v
		m.note("the annotation %s is written %s here", istioDryRun, policy.DryRunAnnotation)
	}
	if len(kept) > 0 {
		out["annotations"] = kept
	}
	return out
}

func (m *importer) peerAuthentication(spec object) {
	selector, _ := spec["selector"].(object)
	labels, _ := selector["matchLabels"].(object)
	if _, ok := spec["portLevelMtls"]; ok && len(labels) == 0 {
		delete(spec, "portLevelMtls")
		m.note("portLevelMtls is left out: without a selector Istio ignores it, and here it is refused")
	}
}

func (m *importer) authorizationPolicy(spec object) {
	rules, _ := spec["rules"].([]any)
	for _, r := range rules {
		rule, _ := r.(object)
		for _, f := range entries(rule["from"]) {
			source, _ := f["source"].(object)
			m.source(source)
		}
		for _, t := range entries(rule["to"]) {
			operation, _ := t["operation"].(object)
			if operation["paths"] != nil || operation["notPaths"] != nil {
				m.note("paths are compared in their canonical form: encodings decoded, // merged, . and .. resolved; what is ambiguous is refused with 400")
			}
			if operation["hosts"] != nil || operation["notHosts"] != nil {
				m.note("the port is taken off a Host before it is compared")
			}
		}
		for _, w := range entries(rule["when"]) {
			switch w["key"] {
			case "source.principal":
				m.principals(w, "values", "notValues")
			case "source.trustDomain":
				m.trustDomains(w, "values", "notValues")
			case "source.namespace", "source.serviceAccount":
				m.ownDomain()
			}
		}
	}
	if action, _ := spec["action"].(string); action == "" || action == wordAllow {
		m.note("peers of a federated trust domain are admitted only where a source writes their domain out, in principals or trustDomains")
	}
}

func (m *importer) source(source object) {
	m.principals(source, "principals", "notPrincipals")
	m.trustDomains(source, "trustDomains", "notTrustDomains")
	for _, name := range []string{"namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts"} {
		if source[name] != nil {
			m.ownDomain()
		}
	}
}

func (m *importer) ownDomain() {
	m.note("namespaces and service accounts match peers of the own trust domain only; Istio does not look at the domain")
}

// principals writes the own trust domain for cluster.local, which is what
// Istio means by it.
func (m *importer) principals(o object, names ...string) {
	m.replace(o, names, func(s string) string {
		rest := strings.TrimPrefix(s, "spiffe://")
		if domain, path, ok := strings.Cut(rest, "/"); ok && domain == istioTrustDomain {
			return m.own.String() + "/" + path
		}
		return s
	})
}

func (m *importer) trustDomains(o object, names ...string) {
	m.replace(o, names, func(s string) string {
		if s == istioTrustDomain {
			return m.own.String()
		}
		return s
	})
}

func (m *importer) replace(o object, names []string, with func(string) string) {
	for _, name := range names {
		list, _ := o[name].([]any)
		for i, v := range list {
			s, ok := v.(string)
			if !ok {
				continue
			}
			if now := with(s); now != s {
				list[i] = now
				m.note("%s is written as the own trust domain, %s", istioTrustDomain, m.own)
			}
		}
	}
}

// entries returns the objects of a list.
func entries(v any) []object {
	var out []object
	list, _ := v.([]any)
	for _, e := range list {
		if o, ok := e.(object); ok {
			out = append(out, o)
		}
	}
	return out
}

// importSources parses files of Istio's documents, also lists of them as a
// Kubernetes API prints them, for the root namespace of these settings.
func importSources(sources []source, namespace string, s policy.Settings) ([]document.Document, []string, error) {
	var docs []document.Document
	var notes []string
	var faults []error
	root := s.RootNamespace
	if root == "" {
		root = policy.DefaultRootNamespace
	}
	for _, src := range sources {
		raws, err := documentsIn(src.data)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", src.name, err))
			continue
		}
		for _, raw := range raws {
			moved := raw.moveFrom(istioRoot, root)
			one, err := importDocument(fmt.Sprintf("%s:%d", src.name, raw.line), raw.json, namespace, s)
			if err != nil {
				for _, text := range faultsOf(err) {
					faults = append(faults, &document.Error{Reason: text})
				}
				continue
			}
			subject := fmt.Sprintf("%s:%d", src.name, raw.line)
			if !one.skipped {
				subject = label(one.doc.Key())
				docs = append(docs, one.doc)
			}
			if moved {
				one.notes = append(one.notes, fmt.Sprintf("moved from the root namespace %s to %s", istioRoot, root))
			}
			for _, n := range one.notes {
				notes = append(notes, subject+": "+n)
			}
		}
	}
	return docs, notes, joinFaults(faults)
}
