// Package protocol gives endpoints and deltas of package directory their wire
// form, and parses and checks what came over a wire.
//
// It owns the conversions. It leaves what endpoints mean to directory and who
// may say what to those who read them. It stands on the ground floor.
package protocol

import (
	"fmt"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/directory"
	"github.com/aval-id/aval/identity/wire"
)

// FromEndpoint gives an endpoint its wire form.
func FromEndpoint(e directory.Endpoint) *wire.Endpoint {
	k := FromEndpointKey(e.Key)
	w := &wire.Endpoint{Node: k.Node, Registration: e.Registration, SpiffeId: k.SpiffeId, Address: k.Address, Port: k.Port,
		Mode: e.Mode, Protocol: e.Protocol, Alpn: e.ALPN}
	for _, p := range e.Except {
		w.Except = append(w.Except, uint32(p))
	}
	for p, m := range e.PortModes {
		if w.PortModes == nil {
			w.PortModes = make(map[uint32]string)
		}
		w.PortModes[uint32(p)] = m
	}
	return w
}

// ToEndpoint parses and checks an endpoint.
func ToEndpoint(w *wire.Endpoint) (directory.Endpoint, error) {
	key, err := ToEndpointKey(&wire.EndpointKey{Node: w.GetNode(), SpiffeId: w.GetSpiffeId(), Address: w.GetAddress(), Port: w.GetPort()})
	if err != nil {
		return directory.Endpoint{}, fmt.Errorf("endpoint: %w", err)
	}
	e := directory.Endpoint{Key: key, Registration: w.GetRegistration(), Mode: w.GetMode(), Protocol: w.GetProtocol(), ALPN: w.GetAlpn()}
	if len(w.GetExcept()) > directory.MaxPorts || len(w.GetPortModes()) > directory.MaxPorts {
		return directory.Endpoint{}, fmt.Errorf("endpoint %s: more than %d exceptions", key, directory.MaxPorts)
	}
	for _, p := range w.GetExcept() {
		if p == 0 || p > 65535 {
			return directory.Endpoint{}, fmt.Errorf("endpoint %s: except: port %d is not from 1 to 65535", key, p)
		}
		e.Except = append(e.Except, uint16(p))
	}
	for p, mode := range w.GetPortModes() {
		if p == 0 || p > 65535 {
			return directory.Endpoint{}, fmt.Errorf("endpoint %s: port_modes: port %d is not from 1 to 65535", key, p)
		}
		if e.PortModes == nil {
			e.PortModes = make(map[uint16]string)
		}
		e.PortModes[uint16(p)] = mode
	}
	return e.Check()
}

// FromEndpointKey gives an endpoint's key its wire form.
func FromEndpointKey(k directory.Key) *wire.EndpointKey {
	w := &wire.EndpointKey{SpiffeId: k.ID.String(), Address: k.Address.String(), Port: uint32(k.Port)}
	if !k.Node.IsZero() {
		w.Node = k.Node.String()
	}
	return w
}

// ToEndpointKey parses and checks an endpoint's key.
func ToEndpointKey(w *wire.EndpointKey) (k directory.Key, err error) {
	if k.ID, err = identity.ParseID(w.GetSpiffeId()); err != nil {
		return directory.Key{}, fmt.Errorf("spiffe_id: %w", err)
	}
	if w.GetNode() != "" {
		if k.Node, err = identity.ParseID(w.GetNode()); err != nil {
			return directory.Key{}, fmt.Errorf("node: %w", err)
		}
	}
	if k.Address, err = directory.ParseAddress(w.GetAddress()); err != nil {
		return directory.Key{}, fmt.Errorf("address: %w", err)
	}
	if w.GetPort() > 65535 {
		return directory.Key{}, fmt.Errorf("port: %d is not from 0 to 65535", w.GetPort())
	}
	k.Port = uint16(w.GetPort())
	return k, k.Check()
}

// FromEndpointDelta gives a delta its wire form.
func FromEndpointDelta(d *directory.Delta) *wire.EndpointDelta {
	w := &wire.EndpointDelta{Revision: d.Revision, Reset_: d.Reset, Complete: d.Complete}
	for _, e := range d.Upserts {
		w.Upserts = append(w.Upserts, FromEndpoint(e))
	}
	for _, k := range d.Deletes {
		w.Deletes = append(w.Deletes, FromEndpointKey(k))
	}
	return w
}

// ToEndpointDelta parses a delta. Faults are what cannot be read of it, which
// is left out.
func ToEndpointDelta(w *wire.EndpointDelta) (d *directory.Delta, faults []error) {
	d = &directory.Delta{Revision: w.GetRevision(), Reset: w.GetReset_(), Complete: w.GetComplete()}
	for _, u := range w.GetUpserts() {
		e, err := ToEndpoint(u)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		d.Upserts = append(d.Upserts, e)
	}
	for _, u := range w.GetDeletes() {
		k, err := ToEndpointKey(u)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		d.Deletes = append(d.Deletes, k)
	}
	return d, faults
}
