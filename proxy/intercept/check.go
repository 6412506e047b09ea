// This file holds Check: whether the rules and the proxy's ports are as they
// should be.

package intercept

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Finding is one result of Check.
type Finding struct {
	Check  string
	OK     bool
	Detail string
	Hint   string // what mends it; empty where OK
}

// Check compares the namespace with the rules, and looks whether a proxy
// listens on the ports that they redirect to, as the user whose connections
// they let pass. The error is for what keeps it from looking.
func (h Host) Check(ctx context.Context, r Rules) ([]Finding, error) {
	r, err := r.check()
	if err != nil {
		return nil, err
	}
	chosen, err := h.backend()
	if err != nil {
		return nil, err
	}
	var out []Finding
	err = h.act(func() error {
		for _, b := range available() {
			there, err := b.installed(ctx)
			if err != nil {
				return err
			}
			if b.tool() == chosen.tool() {
				out = append(out, compare(b.tool(), b.wanted(r), there))
			} else if len(there) > 0 {
				out = append(out, Finding{Check: string(b.tool()), Detail: "rules of another tool are there too",
					Hint: "aval proxy cleanup --tool " + string(b.tool())})
			}
		}
		if r.Inbound != nil {
			out = append(out, listening("inbound", r.Inbound.To, Owner{}))
		}
		if r.Outbound != nil {
			out = append(out, listening("outbound", r.Outbound.To, r.Outbound.Owner))
		}
		return nil
	})
	return out, err
}

// compare says what is missing and what should not be there.
func compare(tool Tool, want, there []string) Finding {
	f := Finding{Check: "rules"}
	const mend = "aval proxy setup with the same settings puts them right"
	if len(there) == 0 {
		f.Detail, f.Hint = fmt.Sprintf("nothing is intercepted: no rules of ours, asked with %s", tool), mend
		return f
	}
	missing, extra := without(want, there), without(there, want)
	switch {
	case len(missing)+len(extra) > 0:
		var parts []string
		for _, m := range missing {
			parts = append(parts, "missing: "+m)
		}
		for _, e := range extra {
			parts = append(parts, "not of these settings: "+e)
		}
		f.Detail, f.Hint = strings.Join(parts, "; "), mend
	case !slices.Equal(want, there):
		f.Detail, f.Hint = "all rules are there, in another order", mend
	default:
		f.OK, f.Detail = true, fmt.Sprintf("%d lines as they should be, asked with %s", len(want), tool)
	}
	return f
}

// without returns what of a is not in b, as often as it is missing.
func without(a, b []string) []string {
	left := slices.Clone(b)
	var out []string
	for _, s := range a {
		if i := slices.Index(left, s); i >= 0 {
			left = slices.Delete(left, i, i+1)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// listening looks for the proxy's socket on the calling thread's namespace.
func listening(direction string, port uint16, owner Owner) Finding {
	f := Finding{Check: direction + " port"}
	uids, err := listeners(port)
	switch {
	case err != nil:
		f.Detail, f.Hint = err.Error(), "mount /proc"
	case len(uids) == 0:
		f.Detail = fmt.Sprintf("nothing listens on %d, so that redirected connections are refused", port)
		f.Hint = "start the proxy; it listens once it holds a snapshot from its agent"
	case owner.UID != nil && owner.GID == nil && slices.ContainsFunc(uids, func(u uint32) bool { return u != *owner.UID }):
		f.Detail = fmt.Sprintf("the listener on %d runs as uid %d, but the rules let uid %d pass: the proxy would be handed its own connections, and refuse them", port, uids[0], *owner.UID)
		f.Hint = fmt.Sprintf("run the proxy as uid %d, or set up with its user", *owner.UID)
	default:
		f.OK, f.Detail = true, fmt.Sprintf("%d is open, as uid %d", port, uids[0])
	}
	return f
}

// listeners returns the users of the TCP sockets that listen on a port.
func listeners(port uint16) ([]uint32, error) {
	var uids []uint32
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + name)
		if errors.Is(err, os.ErrNotExist) && name == "tcp6" {
			continue // IPv6 is off
		}
		if err != nil {
			return nil, err
		}
		uids = append(uids, parseListeners(string(text), port)...)
	}
	return uids, nil
}

// parseListeners reads /proc/net/tcp: local address in the second column,
// state in the fourth (0A listens), uid in the eighth.
func parseListeners(text string, port uint16) []uint32 {
	var uids []uint32
	suffix := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(text) {
		c := strings.Fields(line)
		if len(c) < 8 || c[3] != "0A" || !strings.HasSuffix(c[1], suffix) {
			continue
		}
		var uid uint32
		if _, err := fmt.Sscanf(c[7], "%d", &uid); err == nil {
			uids = append(uids, uid)
		}
	}
	return uids
}
