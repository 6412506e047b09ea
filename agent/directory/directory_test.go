// This file holds the tests of what a node reports.

package directory

import (
	"testing"
	"time"

	"github.com/aval-id/aval/identity/wire"
)

func TestAReportIsWholeOnceProxiesHadTheTimeToComeBack(t *testing.T) {
	now := time.Unix(1e9, 0)
	d := New(now)
	r, changed, again := d.Report(now.Add(time.Second))
	if r.GetComplete() || again != Gathering-time.Second {
		t.Errorf("after the start: %v, again in %v", r, again)
	}
	a := d.Announce()
	if err := a.Set([]*wire.Endpoint{{Address: "10.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("an announcement is no news")
	}
	r, changed, again = d.Report(now.Add(Gathering))
	if !r.GetComplete() || again != 0 || len(r.GetEndpoints()) != 1 || r.GetSubscribe() {
		t.Errorf("later: %v", r)
	}
	d.Want()
	<-changed
	_, changed, _ = d.Report(now.Add(Gathering))
	d.Want() // again is no news
	select {
	case <-changed:
		t.Error("the same wish is news")
	default:
	}
	a.Close()
	a.Close()
	<-changed
	if r, _, _ = d.Report(now.Add(Gathering)); len(r.GetEndpoints()) != 0 || !r.GetSubscribe() || d.Announced() != 0 {
		t.Errorf("at the end: %v", r)
	}
}
