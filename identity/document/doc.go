// Package document owns the envelope that everything a person declares comes
// in (apiVersion, kind, metadata, spec), its canonical form, and the strict
// decoder that documents and configuration files share: YAML or JSON in,
// every error with file, line, field, what was found and what is allowed.
//
// It leaves the meaning of each spec to the package that owns that kind
// (registrations to identity, policies to identity/policy). It stands on the
// ground floor and imports nothing of the house.
package document
