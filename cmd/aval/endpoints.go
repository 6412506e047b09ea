// This file holds the registry of endpoints, shown: who takes connections
// where, and which reports of nodes do not count.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/wire"
)

// endpoint is one in JSON and YAML. A proxy does not say the first three.
type endpoint struct {
	Node         string            `json:"node,omitempty"`
	Registration string            `json:"registration,omitempty"`
	SPIFFEID     string            `json:"spiffe_id,omitempty"`
	Address      string            `json:"address"`
	Port         uint32            `json:"port"` // 0 is any
	Except       []uint32          `json:"except,omitempty"`
	Mode         string            `json:"mode"`
	PortModes    map[uint32]string `json:"port_modes,omitempty"`
	Protocol     string            `json:"protocol,omitempty"`
	ALPN         []string          `json:"alpn,omitempty"`
}

// endpointState is what the server makes of an endpoint.
type endpointState struct {
	endpoint
	State     string    `json:"state"`
	Reason    string    `json:"reason,omitempty"`
	Evidence  string    `json:"evidence,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Connected bool      `json:"connected"`
}

func endpointOf(e *wire.Endpoint) endpoint {
	return endpoint{Node: e.GetNode(), Registration: e.GetRegistration(), SPIFFEID: e.GetSpiffeId(), Address: e.GetAddress(), Port: e.GetPort(),
		Except: e.GetExcept(), Mode: e.GetMode(), PortModes: e.GetPortModes(), Protocol: e.GetProtocol(), ALPN: e.GetAlpn()}
}

// where prints address and port.
func (e endpoint) where() string {
	port := "*"
	if e.Port != 0 {
		port = strconv.Itoa(int(e.Port))
	}
	return net.JoinHostPort(e.Address, port)
}

// modes prints the mode and where it is another.
func (e endpoint) modes() string {
	var others []string
	for port, mode := range e.PortModes {
		others = append(others, fmt.Sprintf("%d: %s", port, plain(mode)))
	}
	slices.Sort(others)
	for _, port := range e.Except {
		others = append(others, fmt.Sprintf("not %d", port))
	}
	if len(others) == 0 {
		return plain(e.Mode)
	}
	return plain(e.Mode) + " (" + strings.Join(others, ", ") + ")"
}

// isEndpoints reports whether get was asked for the registry.
func isEndpoints(kind string) bool {
	return strings.EqualFold(kind, "endpoints") || strings.EqualFold(kind, "endpoint")
}

// getEndpoints shows the registry, of one namespace or of all.
func (c *cli) getEndpoints(ctx context.Context, admin wire.AdminClient, args []string) error {
	if len(args) > 1 {
		return usage(errors.New("get: endpoints have no names: narrow them with -n"))
	}
	resp, err := admin.ListEndpoints(ctx, &wire.ListEndpointsRequest{})
	if err != nil {
		return called("get endpoints", err)
	}
	var all []endpointState
	for _, st := range resp.GetEndpoints() {
		e := endpointState{endpointOf(st.GetEndpoint()), st.GetState(), st.GetReason(), st.GetEvidence(), stamp(st.GetSince()), st.GetConnected()}
		if namespace, _, _ := strings.Cut(e.Registration, "/"); c.namespace == "" || namespace == c.namespace {
			all = append(all, e)
		}
	}
	return c.show(items(all), func() error {
		if resp.GetSettling() {
			fmt.Fprintln(c.err, "the server has just started, and nodes are still to report")
		}
		if len(all) == 0 {
			fmt.Fprintln(c.err, "no proxy has announced anything")
			return nil
		}
		t := table{heading: []string{"ADDRESS", "IDENTITY", "MODE", "NODE", "STATE", "WHY"}}
		for _, e := range all {
			state, why := e.State, e.Evidence
			if e.Reason != "" {
				why = e.Reason
			}
			if !e.Connected {
				state += ", away"
			}
			t.add(e.where(), dash(plain(e.SPIFFEID)), e.modes(), e.Node[strings.LastIndexByte(e.Node, '/')+1:], state, plain(why))
		}
		return t.print(c.out)
	})
}

// endpoints are what check says of the registry.
func (f *findings) endpoints(st *wire.ServerStatusResponse) {
	f.group = "endpoints"
	for _, text := range st.GetEndpointFaults() {
		f.add(checkWarn, "endpoint", "give the node its addresses with aval token create --attribute address=…, or leave them out with announce: in the proxy's file; aval get endpoints shows all", "%s", text)
	}
	f.add(checkOK, "registered", "", "%s", plural(int(st.GetEndpoints()), "endpoint"))
}

// registryRows say what a proxy has to do with the registry.
func registryRows(r *wire.ProxyRegistry) [][2]string {
	rows := [][2]string{{"Announced", plural(len(r.GetAnnounced()), "endpoint")}}
	switch {
	case r.GetHeld():
		rows = append(rows, [2]string{"Registry", plural(int(r.GetEndpoints()), "endpoint") + " held"})
	case r.GetWanted():
		rows = append(rows, [2]string{"Registry", "not here yet: destinations that are not configured wait"})
	}
	return rows
}

// proxyRegistry is the registry's part of a proxy's status.
type proxyRegistry struct {
	Announced []endpoint         `json:"announced"`
	Wanted    bool               `json:"wanted"`
	Held      bool               `json:"held"`
	Endpoints uint32             `json:"endpoints"`
	Resolved  []proxyDestination `json:"resolved"`
}

type proxyDestination struct {
	Address    string    `json:"address"`
	Origin     string    `json:"origin"`
	Identities []string  `json:"identities,omitempty"`
	Refused    bool      `json:"refused"`
	Count      uint64    `json:"count"`
	Last       time.Time `json:"last"`
}

func registryOf(st *wire.ProxyStatusResponse) proxyRegistry {
	r := st.GetRegistry()
	out := proxyRegistry{Announced: []endpoint{}, Wanted: r.GetWanted(), Held: r.GetHeld(), Endpoints: r.GetEndpoints(), Resolved: []proxyDestination{}}
	for _, e := range r.GetAnnounced() {
		out.Announced = append(out.Announced, endpointOf(e))
	}
	for _, d := range st.GetResolved() {
		out.Resolved = append(out.Resolved, proxyDestination{d.GetAddress(), d.GetOrigin(), d.GetIdentities(), d.GetRefused(), d.GetCount(), stamp(d.GetLast())})
	}
	return out
}

// printResolved lists where processes dialled.
func (c *cli) printResolved(st *wire.ProxyStatusResponse) error {
	if len(st.GetResolved()) == 0 {
		return nil
	}
	fmt.Fprintln(c.out)
	t := table{heading: []string{"DESTINATION", "KNOWN BY", "IDENTITY", "CONNECTIONS", "LAST"}}
	for _, d := range st.GetResolved() {
		who := strings.Join(d.GetIdentities(), ", ")
		switch {
		case d.GetRefused():
			who = "refused"
		case who == "":
			who = "plaintext"
		}
		t.add(plain(d.GetAddress()), d.GetOrigin(), plain(who), strconv.FormatUint(d.GetCount(), 10), ago(stamp(d.GetLast()), time.Now()))
	}
	return t.print(c.out)
}
