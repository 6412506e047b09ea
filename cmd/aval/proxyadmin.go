// This file holds the verbs on a running proxy: status, connections, drain.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

// proxyAdminFlag declares where operators find a proxy.
func (c *cli) proxyAdminFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.proxySocket, "admin", c.lookup("AVAL_PROXY_ADMIN"),
		"the proxy's admin socket, as its file says (env AVAL_PROXY_ADMIN)")
}

// proxyAdmin calls body with a client of a proxy's admin socket.
func (c *cli) proxyAdmin(ctx context.Context, body func(wire.ProxyAdminClient) error) error {
	if c.proxySocket == "" {
		return hinted(errors.New("proxy: --admin is missing"), exitUsage,
			"it is the path that stands at admin: in the proxy's file")
	}
	conn, err := dialSocket(ctx, c.proxySocket, "proxy", "name its socket with --admin or AVAL_PROXY_ADMIN, and set it as admin: in its file")
	if err != nil {
		return err
	}
	defer conn.Close()
	return body(wire.NewProxyAdminClient(conn))
}

func (c *cli) proxyStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status --admin PATH", Short: "Say how a proxy is: identity, listeners, limits", Args: takes(),
		Long: `Status asks a running proxy for its identity, its listeners with the mode in
force, how much of its limits is in use, and what is wrong. Exit code 1 means
that it admits nothing new.`,
		Example: "  aval proxy status --admin /run/aval/proxy/api/admin.sock\n  aval proxy status --admin api.sock -o json",
	}
	c.proxyAdminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		return c.proxyAdmin(ctx, func(admin wire.ProxyAdminClient) error {
			st, err := admin.ProxyStatus(ctx, &wire.ProxyStatusRequest{})
			if err != nil {
				return called("proxy status", err)
			}
			if err := c.show(statusOf(st), func() error { return c.printProxyStatus(st) }); err != nil {
				return err
			}
			if st.GetNotReady() != "" {
				return negative()
			}
			return nil
		})
	})
	return cmd
}

// proxyStatus is the status in JSON and YAML.
type proxyStatus struct {
	Identity       string          `json:"identity"`
	Serial         string          `json:"serial"`
	NotAfter       time.Time       `json:"not_after,omitzero"`
	Node           string          `json:"node"`
	Generation     uint64          `json:"generation"`
	Connected      bool            `json:"connected"`
	Ready          bool            `json:"ready"`
	NotReady       string          `json:"not_ready,omitempty"`
	Draining       bool            `json:"draining"`
	Withdrawn      string          `json:"withdrawn,omitempty"`
	Fault          string          `json:"fault,omitempty"`
	Open           int64           `json:"open"`
	MaxConnections int64           `json:"max_connections"`
	Handshakes     int64           `json:"handshakes"`
	MaxHandshakes  int64           `json:"max_handshakes"`
	MemoryBytes    uint64          `json:"memory_bytes"`
	MaxMemoryBytes uint64          `json:"max_memory_bytes"`
	RecordsWaiting uint64          `json:"records_waiting"`
	PID            int64           `json:"pid"`
	Listeners      []proxyListener `json:"listeners"`
	Registry       proxyRegistry   `json:"registry"`
}

type proxyListener struct {
	Name       string `json:"name,omitempty"`
	Direction  string `json:"direction"`
	Address    string `json:"address"`
	Target     string `json:"target"`
	Port       uint32 `json:"port,omitempty"`
	Mode       string `json:"mode,omitempty"`
	ModeSource string `json:"mode_source,omitempty"`
	Upstream   string `json:"upstream,omitempty"`
	PassedOn   bool   `json:"passed_on"`
}

func statusOf(st *wire.ProxyStatusResponse) proxyStatus {
	out := proxyStatus{
		Identity: st.GetSpiffeId(), Serial: st.GetSerial(), NotAfter: stamp(st.GetNotAfter()), Node: st.GetNodeId(),
		Generation: st.GetGeneration(), Connected: st.GetConnected(), Ready: st.GetNotReady() == "", NotReady: st.GetNotReady(),
		Draining: st.GetDraining(), Withdrawn: st.GetWithdrawn(), Fault: st.GetFault(),
		Open: st.GetOpen(), MaxConnections: st.GetMaxConnections(), Handshakes: st.GetHandshakes(), MaxHandshakes: st.GetMaxHandshakes(),
		MemoryBytes: st.GetMemory(), MaxMemoryBytes: st.GetMaxMemory(), RecordsWaiting: st.GetRecordsWaiting(), PID: st.GetPid(),
		Listeners: []proxyListener{}, Registry: registryOf(st),
	}
	for _, l := range st.GetListeners() {
		out.Listeners = append(out.Listeners, proxyListener{l.GetName(), l.GetDirection(), l.GetAddress(), l.GetTarget(),
			l.GetPort(), l.GetMode(), l.GetModeSource(), l.GetUpstream(), l.GetPassedOn()})
	}
	return out
}

func (c *cli) printProxyStatus(st *wire.ProxyStatusResponse) error {
	state := c.paint(green, "ready")
	if reason := st.GetNotReady(); reason != "" {
		state = c.paint(red, "not ready: "+plain(reason))
	}
	agent := "connected"
	if !st.GetConnected() {
		agent = c.paint(yellow, "away; the last snapshot stays in force")
	}
	identity := st.GetSpiffeId()
	if identity == "" {
		identity = "none yet"
	} else {
		identity += ", ends " + ago(stamp(st.GetNotAfter()), time.Now())
	}
	rows := [][2]string{
		{"State", state}, {"Identity", identity}, {"Agent", agent},
		{"Policies", fmt.Sprintf("generation %d", st.GetGeneration())},
		{"Connections", fmt.Sprintf("%d of %d open, %d of %d in their handshake", st.GetOpen(), st.GetMaxConnections(), st.GetHandshakes(), st.GetMaxHandshakes())},
		{"Memory", fmt.Sprintf("%d of %d MiB", st.GetMemory()>>20, st.GetMaxMemory()>>20)},
		{"Records", fmt.Sprintf("%d wait for the agent", st.GetRecordsWaiting())},
	}
	rows = append(rows, registryRows(st.GetRegistry())...)
	if fault := st.GetFault(); fault != "" {
		rows = append(rows, [2]string{"Fault", c.paint(red, "the newest snapshot was refused: "+plain(fault))})
	}
	for _, row := range rows {
		fmt.Fprintf(c.out, "%-12s %s\n", row[0]+":", row[1])
	}
	if len(st.GetListeners()) == 0 {
		return nil
	}
	fmt.Fprintln(c.out)
	t := table{heading: []string{"DIRECTION", "LISTEN", "TARGET", "PORT", "MODE", "UPSTREAM"}}
	for _, l := range st.GetListeners() {
		address, port, mode := l.GetAddress(), "-", "-"
		if l.GetPassedOn() {
			address += " (passed on)"
		}
		if l.GetPort() != 0 {
			port, mode = strconv.Itoa(int(l.GetPort())), l.GetMode()
		}
		if source := l.GetModeSource(); source != "" {
			mode += " by " + source
		}
		t.add(l.GetDirection(), address, l.GetTarget(), port, mode, dash(l.GetUpstream()))
	}
	if err := t.print(c.out); err != nil {
		return err
	}
	return c.printResolved(st)
}

func (c *cli) proxyConnectionsCommand() *cobra.Command {
	var direction string
	cmd := &cobra.Command{
		Use: "connections --admin PATH", Short: "List a proxy's open connections", Args: takes(),
		Long: `Connections lists what is open now, oldest first: who is on the other side,
since when, how long nothing came, and how many bytes went over the accepted
side, as they were on the wire.`,
		Example: "  aval proxy connections --admin /run/aval/proxy/api/admin.sock\n  aval proxy connections --admin api.sock --direction inbound -o json",
	}
	c.proxyAdminFlag(cmd)
	cmd.Flags().StringVar(&direction, "direction", "", "inbound or outbound; both unless set")
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		if !slices.Contains([]string{"", "inbound", "outbound"}, direction) {
			return usage(fmt.Errorf("proxy connections: --direction %q is neither inbound nor outbound", direction))
		}
		return c.proxyAdmin(ctx, func(admin wire.ProxyAdminClient) error { return c.proxyConnections(ctx, admin, direction) })
	})
	return cmd
}

type proxyConnection struct {
	Direction  string    `json:"direction"`
	State      string    `json:"state"`
	Transport  string    `json:"transport,omitempty"`
	Source     string    `json:"source"`
	Remote     string    `json:"remote,omitempty"`
	Target     string    `json:"target"`
	Port       uint32    `json:"port,omitempty"`
	PeerID     string    `json:"peer_id,omitempty"`
	PeerSerial string    `json:"peer_serial,omitempty"`
	PeerEnds   time.Time `json:"peer_not_after,omitzero"`
	SNI        string    `json:"sni,omitempty"`
	ALPN       string    `json:"alpn,omitempty"`
	Began      time.Time `json:"began"`
	IdleMS     int64     `json:"idle_ms"`
	BytesIn    uint64    `json:"bytes_in"`
	BytesOut   uint64    `json:"bytes_out"`
}

func (c *cli) proxyConnections(ctx context.Context, admin wire.ProxyAdminClient, direction string) error {
	stream, err := admin.Connections(ctx, &wire.ConnectionsRequest{Direction: direction})
	var all []proxyConnection
	for err == nil {
		var batch *wire.ConnectionsResponse
		if batch, err = stream.Recv(); err == nil {
			for _, l := range batch.GetConnections() {
				all = append(all, proxyConnection{l.GetDirection(), l.GetState(), l.GetTransport(), l.GetSource(), l.GetRemote(), l.GetTarget(),
					l.GetPort(), l.GetPeerId(), l.GetPeerSerial(), stamp(l.GetPeerNotAfter()), l.GetSni(), l.GetAlpn(),
					stamp(l.GetBegan()), l.GetIdle(), l.GetBytesIn(), l.GetBytesOut()})
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		return called("proxy connections", err)
	}
	slices.SortFunc(all, func(a, b proxyConnection) int {
		if n := a.Began.Compare(b.Began); n != 0 {
			return n
		}
		return strings.Compare(a.Source, b.Source)
	})
	return c.show(items(all), func() error {
		t := table{heading: []string{"DIRECTION", "STATE", "TRANSPORT", "PEER", "SOURCE", "TARGET", "SINCE", "IDLE", "IN", "OUT"}}
		for _, l := range all {
			source := l.Source
			if l.Remote != "" {
				source = l.Remote + " via " + l.Source
			}
			t.add(l.Direction, l.State, dash(l.Transport), dash(plain(l.PeerID)), source, l.Target, ago(l.Began, time.Now()),
				short(time.Duration(l.IdleMS)*time.Millisecond), strconv.FormatUint(l.BytesIn, 10), strconv.FormatUint(l.BytesOut, 10))
		}
		return t.print(c.out)
	})
}

func (c *cli) proxyDrainCommand() *cobra.Command {
	var deadline time.Duration
	cmd := &cobra.Command{
		Use: "drain --admin PATH", Short: "Let a proxy finish its connections and end", Args: takes(),
		Long: `Drain makes a proxy accept nothing more and end once its open connections are
over, at the latest at the deadline, when the rest are closed. The process ends
with exit code 0; a supervisor that restarts it regardless starts a new one.
The drain goes on where this command is interrupted.`,
		Example: "  aval proxy drain --admin /run/aval/proxy/api/admin.sock\n  aval proxy drain --admin api.sock --deadline 5m",
	}
	c.proxyAdminFlag(cmd)
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "how long open connections may go on; limits.drain of its file unless set")
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		if deadline < 0 || deadline > 0 && deadline < time.Millisecond {
			return usage(fmt.Errorf("proxy drain: --deadline %s is not positive", deadline))
		}
		return c.proxyAdmin(ctx, func(admin wire.ProxyAdminClient) error { return c.proxyDrain(ctx, admin, deadline) })
	})
	return cmd
}

func (c *cli) proxyDrain(ctx context.Context, admin wire.ProxyAdminClient, deadline time.Duration) error {
	stream, err := admin.Drain(ctx, &wire.DrainRequest{Deadline: deadline.Milliseconds()})
	if err != nil {
		return called("proxy drain", err)
	}
	began, last, first := time.Now(), int64(-1), int64(0)
	for {
		m, err := stream.Recv()
		if err != nil && last >= 0 && ctx.Err() == nil {
			break // the process ended before its last word
		}
		if err != nil {
			return called("proxy drain", err)
		}
		if last < 0 {
			first = m.GetOpen()
		}
		if m.GetOpen() != last && !m.GetDone() && c.output != formJSON && c.output != formYAML {
			fmt.Fprintf(c.err, "draining: %s open\n", plural(int(m.GetOpen()), "connection"))
		}
		last = m.GetOpen()
		if m.GetDone() {
			break
		}
	}
	out := struct {
		Drained    int64 `json:"drained"`
		DurationMS int64 `json:"duration_ms"`
	}{first, time.Since(began).Milliseconds()}
	return c.show(out, func() error {
		_, err := fmt.Fprintf(c.out, "drained: %s in %s\n", plural(int(first), "connection"), time.Since(began).Truncate(time.Millisecond))
		return err
	})
}

// dash stands for an empty cell.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
