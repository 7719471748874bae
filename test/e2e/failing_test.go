package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

func timeout(t *testing.T, m *trafficMesh) {
	m.rules(t, "users",
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.Timeout, r.RetryAttempts = "/slow", 0.2, 1 }),
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.Timeout = "/retried", 0.3 }))
	for _, b := range m.users {
		b.delay.Store(int64(20 * time.Second))
	}
	const want = `{"error":"Upstream timed out"}` + "\n"
	ask(t, m.front, "http://users/slow").want(t, 504, "timeout", want)
	ask(t, m.front, "-d", "x", "http://users/slow").want(t, 504, "timeout", want)
	ask(t, m.front, "http://users/retried").want(t, 504, "timeout", want) // the time is for all tries together
	for _, b := range m.users {
		b.delay.Store(0)
	}
	// The time is until the head: a body may take longer.
	slow := serve(t, m.orders.node, "drip", 8003, func(w http.ResponseWriter, _ *http.Request) {
		for range 5 {
			_, _ = fmt.Fprintln(w, "drip")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	defer slow.stop()
	register(t, m.Mesh, m.orders.node, "orders", "drip", 8003, "http")
	defer deregister(t, m.Mesh, "orders", "drip")
	m.balance(t, "orders", "round_robin", `,"timeout":0.3`)
	defer set(t, m.Mesh, `{"services":{"orders":{"timeout":0}}}`)
	if got := strings.Count(curl(t, m.front, "http://orders:8003/"), "drip"); got != 5 {
		t.Errorf("%d of 5 parts of a slow body came", got)
	}
}

func retries(t *testing.T, m *trafficMesh) {
	m.users[0].status.Store(503)
	m.users[1].cut.Store(true)
	for range 6 {
		if got := curl(t, m.front, "http://users/"); got != "users3\n" {
			t.Errorf("got %q", got)
		}
	}
	got := m.counts()
	if got[2] != 6 || got[0] == 0 || got[1] == 0 {
		t.Errorf("6 requests, of which the third can answer: %v", got)
	}
	m.reset(t)
	for _, b := range m.users {
		b.status.Store(500)
	}
	ask(t, m.front, "http://users/").want(t, 500, "", "") // the app's own answer after all tries
	if got := m.counts(); got[0]+got[1]+got[2] != 3 {
		t.Errorf("one request, three tries: %v", got)
	}
}

func repeats(t *testing.T, m *trafficMesh) {
	for _, c := range []struct {
		method string
		status int32
		cut    bool
		tries  int
	}{
		{"GET", 503, false, 3}, {"PUT", 503, false, 3}, {"DELETE", 503, false, 3},
		{"POST", 503, false, 1}, {"POST", 0, true, 1}, {"GET", 0, true, 3}, {"PATCH", 503, false, 1},
	} {
		m.reset(t)
		allMethodsOnce(t, m)
		for _, b := range m.users {
			b.status.Store(c.status)
			b.cut.Store(c.cut)
		}
		a := ask(t, m.front, "-X", c.method, "-d", "body", "http://users/")
		got := m.counts()
		n := got[0] + got[1] + got[2]
		if c.cut && n > c.tries && n <= 2*c.tries && c.method == "GET" {
			// A kept connection that ends without an answer looks like one that had
			// ended before: the proxy beside the app tries a new one at once.
			n = c.tries
		}
		if n != c.tries {
			t.Errorf("%s, status %d, cut %v: %d tries, want %d", c.method, c.status, c.cut, n, c.tries)
		}
		if c.cut {
			a.want(t, 502, "upstream-failure", `{"error":"Downstream service error"}`+"\n")
		}
		for _, b := range m.users {
			b.app.mu.Lock()
			for _, s := range b.seen {
				if s.Length != 4 {
					t.Errorf("%s: a try had a body of %d bytes", c.method, s.Length)
				}
			}
			b.app.mu.Unlock()
		}
	}
}

// allMethodsOnce lets the frontend use PATCH too.
func allMethodsOnce(t *testing.T, m *trafficMesh) {
	t.Helper()
	rules, err := m.API.SecurityRules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(rules, func(r policy.SecurityRule) bool { return slices.Contains(r.AllowedMethods, "*") }) {
		return
	}
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "users")); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "PATCH to be allowed", func() error {
		for range 3 {
			if a := ask(t, m.front, "-X", "PATCH", "http://users/"); a.Status != 200 {
				return fmt.Errorf("status %d", a.Status)
			}
		}
		return nil
	})
	for _, b := range m.users {
		b.forget()
	}
}

func deadApp(t *testing.T, m *trafficMesh) {
	n := bare(t, m.Mesh, "dead")
	a := serve(t, n, "dead", 8001, nil)
	enter(t, m.Mesh, n, meshlab.Workload{Host: "dead", Service: "dead", Ports: []string{"8001"}})
	allow(t, m.Mesh, "frontend", "dead")
	// The proxy is to find out for itself: a check that fails first would take the
	// endpoint out before it is called.
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	defer set(t, m.Mesh, `{"load_balancing":{"health_check":{"enabled":true}}}`)
	await(t, m.Mesh, "dead to live", func() error {
		if a := ask(t, m.front, "http://dead/"); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	m.balance(t, "dead", "round_robin", `,"circuit_breaker":{"enabled":true,"failure_threshold":50,"timeout":60}`)
	a.stop()
	const want = `{"error":"Service unavailable"}` + "\n"
	ask(t, m.front, "-d", "x", "http://dead/").want(t, 503, "app-unavailable", want)
	ask(t, m.front, "http://dead/").want(t, 503, "app-unavailable", want)
	n.Proxy.Kill()
	ask(t, m.front, "-d", "x", "http://dead/").want(t, 502, "upstream-failure", `{"error":"Downstream service error"}`+"\n")
}

// circuitOf is the state of the only endpoint of a service at the frontend.
func (m *trafficMesh) circuitOf(t *testing.T, service string) string {
	t.Helper()
	s, err := m.front.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eps := s.Services["default/"+service].Endpoints
	if len(eps) != 1 {
		t.Fatalf("%s has %d endpoints", service, len(eps))
	}
	return eps[0].Circuit
}

func circuit(t *testing.T, m *trafficMesh) {
	m.balance(t, "orders", "round_robin", `,"circuit_breaker":{"enabled":true,"failure_threshold":5,"timeout":1}`)
	post := func(status int32) answer {
		m.orders.status.Store(status)
		return ask(t, m.front, "-d", "x", "http://orders/")
	}
	for range 8 {
		post(404).want(t, 404, "", "")
	}
	for range 4 {
		post(500)
	}
	post(200).want(t, 200, "", "orders\n") // a success clears the count
	for range 4 {
		post(500).want(t, 500, "", "")
	}
	if got := m.circuitOf(t, "orders"); got != "closed" {
		t.Fatalf("after 4 failures in a row the circuit is %s", got)
	}
	post(500).want(t, 500, "", "")
	if got := m.circuitOf(t, "orders"); got != "open" {
		t.Fatalf("after 5 failures in a row the circuit is %s", got)
	}
	before := m.orders.count()
	post(0).want(t, 503, "circuit-open", `{"error":"Circuit is open for orders.default"}`+"\n")
	if m.orders.count() != before {
		t.Error("a request passed the open circuit")
	}
	await(t, m.Mesh, "the circuit to let a probe pass", func() error {
		if a := post(500); a.Status == 503 {
			return fmt.Errorf("%s", a.Body)
		}
		return nil
	})
	if got := m.circuitOf(t, "orders"); got != "open" {
		t.Errorf("after a failed probe the circuit is %s", got)
	}
	post(0).want(t, 503, "circuit-open", "")
	await(t, m.Mesh, "the circuit to close", func() error {
		if a := post(0); a.Status != 200 {
			return fmt.Errorf("%s", a.Body)
		}
		return nil
	})
	if got := m.circuitOf(t, "orders"); got != "closed" {
		t.Errorf("after a good probe the circuit is %s", got)
	}
	for range 4 { // the count is cleared
		post(500)
	}
	post(0).want(t, 200, "", "")
}

func outlier(t *testing.T, m *trafficMesh) {
	m.users[0].status.Store(500)
	failed := 0
	for _, got := range m.get(t, 60, "-o", "/dev/null", "-w", "%{http_code} ", "http://users/") {
		if got != "200" {
			failed++
		}
	}
	if got := m.counts(); failed != 0 || got[0] != 5 {
		t.Errorf("%d errors; the failing endpoint saw %d requests, then its circuit should be open", failed, got[0])
	}
}

func healthChecks(t *testing.T, m *trafficMesh) {
	n := bare(t, m.Mesh, "checked")
	healthy := atomic.Bool{}
	healthy.Store(true)
	ln, err := n.ListenTCP(":8001")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/alive" && !healthy.Load() {
			w.WriteHeader(500)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	defer func() { _ = srv.Close(); <-done }()
	enter(t, m.Mesh, n, meshlab.Workload{Host: "checked", Service: "checked", Ports: []string{"8001"}, Proxy: []string{"--health-path", "/alive"}})
	allow(t, m.Mesh, "frontend", "checked")
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"interval":0.1}}}`)
	defer set(t, m.Mesh, `{"load_balancing":{"health_check":{"interval":30}}}`)
	for _, want := range []struct {
		ok     bool
		status int
		word   string
	}{{true, 200, "healthy"}, {false, 503, "unhealthy"}, {true, 200, "healthy"}} {
		healthy.Store(want.ok)
		await(t, m.Mesh, "the endpoint to be "+want.word, func() error {
			eps, err := m.API.Endpoints(t.Context(), policy.ServiceName{Namespace: "default", Name: "checked"})
			if err != nil || len(eps) != 1 || eps[0].Status != want.word {
				return fmt.Errorf("%+v, %w", eps, err)
			}
			if a := ask(t, m.front, "http://checked/"); a.Status != want.status {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
			return nil
		})
	}
	h, turns := lastChecks(t, m, "checked"), ""
	for i := range h.History {
		if i == 0 || h.History[i].Healthy != h.History[i-1].Healthy {
			turns += h.History[i].Detail + "; "
		}
	}
	if want := "GET /alive: 500 Internal Server Error; 200 OK; "; !strings.HasSuffix(turns, want) {
		t.Errorf("the history turns as %q, want %q in the end", turns, want)
	}
	// With a threshold no single failure turns it, as soon as the checks know.
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"unhealthy_threshold":100}}}`)
	defer set(t, m.Mesh, `{"load_balancing":{"health_check":{"unhealthy_threshold":1}}}`)
	await(t, m.Mesh, "a failed check that does not turn the endpoint", func() error {
		h := lastChecks(t, m, "checked")
		healthy.Store(h.Status != "healthy")
		for _, r := range h.History {
			if !r.Passed && r.Healthy && h.Status == "healthy" {
				return nil
			}
		}
		return fmt.Errorf("%+v", h)
	})
}

// lastChecks gives what the health checks know of a service's only endpoint.
func lastChecks(t *testing.T, m *trafficMesh, service string) api.EndpointHealth {
	t.Helper()
	name := policy.ServiceName{Namespace: "default", Name: service}
	eps, err := m.API.Endpoints(t.Context(), name)
	if err != nil || len(eps) != 1 {
		t.Fatalf("%+v, %v", eps, err)
	}
	h, err := m.API.Health(t.Context(), name, eps[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
