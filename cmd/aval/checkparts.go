// This file holds what check asks the server and the agent.

package main

import (
	"context"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
)

func (c *cli) checkServer(ctx context.Context, f *findings) {
	f.group = "server"
	var st *wire.ServerStatusResponse
	var nodes *wire.ListNodesResponse
	var rollover *wire.RotationState
	err := c.admin(ctx, func(admin wire.AdminClient) error {
		var err error
		if st, err = admin.ServerStatus(ctx, &wire.ServerStatusRequest{}); err != nil {
			return called("ask for the status", err)
		}
		if lagging(st) {
			// A checkpoint follows an entry within a second.
			if rotation.Pause(ctx, 1500*time.Millisecond) {
				if st, err = admin.ServerStatus(ctx, &wire.ServerStatusRequest{}); err != nil {
					return called("ask for the status", err)
				}
			}
		}
		if nodes, err = admin.ListNodes(ctx, &wire.ListNodesRequest{}); err != nil {
			return called("ask for the nodes", err)
		}
		rollover, err = c.rotationNow(ctx, admin)
		return err
	})
	path, pathErr := socketPath(c.adminSocket)
	if pathErr == nil {
		f.socket(path, false)
	}
	if err != nil {
		f.add(checkFail, "reachable", "start it, or name its socket with --admin-socket", "%v", err)
		return
	}
	f.add(checkOK, "reachable", "", "%s, version %s, up for %s, nodes at %s", st.GetServerId(), st.GetVersion(),
		short(time.Duration(st.GetUptime())*time.Millisecond), st.GetListen())
	f.skew("clock", time.Until(time.UnixMilli(st.GetClock())), "the server's clock")
	f.dataDir(st.GetDataDir())
	f.authorities(st.GetAuthorities())
	f.upstream(st.GetUpstream())
	f.rollover(rollover)
	f.store(st)
	f.logs(st.GetLogs())
	f.nodes(nodes.GetNodes())
	f.documents(st)
	f.endpoints(st)
	f.keySets(st.GetKeySets())
}

func lagging(st *wire.ServerStatusResponse) bool {
	for _, l := range st.GetLogs() {
		if l.GetCheckpointSize() < l.GetEntries() {
			return true
		}
	}
	return false
}

func (f *findings) authorities(all []*wire.AuthorityState) {
	f.group = "expiry"
	for _, a := range all {
		from, to := stamp(a.GetNotBefore()), stamp(a.GetNotAfter())
		if a.GetState() == "trusted" {
			f.add(checkOK, "other root", "", "trusted besides, while a rollover is under way; ends %s", ago(to, f.now))
			continue
		}
		switch a.GetRole() {
		case "root":
			// A rollover begins by itself at two thirds, where it may.
			f.lifetime("root", from, to, 0.3, 0.1, "replace it: aval rotation start root; nothing is issued past its end")
		default:
			// Renewed at half its life, give or take a tenth.
			f.lifetime(a.GetRole(), from, to, 0.35, 0.1, "the server should have renewed it: look at its log")
		}
	}
}

// rollover says how far a rollover of the root is, and who holds it.
func (f *findings) rollover(s *wire.RotationState) {
	f.group = "rotation"
	switch {
	case ended(s):
		f.add(checkOK, "root", "", "no rollover is under way")
	case s.GetFault() != "":
		f.add(checkFail, "root", "see aval rotation status", "%s since %s, and the last try of a step failed: %s", s.GetPhase(), ago(stamp(s.GetSince()), f.now), s.GetFault())
	case len(s.GetHolders()) > 0:
		f.add(checkWarn, "root", "see aval rotation status; evict nodes that are gone for good", "%s since %s, %s", s.GetPhase(), ago(stamp(s.GetSince()), f.now), progress(s))
	default:
		f.add(checkOK, "root", "", "%s since %s; %s", s.GetPhase(), ago(stamp(s.GetSince()), f.now), s.GetGate())
	}
}

// upstream says who signs intermediates, and how that went.
func (f *findings) upstream(u *wire.UpstreamState) {
	switch {
	case u == nil:
	case u.GetError() != "" && u.GetByHand():
		f.add(checkWarn, "signer", "aval ca csr, have it signed, aval ca import", "%s: an intermediate is due", u.GetName())
	case u.GetError() != "":
		f.add(checkFail, "signer", "the intermediate in force issues on until it ends: mend what signs it", "%s, %s: %s",
			u.GetName(), plural(int(u.GetFailures()), "failure"), u.GetError())
	default:
		f.add(checkOK, "signer", "", "%s", u.GetName())
	}
}

func (f *findings) store(st *wire.ServerStatusResponse) {
	f.group = "store"
	f.add(checkOK, "position", "", "epoch %d, revision %d, %s", st.GetPosition().GetEpoch(), st.GetPosition().GetRevision(),
		plural(int(st.GetDocuments()), "document"))
}

func (f *findings) logs(logs []*wire.LogState) {
	f.group = "record"
	for _, l := range logs {
		switch {
		case l.GetError() != "":
			f.add(checkFail, l.GetName(), "free disk space; the authority log stops issuance when it cannot be written", "%s", l.GetError())
		case l.GetCheckpointSize() < l.GetEntries():
			f.add(checkWarn, l.GetName(), "the signed checkpoint lags: look at the server's log", "%d entries, %d under the checkpoint", l.GetEntries(), l.GetCheckpointSize())
		default:
			f.add(checkOK, l.GetName(), "", "%d entries, all under the signed checkpoint", l.GetEntries())
		}
	}
}

func (f *findings) nodes(nodes []*wire.NodeState) {
	f.group = "nodes"
	connected := 0
	for _, n := range nodes {
		if n.GetEvicted() {
			continue
		}
		if n.GetConnected() {
			connected++
			if skew := time.Duration(n.GetClockSkew()) * time.Millisecond; skew.Abs() > maxSkew {
				f.skew("clock of "+n.GetName(), skew, "its clock")
			}
			continue
		}
		hint := "is its agent running? aval node evict " + n.GetName() + " if it is gone for good"
		f.add(checkWarn, n.GetName(), hint, "away, last seen %s", ago(stamp(n.GetLastSeen()), f.now))
	}
	f.add(checkOK, "connected", "", "%s", plural(connected, "node"))
}

func (f *findings) documents(st *wire.ServerStatusResponse) {
	f.group = "documents"
	for _, name := range st.GetOpenRegistrations() {
		f.add(checkWarn, "registration "+name, "name nodes in spec.node if it is not meant for all", "open to every node")
	}
	if !st.GetDefaultDeny() {
		for _, name := range st.GetWorkloadsWithoutAllow() {
			f.add(checkWarn, "registration "+name, "add an AuthorizationPolicy with ALLOW, or set authorization.default: deny",
				"no ALLOW policy selects it: every peer of the trust domain may connect")
		}
	}
	for _, text := range st.GetConflicts() {
		f.add(checkWarn, "conflict", "delete one of the two", "%s", text)
	}
	if n := len(st.GetOpenRegistrations()) + len(st.GetConflicts()); n == 0 {
		f.add(checkOK, "documents", "", "no registration is open to every node, no policy is ignored")
	}
}

func (c *cli) checkAgent(ctx context.Context, f *findings) {
	f.group = "agent"
	if path, err := socketPath(c.agentSocket); err == nil {
		f.socket(path, true)
	}
	var st *wire.StatusResponse
	err := c.local(ctx, func(local wire.LocalClient) error {
		var err error
		st, err = local.Status(ctx, &wire.StatusRequest{})
		return called("ask for the status", err)
	})
	if err != nil {
		f.add(checkFail, "reachable", "start it, or name its socket with --socket", "%v", err)
		return
	}
	f.add(checkOK, "reachable", "", "%s, version %s", orDash(st.GetNodeId()), st.GetVersion())
	contact := ago(stamp(st.GetLastContact()), f.now)
	if st.GetConnected() {
		f.add(checkOK, "server", "", "connected, last heard %s", contact)
		f.skew("clock", time.Duration(st.GetClockSkew())*time.Millisecond, "the server's clock")
	} else {
		f.add(checkFail, "server", "is the server up, and its address reachable from here? the agent tries again by itself",
			"not connected, last heard %s%s", contact, because(st.GetLastError()))
	}
	if st.GetCredentialNotAfter() > 0 {
		f.lifetime("node credential", stamp(st.GetCredentialNotBefore()), stamp(st.GetCredentialNotAfter()), 0.35, 0.1,
			"the agent renews it while its server is reachable")
	}
	for _, log := range st.GetContradicted() {
		f.add(checkFail, "record", "compare it with the agents' checkpoints: aval audit verify --checkpoints DIR",
			"log %s took back what it had signed: it was cut, forked or replaced", log)
	}
	f.add(checkOK, "identities", "", "%s held, %s for this node", plural(int(st.GetIdentities()), "SVID"), plural(int(st.GetRegistrations()), "registration"))
}

func because(reason string) string {
	if reason = strings.TrimSpace(reason); reason == "" {
		return ""
	}
	return ": " + reason
}
