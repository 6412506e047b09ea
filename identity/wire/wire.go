// Package wire holds the protocol between servers, agents, proxies and
// operators: the protobuf messages of aval.proto, their generated code, and
// their conversions to and from the values of package identity.
//
// It owns what goes over a wire and in which order; who may say what is
// decided by the servers that implement the services. It stands on the
// ground floor.
//
//go:generate protoc -I . --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative aval.proto
package wire

import (
	"fmt"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/document"
)

// MaxMessageBytes bounds each gRPC message in both directions, before
// authentication: a client-given size never decides how much is allocated.
const MaxMessageBytes = 16 << 20

// Before reports whether p lies before q.
func (p *Position) Before(q *Position) bool {
	if p.GetEpoch() != q.GetEpoch() {
		return p.GetEpoch() < q.GetEpoch()
	}
	return p.GetRevision() < q.GetRevision()
}

// FromAttributes gives attributes their wire form.
func FromAttributes(a identity.Attributes) map[string]*Values {
	out := make(map[string]*Values, len(a))
	for name, values := range a {
		out[name] = &Values{Values: values}
	}
	return out
}

// ToAttributes takes attributes from their wire form.
func ToAttributes(m map[string]*Values) identity.Attributes {
	out := make(identity.Attributes, len(m))
	for name, v := range m {
		out[name] = v.GetValues()
	}
	return out
}

// FromBundle gives a bundle its wire form.
func FromBundle(b identity.Bundle) *Bundle {
	return &Bundle{TrustDomain: b.TrustDomain().String(), Roots: b.DERs()}
}

// ToBundle parses and checks a bundle.
func ToBundle(b *Bundle) (identity.Bundle, error) {
	td, err := identity.ParseTrustDomain(b.GetTrustDomain())
	if err != nil {
		return identity.Bundle{}, fmt.Errorf("bundle: %w", err)
	}
	return identity.ParseBundle(td, b.GetRoots())
}

// FromKey gives a document's key its wire form.
func FromKey(k document.Key) *ResourceKey {
	return &ResourceKey{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
}

// ToKey takes a document's key from its wire form.
func ToKey(k *ResourceKey) document.Key {
	return document.Key{Kind: k.GetKind(), Namespace: k.GetNamespace(), Name: k.GetName()}
}
