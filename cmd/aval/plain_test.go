// This file holds the test of texts that strangers wrote, on a terminal.

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aval-id/aval/audit"
)

func TestAnEntryIsOneLineWhateverItSays(t *testing.T) {
	const hostile = "x\x1b[2J\n12:00  authority/7  issuance  done\u009b31m\u202e\r"
	raw, err := json.Marshal(audit.Entry{Index: 3, Event: audit.Event{
		Time: time.Now(), Kind: audit.KindConnection, Verdict: audit.VerdictAllowed, Reason: hostile, ClientID: hostile, ServerID: hostile,
		SPIFFEID: hostile, Serial: hostile, Node: hostile, Policy: hostile, Mode: hostile, Document: hostile, Actor: hostile,
		Detail: hostile, Direction: hostile, Transport: hostile,
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, color := range []bool{false, true} {
		var out bytes.Buffer
		c := &cli{streams: streams{out: &out, color: color}}
		if err := c.printEntryLine("connections", raw); err != nil {
			t.Fatal(err)
		}
		line := strings.TrimSuffix(out.String(), "\n")
		line = strings.NewReplacer("\x1b[32m", "", "\x1b[0m", "").Replace(line)
		if strings.ContainsAny(line, "\n\r\x1b\u009b\u202e") {
			t.Errorf("printed %q", line)
		}
	}
	if got := plain("spiffe://example.org/é \"web\""); got != "spiffe://example.org/é \"web\"" {
		t.Errorf("an ordinary text became %s", got)
	}
}
