// This file holds evidence: why an address counts as a node's.

package registry

import (
	"fmt"
	"net/netip"

	"github.com/aval-id/aval/identity"
)

// AddressAttribute is the node attribute that names addresses of its workloads:
// addresses and blocks, as an operator gave them with the join token.
const AddressAttribute = "address"

// evidence is what the server knows of a node's addresses, none of it from the
// node itself.
type evidence struct {
	blocks []netip.Prefix
	words  []string   // of blocks, for people
	from   netip.Addr // that its stream comes from; zero where that counts for nothing
}

func newEvidence(a identity.Attributes, from netip.Addr) evidence {
	e := evidence{from: from}
	for _, v := range a[AddressAttribute] {
		if p, err := ParseBlock(v); err == nil {
			e.blocks = append(e.blocks, p)
			e.words = append(e.words, "attribute "+AddressAttribute+"="+p.String())
		}
	}
	return e
}

// ParseBlock reads a value of AddressAttribute: an address or a block.
func ParseBlock(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" || a.Is4In6() {
			return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a block such as 10.0.0.0/24", text)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a block such as 10.0.0.0/24", text)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits beyond its length: did you mean %s?", text, p.Masked())
	case p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("%q is every address there is: name the node's own", text)
	}
	return p, nil
}

// named is the rank of an address that an attribute names by itself.
const named = 129

// of says how good the evidence for an address is, in order of rank, or why
// there is none. What an operator said counts more than where a stream comes
// from, and a narrower block more than a wider one.
func (e evidence) of(a netip.Addr) (rank int, words, fault string) {
	rank = -1
	for i, b := range e.blocks {
		if bits := 128 - a.BitLen() + b.Bits(); b.Contains(a) && bits+1 > rank {
			rank, words = bits+1, e.words[i]
		}
	}
	switch {
	case rank >= 0:
		return rank, words, ""
	case e.from.IsValid() && e.from == a:
		return 0, "its stream comes from there", ""
	}
	return 0, "", "nothing says that " + a.String() + " is this node's: its stream does not come from there, and its attribute " + AddressAttribute + " does not name it"
}
