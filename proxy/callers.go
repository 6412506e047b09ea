// This file holds the finding out which process of this machine a client
// without identity is. It goes on beside the connection, which never waits.

package proxy

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/neighbour"
	"github.com/aval-id/aval/identity/wire"
)

// Bounds of the search. A record that finds no room goes its way without the
// process.
const (
	callersWaiting = 128
	// searchesPerSecond bounds the looks through /proc, and searchTime each of
	// them. Without one the kernel still says whose socket it is.
	searchesPerSecond = 2
	searchTime        = 300 * time.Millisecond
	// askTime bounds a question to the agent. There is one for each search.
	askTime = 500 * time.Millisecond
)

// unknownCaller is a record that waits for its client's process.
type unknownCaller struct {
	e                   *audit.Event
	source, destination netip.AddrPort
}

// callers is the queue of records whose client may be a process of this
// machine.
type callers struct {
	waiting chan unknownCaller
	add     func(*audit.Event, netip.Addr)
	// ask asks the agent, which may see processes that the proxy may not; nil
	// asks nobody. It is set before run.
	ask func(context.Context, *wire.HolderRequest) (*wire.HolderResponse, error)

	mu   sync.Mutex
	over bool // guarded by mu: nobody takes from waiting any more
}

func newCallers(add func(*audit.Event, netip.Addr)) *callers {
	return &callers{waiting: make(chan unknownCaller, callersWaiting), add: add}
}

// offer takes over a record of a client without identity whose address may be
// this machine's: a loopback address, or the one that it dialled. It never
// blocks.
func (c *callers) offer(e *audit.Event, source, destination netip.AddrPort) bool {
	if e.Direction != audit.DirectionInbound || e.ClientID != "" || !destination.IsValid() ||
		!source.Addr().IsLoopback() && source.Addr() != destination.Addr() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	select {
	case c.waiting <- unknownCaller{e, source, destination}:
		return true
	default:
		return false
	}
}

// run finds processes until ctx ends, and then lets go of every record.
func (c *callers) run(ctx context.Context) {
	var searched [searchesPerSecond]time.Time
	next := 0
	for {
		select {
		case <-ctx.Done():
			c.end()
			return
		case first := <-c.waiting:
			now := time.Now()
			search := now.Sub(searched[next]) >= time.Second
			if search {
				searched[next], next = now, (next+1)%len(searched)
			}
			c.identify(ctx, c.together(first), search)
		}
	}
}

// together takes what waits besides.
func (c *callers) together(first unknownCaller) []unknownCaller {
	all := []unknownCaller{first}
	for len(all) < callersWaiting {
		select {
		case u := <-c.waiting:
			all = append(all, u)
		default:
			return all
		}
	}
	return all
}

// identify asks for each socket, looks for the processes of all at once, and
// sends the records on.
func (c *callers) identify(ctx context.Context, all []unknownCaller, search bool) {
	sockets := make([]neighbour.Socket, len(all))
	var held []neighbour.Socket
	for i, u := range all {
		if s, err := neighbour.Find(u.source, u.destination); err == nil {
			sockets[i], held = s, append(held, s)
		}
	}
	var found map[neighbour.Socket]neighbour.Process
	if search && len(held) > 0 {
		found = neighbour.Holders(held, time.Now().Add(searchTime))
	}
	for i, u := range all {
		if s := sockets[i]; s.Inode != 0 {
			p, ok := found[s]
			if !ok {
				p = neighbour.Process{UID: s.UID}
				if search {
					p, search = c.asked(ctx, u, p), false // once
				}
			}
			u.e.ClientProcess = p.String()
		}
		c.add(u.e, u.source.Addr())
	}
}

// asked is what the agent knows of a socket's process, or p where it knows no
// more.
func (c *callers) asked(ctx context.Context, u unknownCaller, p neighbour.Process) neighbour.Process {
	if c.ask == nil {
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	h, err := c.ask(ctx, &wire.HolderRequest{Source: u.source.String(), Destination: u.destination.String()})
	if err == nil && h.GetUid() == p.UID {
		p.Unit, p.Exe = h.GetUnit(), h.GetExe()
	}
	return p
}

func (c *callers) end() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	for {
		select {
		case u := <-c.waiting:
			c.add(u.e, u.source.Addr())
		default:
			return
		}
	}
}
