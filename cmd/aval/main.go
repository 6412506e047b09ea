// Command aval is the whole of Aval in one binary: server, agent, proxy, and
// the operator's verbs.
//
// It owns flags, configuration, the order of construction, exit codes and
// what is printed; every part that it starts lives in a room of its own. It
// is the top floor and may import all others.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(realMain()) }

// realMain runs the process until it is done or a signal ends it. The first
// SIGINT or SIGTERM stops gracefully, the second kills.
func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args[1:], streams{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		environ: os.Environ(), color: colorTerminal(os.Stdout, os.Environ()),
	})
}
