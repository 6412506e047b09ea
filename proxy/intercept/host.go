// This file holds Host, the three acts on a namespace's rules: Setup, Cleanup
// and the comparison that Check makes.

package intercept

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Tool is the command that rules are spoken in.
type Tool string

// The tools.
const (
	NFT      Tool = "nft"
	IPTables Tool = "iptables"
)

// ErrNoTool says that neither tool is installed.
var ErrNoTool = errors.New("neither nft (package nftables) nor iptables is installed")

// ErrPermission says that the caller may not see or change rules: root, or
// CAP_NET_ADMIN in the namespace, is needed.
var ErrPermission = errors.New("root or CAP_NET_ADMIN is needed")

// Host is the network namespace whose rules are meant, and the tool. It is a
// value; every act runs to its end in the call.
type Host struct {
	// Namespace is a name of "ip netns" or an absolute path; empty means the
	// process's own.
	Namespace string
	// Tool is empty for nft where it is installed, else iptables.
	Tool Tool
}

// backend is the rules in one tool's words.
type backend interface {
	tool() Tool
	// apply replaces what is installed by r, atomically in each address family.
	apply(ctx context.Context, r Rules) error
	// installed and wanted return comparable lines.
	installed(ctx context.Context) ([]string, error)
	wanted(r Rules) []string
	// remove reports whether there was anything.
	remove(ctx context.Context) (bool, error)
}

// backend chooses the tool.
func (h Host) backend() (backend, error) {
	all := available()
	switch h.Tool {
	case "":
		if len(all) == 0 {
			return nil, ErrNoTool
		}
		return all[0], nil
	case NFT, IPTables:
		for _, b := range all {
			if b.tool() == h.Tool {
				return b, nil
			}
		}
		return nil, fmt.Errorf("%s: %w", h.Tool, exec.ErrNotFound)
	}
	return nil, fmt.Errorf("tool %q is neither %s nor %s", h.Tool, NFT, IPTables)
}

// available returns the tools that are installed, the preferred one first.
func available() []backend {
	var all []backend
	if _, err := find("nft"); err == nil {
		all = append(all, nft{command})
	}
	if _, err := find("iptables-restore"); err == nil {
		all = append(all, iptables{command})
	}
	return all
}

// Setup puts the rules in place of whatever Setup made before, with either
// tool. It may be repeated. With nft the change is one transaction; iptables
// makes one for each address family.
func (h Host) Setup(ctx context.Context, r Rules) (Tool, error) {
	r, err := r.check()
	if err != nil {
		return "", err
	}
	chosen, err := h.backend()
	if err != nil {
		return "", err
	}
	return chosen.tool(), h.act(func() error {
		if err := chosen.apply(ctx, r); err != nil {
			return err
		}
		for _, other := range available() {
			if other.tool() == chosen.tool() {
				continue
			}
			if _, err := other.remove(ctx); err != nil {
				return fmt.Errorf("remove what %s made: %w", other.tool(), err)
			}
		}
		return nil
	})
}

// Cleanup removes what Setup made, with either tool, and nothing else. It
// returns the tools whose rules were there.
func (h Host) Cleanup(ctx context.Context) (removed []Tool, err error) {
	all := available()
	if len(all) == 0 {
		return nil, ErrNoTool
	}
	err = h.act(func() error {
		for _, b := range all {
			if h.Tool != "" && h.Tool != b.tool() {
				continue
			}
			there, err := b.remove(ctx)
			if there {
				removed = append(removed, b.tool())
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return removed, err
}

// Script is what Setup would feed to the tool where nothing is installed yet.
func (h Host) Script(r Rules) (string, error) {
	r, err := r.check()
	if err != nil {
		return "", err
	}
	switch h.Tool {
	case "", NFT:
		return nftScript(r), nil
	case IPTables:
		var b strings.Builder
		for _, f := range families() {
			fmt.Fprintf(&b, "# %s --noflush\n%s", f.restore, restoreScript(nil, chainRules(r, f.six)))
		}
		return b.String(), nil
	}
	return "", fmt.Errorf("tool %q is neither %s nor %s", h.Tool, NFT, IPTables)
}

// act runs f in the namespace and marks what failed for want of privilege.
func (h Host) act(f func() error) error {
	err := inside(h.Namespace, f)
	if err != nil && isPermission(err) {
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}
