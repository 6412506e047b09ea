// Package demo plays the whole of Aval on one machine: a real server, a real
// agent, and real services behind real proxies, each a process of its own in
// a temporary directory, on loopback and Unix sockets.
//
// It owns the story, the processes that play it, and their removal; all it
// shows is done by the binary's own commands or read from the server's
// records, and every number is measured in that run. It stands on the
// command floor.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// onceDeadline bounds a run that does not wait.
const onceDeadline = 58 * time.Second

// crashGrace is how long a failed step waits for the news that a process
// died, which is then the better explanation.
const crashGrace = 500 * time.Millisecond

// Options are what a run of the demo may be told. The zero value narrates to
// nowhere and waits at the end.
type Options struct {
	// Once ends the run after the last step; otherwise it waits until its
	// context is done.
	Once bool
	// Output is "text" (or empty), or "json": one object on Stdout after the
	// last step, and the narration on Stderr.
	Output string
	// Binary is the aval binary; empty means the running executable.
	Binary string
	// Stdout and Stderr default to io.Discard.
	Stdout, Stderr io.Writer
	// Color lets the narration use terminal colours.
	Color bool
	// KeepDir leaves the directory in place at the end.
	KeepDir bool
}

// check fills in the defaults and refuses what cannot be.
func (o Options) check() (Options, error) {
	switch o.Output {
	case "", "text", "json":
	default:
		return o, fmt.Errorf("demo: output %q is none of text, json", o.Output)
	}
	if o.Stdout == nil {
		o.Stdout = io.Discard
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	if o.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("demo: find the aval binary: %w", err)
		}
		o.Binary = exe
	}
	binary, err := filepath.EvalSymlinks(o.Binary)
	if err != nil {
		return o, fmt.Errorf("demo: find the aval binary: %w", err)
	}
	if o.Binary, err = filepath.Abs(binary); err != nil {
		return o, fmt.Errorf("demo: find the aval binary: %w", err)
	}
	return o, nil
}

// Run plays the demo and returns once every process it started has ended and
// its directory is gone. It returns an error that names the step where the
// story went otherwise than told, or the process that died and its last
// words. A context that ends while the demo waits is its ordinary end.
func Run(ctx context.Context, o Options) (err error) {
	o, err = o.check()
	if err != nil {
		return err
	}
	// A child's parent-death signal follows the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if o.Once {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, onceDeadline, fmt.Errorf("it took more than %s", onceDeadline))
		defer cancel()
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	s, err := newSite(o.Binary)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() {
		if left := s.close(o.KeepDir); left != nil && err == nil {
			err = fmt.Errorf("demo: %w", left)
		}
	}()
	cast := newCast(s, fail)
	defer cast.stop()

	p := newPlay(o, s, cast)
	defer p.close()
	return p.run(ctx)
}

// narration is where the story goes: out of the way of a JSON object.
func (o Options) narration() io.Writer {
	if o.Output == "json" {
		return o.Stderr
	}
	return o.Stdout
}

// run plays all steps, prints the result and waits where that is asked for.
func (p *play) run(ctx context.Context) error {
	p.introduce()
	for i, st := range p.steps() {
		p.out.step(i+1, st.title)
		if err := p.settle(ctx, st.act(ctx)); err != nil {
			return fmt.Errorf("demo: step %d (%s): %w", i+1, strings.ToLower(st.title), err)
		}
	}
	p.records.stop()
	if err := p.report(); err != nil {
		return err
	}
	if p.options.Once {
		return nil
	}
	return p.wait(ctx)
}

// settle turns a step's error into its best explanation: a process that died
// or a context that ended explains more than what it led to.
func (p *play) settle(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(crashGrace):
		return err
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) {
		return fmt.Errorf("interrupted: %w", cause)
	}
	return cause
}

// report prints the JSON object and the expectations that were not met.
func (p *play) report() error {
	if p.options.Output == "json" {
		if err := json.NewEncoder(p.options.Stdout).Encode(p.result); err != nil {
			return fmt.Errorf("demo: print the result: %w", err)
		}
	}
	if len(p.result.Unmet) > 0 {
		return fmt.Errorf("demo: not as told: %s", strings.Join(p.result.Unmet, "; "))
	}
	return nil
}

// wait leaves the stage open until the context ends.
func (p *play) wait(ctx context.Context) error {
	p.invite()
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return fmt.Errorf("demo: %w", cause)
	}
	p.out.say("")
	p.out.say("Stopping every process and removing %s.", p.site.dir)
	return nil
}
