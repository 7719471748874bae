package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

func rateLimit(t *testing.T, m *trafficMesh) {
	m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":5,"window":60}`)
	defer m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":0}`)
	for i := range 5 {
		a := ask(t, m.front, "http://orders/")
		a.want(t, 200, "", "orders\n")
		if got, want := a.Header.Get("RateLimit"), fmt.Sprintf(`"default";r=%d;t=`, 4-i); !strings.HasPrefix(got, want) {
			t.Errorf("RateLimit of request %d: %s, want %s…", i+1, got, want)
		}
	}
	a := ask(t, m.front, "http://orders/")
	a.want(t, 429, "rate-limited", `{"error":"Rate limit exceeded for orders.default"}`+"\n")
	after, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if err != nil || after < 1 || after > 60 || a.Header.Get("RateLimit-Policy") != `"default";q=5;w=60` ||
		!strings.HasPrefix(a.Header.Get("RateLimit"), `"default";r=0;t=`) || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("head %v", a.Header)
	}
	if m.orders.count() != 5 {
		t.Errorf("the app saw %d requests", m.orders.count())
	}
}

func limitByHeader(t *testing.T, m *trafficMesh) {
	m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":2,"window":60,"key":"header:X-User"}`)
	defer m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":0}`)
	for _, user := range []string{"a", "b"} {
		var got []int
		for range 3 {
			got = append(got, ask(t, m.front, "-H", "X-User: "+user, "http://orders/").Status)
		}
		if fmt.Sprint(got) != "[200 200 429]" {
			t.Errorf("user %s got %v", user, got)
		}
	}
}

func metrics(t *testing.T, m *trafficMesh) {
	// A health check is a request to the app too; the last may be under way still.
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	var after meshlab.ProxyMetrics
	await(t, m.Mesh, "20 requests to be counted as 20", func() error {
		before, err1 := m.front.Metrics(t.Context())
		app, err2 := m.orders.node.Metrics(t.Context())
		m.get(t, 20, "http://orders/")
		var err3 error
		after, err3 = m.front.Metrics(t.Context())
		appAfter, err4 := m.orders.node.Metrics(t.Context())
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		if n := after.OutboundRequests - before.OutboundRequests; n != 20 {
			t.Errorf("20 requests counted as %d", n)
		}
		if n := appAfter.InboundRequests - app.InboundRequests; n != 20 {
			return fmt.Errorf("at the app's side they are %d", n)
		}
		return nil
	})
	await(t, m.Mesh, "the control plane to sum it up", func() error {
		sum, err := m.API.Metrics(t.Context())
		if err != nil {
			return err
		}
		if b, _ := json.Marshal(sum); sum.Proxies.TotalOutboundRequests < after.OutboundRequests {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
	text := curl(t, m.front, "http://127.0.0.1:15000/metrics")
	if !strings.Contains(text, "# TYPE ") || !strings.Contains(text, `orders`) {
		t.Errorf("Prometheus text without orders:\n%.1000s", text)
	}
}

func TestALimitBySourceCountsEachCaller(t *testing.T) {
	t.Parallel()
	m := start(t)
	b := newBackend(t, bare(t, m, "users"), "users", 8001)
	enter(t, m, b.node, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001"}})
	allow(t, m, "*", "users")
	set(t, m, `{"services":{"users":{"rate_limit":{"limit":3,"window":60,"key":"source"}}}}`)
	for _, name := range []string{"one", "two"} {
		n := join(t, m, meshlab.Workload{Host: name, Service: name})
		var got []int
		for range 4 {
			got = append(got, ask(t, n, "http://users/").Status)
		}
		if fmt.Sprint(got) != "[200 200 200 429]" {
			t.Errorf("%s got %v", name, got)
		}
		if a := ask(t, n, "http://users/"); a.Body != `{"error":"Rate limit exceeded for users.default"}`+"\n" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s got %+v", name, a)
		}
	}
}
