// This file holds the test of the access log.

package proxy

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// line is what an entry of the access log must have.
type line struct {
	Method, Host, Path, Protocol, Verdict, Reason, Policy, Mode, Audit, Source string
	Status, Rule, Port, Generation, Bytes                                      int

	ModeSource   string   `json:"mode_source"`
	ClientID     string   `json:"client_id"`
	ServerID     string   `json:"server_id"`
	TraceID      string   `json:"trace_id"`
	DryRun       string   `json:"dry_run"`
	DryRunPolicy string   `json:"dry_run_policy"`
	BytesIn      int      `json:"bytes_in"`
	Duration     *float64 `json:"duration_ms"`
	Upstream     *float64 `json:"upstream_ms"`
}

func TestTheAccessLogHasWhatEveryDecisionCarries(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.publish(t, mode("STRICT")+allow("example.org"+webPath)+rules("seen", "AUDIT", `{to: [{operation: {methods: [POST]}}]}`)+
		rules("no", "DENY", `{to: [{operation: {paths: ["/no"]}}]}`)+tried("later", "DENY", `{to: [{operation: {methods: [POST]}}]}`))
	app := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "answer")
	})
	both(t, func(t *testing.T, two bool) {
		var log lines
		_, in := s.requestsTo(t, app.address(), func(c *Config) { c.AccessLog, c.AccessWriter = true, &log })
		c := s.httpClient(t, in, s.web, two)
		r := newRequest(t, "POST", "https://"+in+"/a?secret=1", strings.NewReader("a body"))
		r.Host = "api.shop"
		ask(t, c, r)
		ask(t, c, newRequest(t, "GET", "https://"+in+"/no", nil))
		eventually(t, "two lines", func() bool { return strings.Count(log.String(), "\n") == 2 })
		all := strings.Split(log.String(), "\n")
		if strings.Contains(log.String(), "secret") {
			t.Error("the query is in the log")
		}
		var e line
		if err := json.Unmarshal([]byte(all[0]), &e); err != nil {
			t.Fatal(err)
		}
		if e.Method != "POST" || e.Host != "api.shop" || e.Path != "/a" || (e.Protocol == "HTTP/2.0") != two || e.Status != 200 ||
			e.Verdict != "allowed" || e.Reason != "allowed" || e.Policy == "" || e.Rule != 0 || e.Mode != "STRICT" || e.ModeSource != "shop/mode" ||
			e.Audit != "shop/seen" || e.DryRun != "would deny" || e.DryRunPolicy != "shop/later" || e.BytesIn != 6 || e.Bytes != 6 ||
			e.Duration == nil || e.Upstream == nil || *e.Upstream <= 0 || *e.Upstream > *e.Duration ||
			e.ClientID != s.web.ID.String() || e.ServerID != s.api.ID.String() || e.Source != "127.0.0.1" || e.Port != 8080 ||
			len(e.TraceID) != 32 || e.Generation == 0 {
			t.Errorf("%s", all[0])
		}
		e = line{}
		if err := json.Unmarshal([]byte(all[1]), &e); err != nil || e.Status != 403 || e.Verdict != "denied" || e.Reason != "policy_denied" || e.Policy != "shop/no" {
			t.Errorf("%s, %v", all[1], err)
		}
	})
}
