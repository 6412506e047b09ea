// This file holds the export of entries as JSON lines, and the filter.

package audit

import (
	"bufio"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"
)

// Filter chooses events. Its zero value lets everything through.
type Filter struct {
	Since    time.Time // events at this time or later
	Until    time.Time // events before this time
	Kinds    []Kind    // of one of these kinds
	Verdicts []Verdict // of one of these verdicts
	SPIFFEID string    // about this identity, or a connection that it was an end of
	Serial   string    // about this certificate, or a connection that it was shown on
	Node     string    // of this node
}

// Match reports whether the event passes the filter.
func (f Filter) Match(e Event) bool {
	return !e.Time.Before(f.Since) &&
		(f.Until.IsZero() || e.Time.Before(f.Until)) &&
		(len(f.Kinds) == 0 || slices.Contains(f.Kinds, e.Kind)) &&
		(len(f.Verdicts) == 0 || slices.Contains(f.Verdicts, e.Verdict)) &&
		(f.SPIFFEID == "" || f.SPIFFEID == e.SPIFFEID || f.SPIFFEID == e.ClientID || f.SPIFFEID == e.ServerID) &&
		(f.Serial == "" || f.Serial == e.Serial || f.Serial == e.ClientSerial || f.Serial == e.ServerSerial) &&
		(f.Node == "" || f.Node == e.Node)
}

// ExportJSONL writes the entries that pass the filter as JSON objects, one a
// line, and returns how many it wrote.
func ExportJSONL(w io.Writer, entries iter.Seq2[Entry, error], f Filter) (n int64, err error) {
	out := bufio.NewWriterSize(w, 64<<10)
	var line []byte
	for e, err := range entries {
		if err != nil {
			out.Flush()
			return n, fmt.Errorf("export: %w", err)
		}
		if !f.Match(e.Event) {
			continue
		}
		line = append(e.AppendJSON(line[:0]), '\n')
		if _, err := out.Write(line); err != nil {
			return n, fmt.Errorf("export: %w", err)
		}
		n++
	}
	if err := out.Flush(); err != nil {
		return n, fmt.Errorf("export: %w", err)
	}
	return n, nil
}
