package telemetry

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// busy returns a registry in which every metric has counted something.
func busy() *Registry {
	r := New(Options{})
	for _, d := range []Direction{Inbound, Outbound, Gateway} {
		s := r.Service(d, "cart", "shop")
		s.Done(200, 20*time.Millisecond, 10, 1000)
		s.Done(503, 40*time.Millisecond, 0, 20)
		s.Routed()
		s.RoutingFailed()
		s.BackendFailed()
		s.Retried()
		s.RetryRefused("budget")
		s.RateLimited()
		s.Denied("policy", "")
		c := r.Connections(d, "tcp")
		c.Opened()
		c.Opened()
		c.Closed("eof", 7, 8)
	}
	e := r.Endpoint("cart", "shop", "10.0.0.1:80")
	e.CircuitOpened()
	e.CircuitState(2)
	r.Detected("http1")
	r.DNSQuery("mesh")
	r.CertificateExpiry(time.Unix(1_800_000_000, 0))
	r.ControlConnected(true)
	return r
}

func scrape(t testing.TB, r *Registry, accept ...string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest("GET", "/metrics", nil)
	for _, a := range accept {
		req.Header.Add("Accept", a)
	}
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, req)
	return w
}

// weirLines are the lines of our own metrics in the text form, without histogram buckets.
func weirLines(t testing.TB, r *Registry) (lines []string) {
	t.Helper()
	for line := range strings.Lines(scrape(t, r).Body.String()) {
		if strings.HasPrefix(line, "weir_") && !strings.Contains(line, "_bucket{") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// value gives what a series of our own metrics shows; 0 if there is none.
func value(t testing.TB, r *Registry, series string) (v float64) {
	t.Helper()
	for _, line := range weirLines(t, r) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil {
				t.Fatal(err)
			}
		}
	}
	return v
}

// requestSeries counts the series of weir_requests_total.
func requestSeries(t testing.TB, r *Registry) (n int) {
	t.Helper()
	for _, line := range weirLines(t, r) {
		if strings.HasPrefix(line, "weir_requests_total{") {
			n++
		}
	}
	return n
}

func TestTheMetricsPassTheLinter(t *testing.T) {
	problems, err := testutil.GatherAndLint(busy().prom)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Names and labels are what dashboards and alerts are built on: this list changes only with a note in the change log.
func TestTheTextForm(t *testing.T) {
	got := map[string]bool{}
	for _, line := range weirLines(t, busy()) {
		got[line] = true
	}
	for _, want := range []string{
		`weir_requests_total{code="200",direction="outbound",namespace="shop",service="cart"} 1`,
		`weir_requests_total{code="503",direction="gateway",namespace="shop",service="cart"} 1`,
		`weir_request_duration_seconds_count{direction="inbound",namespace="shop",service="cart"} 2`,
		`weir_request_duration_seconds_sum{direction="inbound",namespace="shop",service="cart"} 0.06`,
		`weir_bytes_total{direction="inbound",flow="received",namespace="shop",service="cart"} 10`,
		`weir_bytes_total{direction="inbound",flow="sent",namespace="shop",service="cart"} 1020`,
		`weir_picks_total{direction="outbound",namespace="shop",outcome="no_endpoint",service="cart"} 1`,
		`weir_backend_failures_total{direction="outbound",namespace="shop",service="cart"} 1`,
		`weir_retries_total{direction="outbound",namespace="shop",outcome="sent",service="cart"} 1`,
		`weir_retries_total{direction="outbound",namespace="shop",outcome="budget",service="cart"} 1`,
		`weir_ratelimited_total{direction="inbound",namespace="shop",service="cart"} 1`,
		`weir_denied_total{direction="inbound",namespace="shop",reason="policy",service="cart"} 1`,
		`weir_circuit_opens_total{endpoint="10.0.0.1:80",namespace="shop",service="cart"} 1`,
		`weir_circuit_state{endpoint="10.0.0.1:80",namespace="shop",service="cart"} 2`,
		`weir_connections_open{direction="inbound",protocol="tcp"} 1`,
		`weir_connections_total{direction="inbound",protocol="tcp",reason="eof"} 1`,
		`weir_connection_bytes_total{direction="inbound",flow="received",protocol="tcp"} 7`,
		`weir_detect_total{outcome="http1"} 1`,
		`weir_dns_queries_total{outcome="mesh"} 1`,
		`weir_certificate_expiry_timestamp_seconds 1.8e+09`,
		`weir_control_connected 1`,
		`weir_access_log_dropped_total 0`,
	} {
		if !got[want] {
			t.Errorf("missing: %s", want)
		}
	}
	body := scrape(t, busy()).Body.String()
	for _, want := range []string{"go_goroutines", "process_open_fds"} {
		if !strings.Contains(body, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if bare := scrape(t, New(Options{NoRuntime: true})).Body.String(); strings.Contains(bare, "go_") || strings.Contains(bare, "process_") {
		t.Error("NoRuntime is ignored")
	}
}

func TestTheJSONForm(t *testing.T) {
	w := scrape(t, busy(), "application/json")
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Error(ct)
	}
	want := `{"inbound_requests":4,"outbound_requests":2,"request_duration_total":0.12,"request_errors":3,"circuit_breaker_opens":1,"average_request_duration":0.03}`
	if got := strings.TrimSpace(w.Body.String()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var none summary
	if err := json.Unmarshal(scrape(t, New(Options{}), "application/json").Body.Bytes(), &none); err != nil || none != (summary{}) {
		t.Errorf("before the first request: %+v, %v", none, err)
	}
}

func TestWhichFormIsServed(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                   false,
		"*/*":                                false,
		"text/plain":                         false,
		"application/json":                   true,
		"APPLICATION/JSON; charset=utf-8":    true,
		"application/json, */*;q=0.5":        true,
		"text/html, application/json":        true,
		"application/json;q=0":               false,
		"application/json;q=0.2, text/plain": false,
		"application/json, text/plain;q=0.5": true,
		"application/jsonp":                  false,
		";;;, application/json":              true,
		"application/openmetrics-text;version=1.0.0,application/json;q=0.1": false,
	} {
		if got := wantsJSON([]string{accept}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
	if !wantsJSON([]string{"text/html", "application/json"}) {
		t.Error("two header lines")
	}
}

func TestTotals(t *testing.T) {
	got := busy().Totals()
	want := Totals{InboundRequests: 4, OutboundRequests: 2, DurationTotal: 0.12, Errors: 3, CircuitOpens: 1, RequestsRouted: 3, RoutingFailures: 3, BackendFailures: 3}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	r := New(Options{})
	s := r.Service(Outbound, "a", "b")
	s.Done(0, time.Second, 0, 0)
	s.Done(404, -time.Second, -1, -1)
	if got := r.Totals(); got.Errors != 1 || got.OutboundRequests != 2 || got.DurationTotal != 0 {
		t.Errorf("no answer is an error, 404 is not: %+v", got)
	}
}

// A server that makes up status codes must not make series.
func TestCodesAreBounded(t *testing.T) {
	r := New(Options{NoRuntime: true})
	s := r.Service(Outbound, "a", "b")
	for code := -10; code < 2000; code++ {
		s.Done(code, 0, 0, 0)
		s.Done(code, 0, 0, 0)
	}
	if n := requestSeries(t, r); n > 75 {
		t.Errorf("%d series", n)
	}
	for label, want := range map[string]float64{"200": 2, "0": 2, "499": 2, "other": 2*10 + 2*99 + 2*1400, "2xx": 2 * 90} {
		if got := value(t, r, fmt.Sprintf(`weir_requests_total{code=%q,direction="outbound",namespace="b",service="a"}`, label)); got != want {
			t.Errorf("%s: %v, want %v", label, got, want)
		}
	}
}

func TestGRPCCallsAreCountedByTheirStatus(t *testing.T) {
	r := New(Options{NoRuntime: true})
	s := r.Service(Outbound, "a", "b")
	for code := -3; code < 100; code++ {
		s.GRPC(code)
	}
	for label, want := range map[string]float64{"OK": 1, "UNAUTHENTICATED": 1, "other": 83, "none": 3} {
		if got := value(t, r, fmt.Sprintf(`weir_grpc_responses_total{direction="outbound",grpc_status=%q,namespace="b",service="a"}`, label)); got != want {
			t.Errorf("%s: %v, want %v", label, got, want)
		}
	}
}

func TestServicesAreBounded(t *testing.T) {
	r := New(Options{NoRuntime: true, MaxServices: 3})
	for i := range 10 {
		s := r.Service(Outbound, fmt.Sprint("s", i), "shop")
		if s != r.Service(Outbound, fmt.Sprint("s", i), "shop") {
			t.Error("another handle for the same service")
		}
		s.Done(200, 0, 0, 0)
	}
	if n := requestSeries(t, r); n != 4 {
		t.Errorf("%d series", n)
	}
	if got := value(t, r, `weir_requests_total{code="200",direction="outbound",namespace="",service="other"}`); got != 7 {
		t.Errorf("other has %v", got)
	}
	if r.Service(Inbound, "own", "shop").key.service != "own" {
		t.Error("the cap of one direction holds for another")
	}
	r.Forget("s1", "shop") // makes room for one
	if got := r.Service(Outbound, "s9", "shop").key.service; got != "s9" {
		t.Errorf("after Forget: %s", got)
	}
	r.Forget("other", "")
	if got := value(t, r, `weir_requests_total{code="200",direction="outbound",namespace="",service="other"}`); got != 7 {
		t.Error("other was forgotten")
	}
}

func TestForgetLeavesNothingAndComesBack(t *testing.T) {
	r := busy()
	held := r.Service(Outbound, "cart", "shop")
	r.Service(Outbound, "pay", "shop").Done(200, 0, 0, 0)
	before := r.Totals()
	r.Forget("cart", "shop")
	held.Done(200, time.Second, 1, 1)
	held.Done(418, time.Second, 1, 1) // a code not resolved before
	held.Denied("jwt", "")
	for _, line := range weirLines(t, r) {
		if strings.Contains(line, `service="cart"`) {
			t.Errorf("left: %s", line)
		}
	}
	if got := r.Totals().OutboundRequests; got != before.OutboundRequests+2 {
		t.Errorf("%d", got)
	}
	if s := r.Service(Outbound, "cart", "shop"); s == held {
		t.Error("the forgotten handle came back")
	} else if s.Done(200, 0, 0, 0); value(t, r, `weir_requests_total{code="200",direction="outbound",namespace="shop",service="cart"}`) != 1 {
		t.Error("it does not count anew")
	}
}

func TestWordsAreBounded(t *testing.T) {
	r := New(Options{NoRuntime: true})
	for i := range 100 {
		r.Detected(fmt.Sprint("made up ", i))
	}
	r.Detected("made up 3")
	if n := testutil.CollectAndCount(r.detectVec); n != maxWords {
		t.Errorf("%d series", n)
	}
	if got := testutil.ToFloat64(r.detectVec.WithLabelValues(other)); got != 100-maxWords+1 {
		t.Errorf("other has %v", got)
	}
}

func TestCircuits(t *testing.T) {
	r := New(Options{NoRuntime: true, MaxEndpoints: 2})
	series := func() int { return testutil.CollectAndCount(r.circuitOpens) + testutil.CollectAndCount(r.circuitState) }
	var es []*Endpoint
	for i := range 4 {
		es = append(es, r.Endpoint("cart", "shop", fmt.Sprint("e", i)))
		es[i].CircuitState(0)
	}
	if series() != 0 {
		t.Error("a circuit that never opened has series")
	}
	for _, e := range es {
		e.CircuitOpened()
		e.CircuitState(2)
	}
	if series() != 2+2+1 || testutil.ToFloat64(r.circuitOpens.WithLabelValues(other, "", other)) != 2 {
		t.Errorf("%d series", series())
	}
	es[0].Forget()
	es[2].Forget()
	es[2].CircuitState(1)
	if got := testutil.ToFloat64(r.circuitState.WithLabelValues("cart", "shop", "e2")); got != 1 {
		t.Errorf("e2 did not get e0's room: %v", got)
	}
	r.Forget("cart", "shop")
	if series() != 1 || r.Totals().CircuitOpens != 4 {
		t.Errorf("%d series left", series())
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	r := busy()
	s, c, e := r.Service(Outbound, "cart", "shop"), r.Connections(Inbound, "tcp"), r.Endpoint("cart", "shop", "10.0.0.1:80")
	e.CircuitOpened()
	c.Closed("eof", 1, 1)
	if n := testing.AllocsPerRun(1000, func() {
		s.Done(200, time.Millisecond, 10, 20)
		s.GRPC(14)
		s.Routed()
		s.Retried()
		s.RetryRefused("budget")
		s.Denied("policy", "")
		s.BackendFailed()
		c.Opened()
		c.Closed("eof", 1, 1)
		e.CircuitState(1)
		r.Detected("http1")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Counting, scraping, forgetting and resolving at once: for the race detector; and nothing is lost from the totals.
func TestConcurrentUse(t *testing.T) {
	r := New(Options{NoRuntime: true, MaxServices: 4})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				name := fmt.Sprint("s", (g+i)%6)
				s := r.Service(Outbound, name, "shop")
				s.Done(200+i%7, time.Millisecond, 1, 1)
				s.Denied(fmt.Sprint(i%50), "")
				r.Endpoint(name, "shop", "e").CircuitOpened()
				if i%50 == 0 {
					r.Forget(name, "shop")
					scrape(t, r)
				}
			}
		})
	}
	wg.Wait()
	if got := r.Totals(); got.OutboundRequests != 2000 || got.CircuitOpens != 2000 {
		t.Errorf("%+v", got)
	}
}
