// This file holds the tests of the pace of nodes.

package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/aval-id/aval/audit"
	"github.com/aval-id/aval/identity/wire"
)

func TestANodeHasItsBurstAndThenItsPace(t *testing.T) {
	p := nodePaces{issue: Pace{PerSecond: 10, Burst: 100}}
	now := time.Now()
	take := func(node string, n int) (int, time.Duration) {
		granted, err := p.certificates(node, n, now)
		if (err == nil) != (granted == n) {
			t.Fatalf("%d of %d: %v", granted, n, err)
		}
		if err == nil {
			return granted, 0
		}
		return granted, err.(*overPace).after
	}
	for _, c := range []struct {
		after   time.Duration
		node    string
		n, want int
		hint    time.Duration
	}{
		{0, "a", 60, 60, 0},
		{0, "a", 60, 40, 2 * time.Second},
		{0, "b", 100, 100, 0}, // another node's is its own
		{0, "a", 1, 0, time.Second},
		{time.Second, "a", 256, 10, 10 * time.Second}, // a burst is the most that is saved up
		{2 * time.Second, "a", 5, 5, 0},
		{time.Hour, "a", 256, 100, 10 * time.Second},
	} {
		now = now.Add(c.after)
		granted, hint := take(c.node, c.n)
		if granted != c.want || (hint-c.hint).Abs() > 100*time.Millisecond {
			t.Errorf("%+v: %d granted, ask again in %s", c, granted, hint)
		}
	}
	p = nodePaces{issue: Pace{PerSecond: 0.001, Burst: 1}}
	take("a", 1)
	if _, hint := take("a", 1); hint != maxRetryAfter {
		t.Errorf("ask again in %s", hint)
	}
}

func TestAPaceIsCheckedAndHasADefault(t *testing.T) {
	for _, c := range []struct {
		pace Pace
		ok   bool
	}{{Pace{}, true}, {Pace{PerSecond: -1}, true}, {Pace{PerSecond: 1, Burst: -1}, false}, {Pace{PerSecond: 0.5, Burst: 7}, true}} {
		cfg := testConfig(t.TempDir())
		cfg.IssuePace = c.pace
		if _, err := cfg.withDefaults(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.pace, err)
		}
		cfg.IssuePace, cfg.RecordPace = Pace{}, c.pace
		if _, err := cfg.withDefaults(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.pace, err)
		}
	}
	p := nodePaces{issue: Pace{PerSecond: -1}}
	p.issue, _ = p.issue.withDefault("issue", DefaultIssuePace)
	if n, err := p.certificates("a", 1<<30, time.Now()); n != 1<<30 || err != nil {
		t.Errorf("unbounded: %d, %v", n, err)
	}
}

func TestANodeBeyondItsPaceIsToldWhenToAskAndGetsAllOfIt(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.IssuePace = Pace{PerSecond: 20, Burst: 15} // one is the node's own
	r := start(t, cfg)
	r.apply(t, registration("shop", "web", "/web", ""))
	n := r.join(t, "one", nil)
	other := r.join(t, "two", nil)
	stream := n.sync(t)
	var left []*wire.IssueRequest
	for i := range 40 {
		left = append(left, request(uint64(i), "shop/web", "/web"))
	}
	refusals := 0
	for len(left) > 0 {
		byNumber := map[uint64]*wire.IssueRequest{}
		for _, req := range left {
			byNumber[req.GetRequest()] = req
		}
		left = nil
		var hint time.Duration
		for _, res := range stream.issue(t, mapped(byNumber)...) {
			if len(res.GetChain()) > 0 {
				continue
			}
			hint = time.Duration(res.GetRetryAfter()) * time.Millisecond
			if codes.Code(res.GetCode()) != codes.ResourceExhausted || hint < time.Second || hint > 5*time.Second {
				t.Fatalf("refused with %v", res)
			}
			left = append(left, byNumber[res.GetRequest()])
		}
		if len(left) == 0 {
			break
		}
		refusals++
		if res := other.sync(t).issue(t, request(1, "shop/web", "/web"))[0]; len(res.GetChain()) == 0 {
			t.Fatalf("another node pays for it: %v", res)
		}
		<-time.After(hint)
	}
	if refusals == 0 {
		t.Fatal("nothing was refused")
	}
	e := waitEvent(t, r.authorityLog, "limit", func(e audit.Event) bool { return e.Reason == "limit" })
	if !strings.HasSuffix(e.Node, "/one") || !strings.Contains(e.Detail, "20 certificates a second") {
		t.Errorf("record: %+v", e)
	}
}

func mapped(m map[uint64]*wire.IssueRequest) (out []*wire.IssueRequest) {
	for _, r := range m {
		out = append(out, r)
	}
	return out
}

func TestRecordsBeyondTheirPaceWaitAndNoneIsLost(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.RecordPace = Pace{PerSecond: 100, Burst: 30}
	r := start(t, cfg)
	n := r.join(t, "one", nil)
	stream := n.sync(t)
	began := time.Now()
	const batches, each = 4, 20
	for b := range batches {
		batch := &wire.RecordBatch{Sequence: uint64(b + 1)}
		for i := range each {
			batch.Events = append(batch.Events, fmt.Appendf(nil,
				`{"time":%q,"kind":"connection","verdict":"denied","reason":"policy_denied","sni":"%d-%d"}`, began.Format(time.RFC3339), b, i))
		}
		if err := stream.Send(&wire.NodeFrame{Frame: &wire.NodeFrame_Records{Records: batch}}); err != nil {
			t.Fatal(err)
		}
	}
	for range batches {
		stream.answer(t)
	}
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("80 records were taken in %s", took)
	}
	kept := 0
	if err := r.connections.Read(0, func(e audit.Entry) error {
		if e.Event.Reason == audit.ReasonPolicyDenied {
			kept++
		}
		return nil
	}); err != nil || kept != batches*each {
		t.Errorf("%d records are kept: %v", kept, err)
	}
}
