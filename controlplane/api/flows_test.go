package api_test

import (
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

var observedAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// onlooker is an Observed that remembers what it was asked.
type onlooker struct {
	asked       api.FlowQuery
	differences []policy.Difference
}

func (w *onlooker) Flows(q api.FlowQuery) api.FlowList {
	w.asked = q
	return api.FlowList{Control: "c"}
}
func (w *onlooker) Pairs(time.Time) api.PairList { return api.PairList{Control: "c"} }
func (w *onlooker) Judge(d []policy.Difference, _ time.Time) api.WhatIf {
	w.differences = d
	return api.WhatIf{Control: "c"}
}

func TestFlowsAreAskedForByQuery(t *testing.T) {
	w := &onlooker{}
	c := serveWith(t, newMesh(), w)
	for path, want := range map[string]string{
		"/api/v1/flows?since=0s":           "query.since",
		"/api/v1/flows?since=25h":          "query.since",
		"/api/v1/flows?since=yesterday":    "query.since",
		"/api/v1/flows?verdict=maybe":      "verdict",
		"/api/v1/flows?direction=sideways": "direction",
		"/api/v1/flows?colour=red":         "colour",
		"/api/v1/pairs?since=-1h":          "query.since",
	} {
		if got := send(t, c, "GET", path, ""); got.status != 400 || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	got := send(t, c, "GET", "/api/v1/flows?since=15m&source=web&verdict=denied&namespace=shop&destination=shop/users&direction=inbound", "")
	if got.status != 200 || !strings.Contains(got.body, `"flows":[]`) {
		t.Error(got.status, got.body)
	}
	if want := observedAt.Add(-15 * time.Minute); !w.asked.Since.Equal(want) || w.asked.Limit != 5000 {
		t.Errorf("asked for %d flows since %v, want %v", w.asked.Limit, w.asked.Since, want)
	}
	if w.asked.Source != "web" || w.asked.Verdict != "denied" || w.asked.Namespace != "shop" || w.asked.Destination != "shop/users" || w.asked.Direction != "inbound" {
		t.Errorf("%+v", w.asked)
	}
}

func TestWhatIfStoresNothing(t *testing.T) {
	w, m := &onlooker{}, newMesh()
	c := serveWith(t, m, w)
	const rule = `{"documents":[{"kind":"SecurityRule","spec":{"id":"r","source_namespace":"*","source_service":"*","destination_namespace":"a","destination_service":"b"}}]}`
	if got := send(t, c, "POST", "/api/v1/what-if?since=1h", rule); got.status != 200 || !strings.Contains(got.body, `"changes":[]`) {
		t.Error(got.status, got.body)
	}
	if len(w.differences) != 1 || w.differences[0].After.Security == nil {
		t.Errorf("%+v", w.differences)
	}
	if got := send(t, c, "GET", "/api/v1/security-rules", ""); got.body != "[]\n" && got.body != "[]" {
		t.Errorf("stored: %s", got.body)
	}
	if got := send(t, c, "POST", "/api/v1/what-if", strings.Replace(rule, `"destination_service":"b"`, `"destination_service":"B"`, 1)); got.status != 400 || !strings.Contains(got.body, "body.documents[0]") {
		t.Error(got.status, got.body)
	}
}

func TestWhoeverObservesNothingSaysSo(t *testing.T) {
	c := serveWith(t, newMesh(), nil)
	for _, path := range []string{"/api/v1/flows", "/api/v1/pairs"} {
		if got := send(t, c, "GET", path, ""); got.status != 503 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

func TestAQueryWantsFlows(t *testing.T) {
	f := &policy.Flow{Direction: policy.FlowInbound, Source: policy.ServiceName{Namespace: "shop", Name: "web"}, Destination: policy.ServiceName{Namespace: "data", Name: "users"}, Allowed: true}
	for _, q := range []api.FlowQuery{{}, {Namespace: "shop"}, {Namespace: "data"}, {Source: "web"}, {Source: "shop/web"}, {Destination: "data/users"}, {Verdict: "allowed"}, {Direction: "inbound"}} {
		if !q.Wants(f) {
			t.Errorf("%+v does not want it", q)
		}
	}
	for _, q := range []api.FlowQuery{{Namespace: "x"}, {Source: "users"}, {Source: "data/web"}, {Destination: "web"}, {Verdict: "denied"}, {Direction: "outbound"}} {
		if q.Wants(f) {
			t.Errorf("%+v wants it", q)
		}
	}
}

func serveWith(t *testing.T, m *mesh, w *onlooker) *api.Client {
	t.Helper()
	return serve(t, m, func(cfg *api.Config) {
		cfg.Now = func() time.Time { return observedAt }
		if w != nil {
			cfg.Observed = w
		}
	})
}
