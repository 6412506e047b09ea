// This file holds how documents are read from files, directories and the
// standard input, and checked with file and line before anything is sent.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
	"github.com/aval-id/aval/identity/policy"
	"github.com/aval-id/aval/identity/wire"
)

// defaultNamespace is where a document or a name without a namespace lives.
const defaultNamespace = "default"

// source is one file of documents.
type source struct {
	name string
	data []byte
}

// readSources reads files, directories and "-". Of a directory, below it and
// in the order of their paths, the .yaml, .yml and .json files count.
func (c *cli) readSources(names []string) ([]source, error) {
	var out []source
	for _, name := range names {
		if name == "-" {
			data, err := io.ReadAll(io.LimitReader(c.in, document.MaxStreamBytes+1))
			if err != nil {
				return nil, fmt.Errorf("read the standard input: %w", err)
			}
			out = append(out, source{"-", data})
			continue
		}
		paths, err := documentFiles(name)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			data, err := readBounded(path)
			if err != nil {
				return nil, err
			}
			out = append(out, source{path, data})
		}
	}
	return out, nil
}

func documentFiles(name string) ([]string, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, usage(fmt.Errorf("documents: %w", err))
	}
	if !st.IsDir() {
		return []string{name}, nil
	}
	var paths []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != name && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
			if !d.IsDir() {
				paths = append(paths, path)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("documents: %w", err)
	}
	if len(paths) == 0 {
		return nil, usage(fmt.Errorf("documents: no .yaml, .yml or .json file lies in %s", name))
	}
	slices.Sort(paths)
	return paths, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usage(fmt.Errorf("documents: %w", err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, document.MaxStreamBytes+1))
	if err != nil {
		return nil, fmt.Errorf("documents: %w", err)
	}
	return data, nil
}

// readDocuments reads sources and parses them, in the command's namespace
// where a document names none.
func (c *cli) readDocuments(names []string) ([]document.Document, error) {
	sources, err := c.readSources(names)
	if err != nil {
		return nil, err
	}
	return parseSources(sources, c.namespace)
}

// parseSources parses every source and gives documents without a namespace
// the default one. The error names every fault of every file.
func parseSources(sources []source, namespace string) ([]document.Document, error) {
	var docs []document.Document
	var faults []error
	seen := map[document.Key]document.Document{}
	for _, s := range sources {
		parsed, err := document.Parse(s.name, s.data)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for _, d := range parsed {
			if d, err = d.WithNamespace(namespace); err != nil {
				return nil, usage(err)
			}
			if first, twice := seen[d.Key()]; twice {
				faults = append(faults, d.Errorf("metadata.name", d.Key().String(), "", "is declared twice, first at %s:%d", first.File(), first.Line("metadata.name")))
			}
			seen[d.Key()] = d
			docs = append(docs, d)
		}
	}
	return docs, joinFaults(faults)
}

// joinFaults joins faults of several files, file by file.
func joinFaults(faults []error) error {
	var all document.Errors
	for _, err := range faults {
		if many, ok := errors.AsType[document.Errors](err); ok {
			all = append(all, many...)
		} else if one, ok := errors.AsType[*document.Error](err); ok {
			all = append(all, one)
		} else if err != nil {
			all = append(all, &document.Error{Reason: err.Error()})
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

// checkDocuments checks each document as the server will. The error names
// every fault of every file.
func checkDocuments(docs []document.Document, s policy.Settings) ([]policy.Warning, error) {
	var warnings []policy.Warning
	var faults []error
	for _, d := range docs {
		var err error
		var warned []policy.Warning
		switch d.Kind() {
		case document.Registration:
			_, err = identity.ParseRegistration(d, s.TrustDomain)
		case document.PeerAuthentication:
			_, warned, err = policy.ParsePeerAuthentication(d, s)
		case document.AuthorizationPolicy:
			_, warned, err = policy.ParseAuthorizationPolicy(d, s)
		case document.RequestAuthentication:
			_, warned, err = policy.ParseRequestAuthentication(d, s)
		case document.PlaintextException:
			_, warned, err = policy.ParsePlaintextException(d, s)
		default:
			err = d.Errorf("kind", d.Kind(), "Registration, PeerAuthentication, AuthorizationPolicy, RequestAuthentication, PlaintextException", "is not a known kind")
		}
		warnings = append(warnings, warned...)
		faults = append(faults, err)
	}
	return warnings, joinFaults(faults)
}

// policySettings asks the server what documents are checked against.
func policySettings(ctx context.Context, admin wire.AdminClient) (policy.Settings, error) {
	st, err := admin.ServerStatus(ctx, &wire.ServerStatusRequest{})
	if err != nil {
		return policy.Settings{}, called("ask the server for its settings", err)
	}
	td, err := identity.ParseTrustDomain(st.GetTrustDomain())
	if err != nil {
		return policy.Settings{}, fmt.Errorf("the server's trust domain: %w", err)
	}
	return policy.Settings{TrustDomain: td, RootNamespace: st.GetRootNamespace(), DefaultDeny: st.GetDefaultDeny(), Requests: true}, nil
}

// unknownSettings serve to check documents while no server can be asked.
func unknownSettings() policy.Settings {
	td, err := identity.ParseTrustDomain("unknown.invalid")
	if err != nil {
		panic(err)
	}
	return policy.Settings{TrustDomain: td, Requests: true}
}

// kindNamed takes a kind as people write it.
func kindNamed(name string) (string, error) {
	if kind, ok := document.NormalizeKind(name); ok {
		return kind, nil
	}
	known := []string{"registrations", "peerauthentications", "authorizationpolicies", "requestauthentications", "plaintextexceptions"}
	if near := document.Nearest(strings.ToLower(name), known); near != "" {
		return "", usage(fmt.Errorf("kind %q is not known; did you mean %s?", name, near))
	}
	return "", usage(fmt.Errorf("kind %q is not known; there are %s", name, strings.Join(known, ", ")))
}

// label prints a document's key as commands write it: "registration shop/web".
func label(k document.Key) string { return strings.ToLower(k.Kind) + " " + k.Path() }
