// This file holds the rotation commands: start, status, abort, advance, force
// and taint.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/wire"
	"github.com/aval-id/aval/rotation"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (c *cli) rotationCommand() *cobra.Command {
	return group("rotation", "Replace roots, intermediates and leaves while everything runs",
		c.rotationStatusCommand(), c.rotationStartCommand(),
		c.rotationVerbCommand("abort", "Give a rollover up before the new root issues",
			"Abort takes the new root out of the bundles again and destroys its key. Once the\nnew root issues there is no way back but another rollover."),
		c.rotationVerbCommand("advance", "Take the next step now, where its gate holds",
			"Advance takes the step that a rollover started with --manual waits for. Where the\ngate is held it says by whom, and does nothing."),
		c.rotationForceCommand(), c.rotationTaintCommand())
}

// rotationTargets are what a rotation can be about.
var rotationTargets = []string{"root", "intermediate", "leaves"}

// rotationTarget reads TARGET and NAME.
func rotationTarget(verb string, args []string, all ...string) (target, name string, err error) {
	if len(args) == 0 {
		return "", "", usage(fmt.Errorf("rotation %s: name what: %s", verb, strings.Join(all, ", ")))
	}
	target = args[0]
	if !slices.Contains(all, target) {
		return "", "", usage(fmt.Errorf("rotation %s: %q is none of %s", verb, target, strings.Join(all, ", ")))
	}
	if len(args) > 1 {
		name = args[1]
	}
	switch {
	case target == "leaves" && name == "":
		return "", "", usage(fmt.Errorf("rotation %s leaves: name a workload (namespace/name), a node (node/NAME) or a namespace", verb))
	case target != "leaves" && name != "":
		return "", "", usage(fmt.Errorf("rotation %s %s: it takes no name", verb, target))
	}
	return target, name, nil
}

func (c *cli) rotationStatusCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status [TARGET] [NAME]", Short: "How far a rotation is, who holds it, what forcing would break", Args: takes("[TARGET]", "[NAME]"),
		Long: `Status shows a rotation's phase, the gate of its next step, who holds that and
since when, the earliest safe time of the step as far as it is known, and, by
name, what forcing it would break.`,
		Example: "  aval rotation status\n  aval rotation status root --watch\n  aval rotation status leaves shop/api -o json",
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again at each change, until interrupted")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			args = []string{"root"}
		}
		target, name, err := rotationTarget("status", args, rotationTargets...)
		if err != nil {
			return err
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			return c.followRotation(ctx, admin, &wire.RotationStatusRequest{Target: target, Name: name, Watch: watch},
				func(s *wire.RotationState) (bool, error) { return false, c.showRotation(s) })
		})
	})
	return cmd
}

// followRotation calls look with each state until it is done or the stream
// ends.
func (c *cli) followRotation(ctx context.Context, admin wire.AdminClient, req *wire.RotationStatusRequest, look func(*wire.RotationState) (bool, error)) error {
	stream, err := admin.RotationStatus(ctx, req)
	if err != nil {
		return called("rotation status", err)
	}
	for {
		s, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if ctx.Err() != nil && req.GetWatch() {
				return nil // interrupted by the person who watches
			}
			return called("rotation status", err)
		}
		if done, err := look(s); done || err != nil {
			return err
		}
	}
}

func (c *cli) rotationStartCommand() *cobra.Command {
	var wait, yes, manual bool
	var settle time.Duration
	var key, reason string
	cmd := &cobra.Command{
		Use: "start TARGET [NAME]", Short: "Begin a rotation of the root, the intermediate, or leaves", Args: takes("TARGET", "[NAME]"),
		Long: `Start root makes a new root, publishes it beside the old one, has every leaf
issued anew under it once every live node has acknowledged, and removes the old
one once nobody live serves a leaf of it. It goes on by itself; with --wait the
command returns when the old root is removed, with the time of each phase and n
of N nodes at each.

Start intermediate replaces this server's signing certificate and every leaf of
the ones before it. Start leaves NAME has the leaves of a workload
(namespace/name), a node (node/NAME) or a namespace issued anew at once. A key
that may be stolen stays good until its certificate ends all the same.`,
		Example: `  aval rotation start root --wait --yes
  aval rotation start root --manual --settle 2m --key softkms:path=/etc/aval/root-2.key --yes
  aval rotation start intermediate --wait --yes
  aval rotation start leaves node/db-1 --wait --yes -o json`,
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return when the rotation is done")
	cmd.Flags().BoolVar(&manual, "manual", false, "take no step by itself: each waits for aval rotation advance root")
	cmd.Flags().DurationVar(&settle, "settle", 30*time.Second, "how long clients that acknowledge nothing are given before the old root is removed")
	cmd.Flags().StringVar(&key, "key", "", "KMS URI of the new root's key (default: a file beside the old one)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.yesFlag(cmd, &yes)
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		target, name, err := rotationTarget("start", args, rotationTargets...)
		if err != nil {
			return err
		}
		if settle < 0 {
			return usage(fmt.Errorf("rotation start: --settle %s is negative", settle))
		}
		if target != "root" && (manual || key != "" || cmd.Flags().Changed("settle")) {
			return usage(fmt.Errorf("rotation start %s: --manual, --key and --settle are a root's", target))
		}
		req := &wire.RotateRequest{Verb: "start", Target: target, Name: name, Settle: settle.Milliseconds(), Manual: manual, Key: key, Reason: reason}
		if settle == 0 {
			req.Settle = -1
		}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.startRotation(ctx, admin, req, wait, yes) })
	})
	return cmd
}

func (c *cli) startRotation(ctx context.Context, admin wire.AdminClient, req *wire.RotateRequest, wait, yes bool) error {
	what := req.GetTarget()
	if req.GetName() != "" {
		what += " " + req.GetName()
	}
	if err := c.typedBack(yes, "start a rotation of "+what, req.GetTarget()); err != nil {
		return err
	}
	s, err := admin.Rotate(ctx, req)
	if err != nil {
		return called("rotation start", err)
	}
	if !wait {
		return c.showRotation(s)
	}
	return c.awaitRotation(ctx, admin, s)
}

// awaitRotation follows a rotation to its end. A server that restarts
// meanwhile is asked again.
func (c *cli) awaitRotation(ctx context.Context, admin wire.AdminClient, s *wire.RotationState) error {
	req := &wire.RotationStatusRequest{Target: s.GetTarget(), Name: s.GetName(), Watch: true}
	told := ""
	for attempt := 0; ; attempt++ {
		last := s
		err := c.followRotation(ctx, admin, req, func(next *wire.RotationState) (bool, error) {
			attempt = 0
			if next.GetId() != s.GetId() {
				return true, fmt.Errorf("rotation start: another rollover, %s, took the place of %s", next.GetId(), s.GetId())
			}
			last = next
			if line := progress(next); line != told {
				told = line
				fmt.Fprintln(c.err, line)
			}
			return ended(next), nil
		})
		switch {
		case err == nil && ended(last):
			if err := c.showRotation(last); err != nil {
				return err
			}
			if last.GetPhase() == string(rotation.Aborted) {
				return negative()
			}
			return nil
		case ctx.Err() != nil:
			fmt.Fprintln(c.err, "the rotation goes on without this command; see aval rotation status")
			return negative()
		case err != nil && status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled || attempt > 60:
			return err
		}
		if !rotation.Pause(ctx, time.Second) {
			return negative()
		}
	}
}

// ended reports whether a rotation is over.
func ended(s *wire.RotationState) bool {
	switch s.GetPhase() {
	case "removed", "aborted", "done", "idle":
		return true
	}
	return false
}

func (c *cli) rotationVerbCommand(verb, short, long string) *cobra.Command {
	var reason string
	cmd := &cobra.Command{Use: verb + " root", Short: short, Long: long, Args: takes("root"), Example: "  aval rotation " + verb + " root"}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		if _, _, err := rotationTarget(verb, args, "root"); err != nil {
			return err
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			s, err := admin.Rotate(ctx, &wire.RotateRequest{Verb: verb, Target: "root", Reason: reason})
			if err != nil {
				return called("rotation "+verb, err)
			}
			return c.showRotation(s)
		})
	})
	return cmd
}

func (c *cli) rotationForceCommand() *cobra.Command {
	var yes bool
	var reason string
	cmd := &cobra.Command{
		Use: "force root", Short: "Take the next step past its gate", Args: takes("root"),
		Long: `Force shows what the next step would break, by name, and takes it all the same
once the rollover's ID is typed back (or with --yes). The step is recorded with
who did it and what was shown. Where the rollover moved on meanwhile nothing is
done.`,
		Example: "  aval rotation force root\n  aval rotation force root --yes --reason 'node db-1 is gone for good'",
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.yesFlag(cmd, &yes)
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		if _, _, err := rotationTarget("force", args, "root"); err != nil {
			return err
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			shown, err := c.rotationNow(ctx, admin)
			if err != nil {
				return err
			}
			if ended(shown) {
				return fmt.Errorf("rotation force: no rollover of the root is under way")
			}
			c.warnBreaks(shown)
			if err := c.typedBack(yes, "force the step to "+shown.GetNext(), shown.GetId()); err != nil {
				return err
			}
			return c.rotate(ctx, admin, &wire.RotateRequest{Verb: "force", Target: "root", Reason: reason, Confirm: shown.GetId() + "/" + shown.GetPhase()})
		})
	})
	return cmd
}

func (c *cli) rotationTaintCommand() *cobra.Command {
	var yes bool
	var reason string
	cmd := &cobra.Command{
		Use: "taint root", Short: "Replace a root that can't be trusted any more, at once", Args: takes("root"),
		Long: `Taint starts an emergency rollover, or makes one of the rollover under way: the
new root is published and every leaf is issued anew under it at once, without
waiting for acknowledgements. The tainted root leaves the bundles when nobody
live serves a leaf of it, or at force. Until then whoever holds its key can pose
as any workload.`,
		Example: "  aval rotation taint root\n  aval rotation taint root --yes --reason 'the backup with the key was stolen'",
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.yesFlag(cmd, &yes)
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		if _, _, err := rotationTarget("taint", args, "root"); err != nil {
			return err
		}
		return c.admin(ctx, func(admin wire.AdminClient) error {
			shown, err := c.rotationNow(ctx, admin)
			if err != nil {
				return err
			}
			hash := shown.GetOldHash()
			if shown.GetPhase() == string(rotation.Removed) {
				hash = shown.GetNewHash()
			}
			fmt.Fprintf(c.err, "every leaf is issued anew under a new root, and %s leaves the bundles as soon as nobody live needs it;\nthe settle time of 30s and the gate of the removal still hold, until they are forced\n", hash)
			if err := c.typedBack(yes, "taint the root "+hash, hash); err != nil {
				return err
			}
			return c.rotate(ctx, admin, &wire.RotateRequest{Verb: "taint", Target: "root", Reason: reason, Confirm: hash})
		})
	})
	return cmd
}

// rotationNow returns the state of the root's rollover.
func (c *cli) rotationNow(ctx context.Context, admin wire.AdminClient) (now *wire.RotationState, err error) {
	err = c.followRotation(ctx, admin, &wire.RotationStatusRequest{Target: "root"}, func(s *wire.RotationState) (bool, error) {
		now = s
		return true, nil
	})
	return now, err
}

func (c *cli) rotate(ctx context.Context, admin wire.AdminClient, req *wire.RotateRequest) error {
	s, err := admin.Rotate(ctx, req)
	if err != nil {
		return called("rotation "+req.GetVerb(), err)
	}
	return c.showRotation(s)
}

func (c *cli) yesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do it without asking for the name")
}

// maxTyped bounds what is read of an answer.
const maxTyped = 256

// typedBack asks for a name to be typed back before an act.
func (c *cli) typedBack(yes bool, act, name string) error {
	if yes {
		return nil
	}
	fmt.Fprintf(c.err, "to %s, type %s: ", act, name)
	line, err := bufio.NewReader(io.LimitReader(c.in, maxTyped)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(line) != name {
		fmt.Fprintln(c.err)
		return hinted(fmt.Errorf("%s was not typed, so nothing was done", name), exitNegative, "--yes does it without asking")
	}
	return nil
}
