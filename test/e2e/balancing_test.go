package e2e

import (
	"context"
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

// farm is a mesh with one sidecar, in zone a, and apps without one on another host.
type farm struct {
	*meshlab.Mesh
	front, host *meshlab.Node
	ports       int
}

func newFarm(t *testing.T) *farm {
	f := &farm{Mesh: start(t), ports: 8000}
	// What is said here of one try is not to be mended by others.
	set(t, f.Mesh, `{"resilience":{"retry":{"enabled":false}},"load_balancing":{"health_check":{"enabled":false}}}`)
	f.host = bare(t, f.Mesh, "farm")
	f.front = join(t, f.Mesh, meshlab.Workload{Host: "front", Service: "frontend", Labels: []string{"zone=a"}})
	return f
}

// farmApp is a backend that may also fail now and then, or its health checks.
type farmApp struct {
	*backend
	flaky, sick atomic.Bool
	asked       atomic.Int64
}

func newFarmApp(t *testing.T, n *meshlab.Node, name string, port int) *farmApp {
	a := &farmApp{backend: &backend{node: n}}
	a.app = serve(t, n, name, port, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/check" && a.sick.Load(), r.URL.Path != "/check" && a.flaky.Load() && a.asked.Add(1)%2 == 0:
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprintln(w, name)
		case r.URL.Path != "/check":
			a.answer(w, r)
		}
	})
	return a
}

// service starts so many apps as the endpoints of a service, in zones by turns
// where there are any, and waits until the sidecar knows them.
func (f *farm) service(t *testing.T, name string, n int, zones ...string) []*farmApp {
	t.Helper()
	var apps []*farmApp
	for i := range n {
		f.ports++
		id := fmt.Sprintf("%s-%d", name, i)
		b := newFarmApp(t, f.host, id, f.ports)
		e := policy.DefaultEndpoint()
		e.HealthCheckPath = "/check"
		e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = id, name, "default", f.host.Addr4().String(), f.ports
		if len(zones) > 0 {
			e.Labels = map[string]string{"zone": zones[i%len(zones)]}
		}
		if err := f.API.Register(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		apps = append(apps, b)
	}
	f.settings(t, name, "round_robin", "")
	for _, b := range apps {
		known(t, f.Mesh, f.front, name, b.name)
		b.forget()
	}
	return apps
}

// settings sets a service's, and waits until the sidecar has them.
func (f *farm) settings(t *testing.T, service, strategy, more string) {
	t.Helper()
	for _, s := range []string{"random", strategy} { // so that the last is a change in any case
		set(t, f.Mesh, fmt.Sprintf(`{"services":{%q:{"strategy":%q%s}}}`, service, s, more))
		await(t, f.Mesh, service+" to be balanced by "+s, func() error {
			curl(t, f.front, "http://"+service+"/health")
			st, err := f.front.Status(t.Context())
			if got := st.Services["default/"+service].Strategy; err == nil && got != s {
				err = fmt.Errorf("it is by %q", got)
			}
			return err
		})
	}
}

// send makes n requests, ten at a time, and counts which app answered.
func (f *farm) send(t *testing.T, n int, url string, args ...string) map[string]int {
	t.Helper()
	out := map[string]int{}
	args = append(args, "--parallel", "--parallel-max", "10", fmt.Sprintf("%s?n=[1-%d]", url, n))
	for _, name := range strings.Fields(curl(t, f.front, args...)) {
		out[name]++
	}
	return out
}

// Alone: it looks at latencies.
func TestEndpointsAreChosenAsTheSettingsSay(t *testing.T) {
	f := newFarm(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *farm)
	}{
		{"OneSlowEndpointOfTenIsNotSeenInTheP99", slowOfTen},
		{"RequestsStayInTheirZone", zones},
		{"ACookieKeepsItsEndpoint", cookies},
		{"ANewEndpointBeginsSlowly", slowStart},
		{"AnOutlierIsLeftOut", outliers},
		{"AnOperatorOpensACircuit", orderedCircuit},
		{"TooManyRequestsAtOnceAreRefused", overload},
		{"UnhealthyEndpointsAreUsedInAPanic", panics},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, f) })
	}
}

// The default strategy, and nothing configured. The p99 stays within one and a half
// times that of ten healthy endpoints; or fewer than one request in a hundred meets
// the slow one, which then is not what the p99 shows. Where the machine itself is
// slow for a moment there is another run.
func slowOfTen(t *testing.T, f *farm) {
	apps := f.service(t, "ten", 10)
	f.settings(t, "ten", "p2c_ewma", "")
	for _, b := range apps {
		b.delay.Store(int64(5 * time.Millisecond))
	}
	p99 := func() (time.Duration, map[string]int) {
		const n = 1500
		times := make([]float64, 0, n)
		got := map[string]int{}
		for _, line := range strings.Split(strings.TrimSpace(curl(t, f.front, "--parallel", "--parallel-max", "10", "-w", "%{time_total}\n", fmt.Sprintf("http://ten/?n=[1-%d]", n))), "\n") {
			var s float64
			if _, err := fmt.Sscanf(line, "%g", &s); err == nil && strings.Contains(line, ".") {
				times = append(times, s)
			} else {
				got[line]++
			}
		}
		slices.Sort(times)
		return time.Duration(times[len(times)*99/100] * float64(time.Second)), got
	}
	healthy, _ := p99()
	apps[3].delay.Store(int64(100 * time.Millisecond))
	await(t, f.Mesh, "a p99 that does not show the slow one", func() error {
		slow, got := p99()
		t.Logf("p99 %v with ten healthy endpoints, %v with one 20 times slower, which got %d of 1500 requests", healthy, slow, got["ten-3"])
		if got["ten-3"] >= 15 && slow > healthy*3/2 || len(got) < 9 {
			return fmt.Errorf("requests went %v", got)
		}
		return nil
	})
}

func zones(t *testing.T, f *farm) {
	apps := f.service(t, "zoned", 4, "a", "b")
	near := func(got map[string]int) int { return got["zoned-0"] + got["zoned-2"] }
	if got := f.send(t, 100, "http://zoned/"); near(got) != 100 {
		t.Errorf("requests went %v", got)
	}
	// One of two is away: 1.4 × 2 zones × 1 of 3 usable endpoints is 93 %. What
	// fails until its circuit has opened is not of interest.
	apps[0].status.Store(500)
	await(t, f.Mesh, "some requests to leave the zone", func() error {
		f.send(t, 50, "http://zoned/")
		if got := f.send(t, 100, "http://zoned/"); got["zoned-0"] > 0 || near(got) == 100 || near(got) < 70 {
			return fmt.Errorf("they went %v", got)
		}
		return nil
	})
	apps[2].status.Store(500)
	await(t, f.Mesh, "all to leave it", func() error {
		if got := f.send(t, 50, "http://zoned/"); near(got) > 0 {
			return fmt.Errorf("they went %v", got)
		}
		return nil
	})
	apps[0].status.Store(0)
	apps[2].status.Store(0)
	f.settings(t, "zoned", "round_robin", `,"locality":"ignore","circuit_breaker":{"enabled":false,"failure_threshold":5,"timeout":60}`)
	if got := f.send(t, 100, "http://zoned/"); len(got) != 4 || near(got) > 60 {
		t.Errorf("with zones ignored requests went %v", got)
	}
}

func cookies(t *testing.T, f *farm) {
	f.service(t, "sticky", 3)
	f.settings(t, "sticky", "consistent_hash", `,"hash_key":"cookie:sid"`)
	at := map[string]bool{}
	for i := range 12 {
		var got map[string]int
		for _, path := range []string{"/a", "/b"} { // one connection each, one request at a time: nobody is full
			for range 3 {
				name := strings.TrimSpace(curl(t, f.front, "--cookie", fmt.Sprintf("x=1; sid=s%d", i), "http://sticky"+path))
				if got == nil {
					got = map[string]int{}
				}
				got[name]++
				at[name] = true
			}
		}
		if len(got) != 1 {
			t.Errorf("session s%d went to %v", i, got)
		}
	}
	if len(at) < 2 {
		t.Errorf("12 sessions all went to %v", at)
	}
}

func slowStart(t *testing.T, f *farm) {
	f.service(t, "growing", 1)
	f.settings(t, "growing", "round_robin", `,"slow_start":3600`)
	f.ports++
	b := newFarmApp(t, f.host, "fresh", f.ports)
	register(t, f.Mesh, f.host, "growing", "fresh", f.ports, "http")
	known(t, f.Mesh, f.front, "growing", "fresh")
	got := f.send(t, 300, "http://growing/")
	if n := b.count(); n == 0 || n > 60 { // a tenth of what the other gets is 27
		t.Errorf("of 300 requests the new one got %d: %v", n, got)
	}
	f.settings(t, "growing", "round_robin", "")
	if got := f.send(t, 100, "http://growing/"); got["fresh"] != 50 {
		t.Errorf("without slow start requests went %v", got)
	}
}

func outliers(t *testing.T, f *farm) {
	apps := f.service(t, "odd", 4)
	f.settings(t, "odd", "round_robin", `,"outlier_detection":{"enabled":true,"interval":1,"request_volume":5,"base_ejection_time":3600,"max_ejection_time":3600}`)
	apps[2].flaky.Store(true) // every second request: no circuit ever opens
	await(t, f.Mesh, "the outlier to be left out", func() error {
		if got := f.send(t, 100, "http://odd/"); got["odd-2"] > 0 {
			return fmt.Errorf("requests went %v", got)
		}
		return nil
	})
	if text := curl(t, f.front, "http://127.0.0.1:15000/metrics"); !strings.Contains(text, `weir_outlier_ejections_total{direction="outbound",namespace="default",reason="success-rate",service="odd"} 1`) {
		t.Error("the ejection is not counted")
	}
	await(t, f.Mesh, "the control plane to know it", func() error {
		return f.circuit(t, "odd", "odd-2", func(c *api.EndpointCircuits) bool { return len(c.Proxies) == 1 && c.Proxies[0].Outlier })
	})
	f.settings(t, "odd", "round_robin", `,"outlier_detection":{"enabled":false}`)
	if got := f.send(t, 100, "http://odd/"); got["odd-2"] == 0 {
		t.Errorf("without detection requests went %v", got)
	}
}

// circuit looks at an endpoint's circuits as the API shows them.
func (f *farm) circuit(t *testing.T, service, id string, ok func(*api.EndpointCircuits) bool) error {
	t.Helper()
	all, err := f.API.Circuits(t.Context(), policy.ServiceName{Namespace: "default", Name: service})
	if err != nil {
		return err
	}
	for i := range all {
		if all[i].ID == id && ok(&all[i]) {
			return nil
		}
	}
	return fmt.Errorf("circuits are %+v", all)
}

// weir runs the operator's command beside the control plane.
func (f *farm) weir(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	args = append(args, "--token-file", f.TokenFile())
	out, err := f.ControlNode().Output(ctx, f.Program("weir"), args...)
	if err != nil {
		t.Fatalf("weir %v: %v\n%s", args, err, out)
	}
	return out
}

func orderedCircuit(t *testing.T, f *farm) {
	f.service(t, "breaking", 2)
	gets := func(what string, ok func(n int) bool) {
		t.Helper()
		await(t, f.Mesh, what, func() error {
			if got := f.send(t, 20, "http://breaking/"); !ok(got["breaking-1"]) {
				return fmt.Errorf("requests went %v", got)
			}
			return nil
		})
	}
	f.weir(t, "circuit", "open", "breaking", "breaking-1")
	gets("nothing to go there", func(n int) bool { return n == 0 })
	await(t, f.Mesh, "the proxy to report it", func() error {
		return f.circuit(t, "breaking", "breaking-1", func(c *api.EndpointCircuits) bool {
			return c.Order == "open" && len(c.Proxies) == 1 && c.Proxies[0].State == "open" && c.Proxies[0].Ordered && c.Proxies[0].ServiceName == "frontend"
		})
	})
	if text := f.weir(t, "get", "circuits", "default/breaking"); !strings.Contains(text, "open") {
		t.Errorf("weir get circuits:\n%s", text)
	}
	f.weir(t, "circuit", "open", "breaking", "breaking-0")
	await(t, f.Mesh, "503 where all are open", func() error {
		if a := ask(t, f.front, "http://breaking/"); a.Status != 503 || a.Header.Get("weir-error") != "circuit-open" {
			return fmt.Errorf("%d %s", a.Status, a.Header.Get("weir-error"))
		}
		return nil
	})
	f.weir(t, "circuit", "reset", "breaking", "breaking-0")
	f.weir(t, "circuit", "reset", "breaking", "breaking-1")
	gets("both to be asked again", func(n int) bool { return n > 0 && n < 20 })
	f.weir(t, "circuit", "open", "breaking", "breaking-1", "--for", "2s")
	gets("nothing to go there again", func(n int) bool { return n == 0 })
	gets("the order to end", func(n int) bool { return n > 0 })
}

func overload(t *testing.T, f *farm) {
	b := f.service(t, "narrow", 1)[0]
	f.settings(t, "narrow", "round_robin", `,"max_concurrent":1,"max_pending":1`)
	hold := make(chan struct{})
	b.mu.Lock()
	b.hold = hold
	b.mu.Unlock()
	answers := make(chan string, 2)
	for waiting := range 2 { // one is at the app, then one waits for it
		go func() {
			out, err := f.front.Output(t.Context(), "curl", "-sS", "--max-time", "20", "http://narrow/")
			answers <- fmt.Sprint(out, err)
		}()
		await(t, f.Mesh, "a request to be under way", func() error {
			st, err := f.front.Status(t.Context())
			if s := st.Services["default/narrow"]; err == nil && (s.UnderWay != 1 || s.Waiting != waiting) {
				err = fmt.Errorf("%d are, %d wait", s.UnderWay, s.Waiting)
			}
			return err
		})
	}
	ask(t, f.front, "http://narrow/").want(t, 503, "overload", `{"error":"Too many requests at once to narrow.default"}`+"\n")
	close(hold)
	b.mu.Lock()
	b.hold = nil
	b.mu.Unlock()
	for range 2 {
		if got := <-answers; got != "narrow-0\n<nil>" {
			t.Errorf("one that had room got %q", got)
		}
	}
	if text := curl(t, f.front, "http://127.0.0.1:15000/metrics"); !strings.Contains(text, `weir_overload_total{bound="pending",direction="outbound",namespace="default",service="narrow"}`) {
		t.Error("the refusal is not counted")
	}
}

func panics(t *testing.T, f *farm) {
	apps := f.service(t, "poor", 3)
	f.settings(t, "poor", "round_robin", `,"panic_threshold":50`)
	for _, b := range apps[:2] {
		b.sick.Store(true) // requests are answered, checks are not
	}
	set(t, f.Mesh, `{"load_balancing":{"health_check":{"enabled":true,"interval":0.5}}}`)
	defer set(t, f.Mesh, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	await(t, f.Mesh, "two to be unhealthy and used all the same", func() error {
		list, err := f.API.Endpoints(t.Context(), policy.ServiceName{Namespace: "default", Name: "poor"})
		if err != nil {
			return err
		}
		if list[0].Status != policy.Unhealthy || list[1].Status != policy.Unhealthy {
			return fmt.Errorf("endpoints are %+v", list)
		}
		if got := f.send(t, 30, "http://poor/"); len(got) != 3 {
			return fmt.Errorf("requests went %v", got)
		}
		return nil
	})
	f.settings(t, "poor", "round_robin", `,"panic_threshold":0`)
	if got := f.send(t, 30, "http://poor/"); len(got) != 1 || got["poor-2"] != 30 {
		t.Errorf("without a threshold requests went %v", got)
	}
}

// An order at one control plane reaches the proxies of all, and what they report is
// shown by all.
func TestCircuitsAreTheSameAtEveryControlPlane(t *testing.T) {
	t.Parallel()
	f := &farm{Mesh: startCluster(t, 1, 2), ports: 8000}
	set(t, f.Mesh, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	f.host = bare(t, f.Mesh, "farm")
	f.front = join(t, f.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	f.service(t, "users", 2)
	name := policy.ServiceName{Namespace: "default", Name: "users"}
	for _, p := range f.Planes {
		if err := p.API.OrderCircuit(t.Context(), name, "users-0", policy.CircuitOpen, time.Hour); err != nil {
			t.Fatal(err)
		}
		for _, shown := range f.Planes {
			await(t, f.Mesh, "an order of "+p.Name+" to be done, by "+shown.Name, func() error {
				all, err := shown.API.Circuits(t.Context(), name)
				if err == nil && (len(all) != 2 || all[0].Order != "open" || len(all[0].Proxies) != 1 || all[0].Proxies[0].State != "open" || len(all[1].Proxies) != 0) {
					err = fmt.Errorf("%+v", all)
				}
				return err
			})
		}
		if got := f.send(t, 20, "http://users/"); got["users-0"] != 0 {
			t.Errorf("%s: requests went %v", p.Name, got)
		}
		if err := p.API.OrderCircuit(t.Context(), name, "users-0", policy.CircuitReset, 0); err != nil {
			t.Fatal(err)
		}
		await(t, f.Mesh, "the reset of "+p.Name, func() error {
			if got := f.send(t, 20, "http://users/"); got["users-0"] == 0 {
				return fmt.Errorf("requests went %v", got)
			}
			return nil
		})
	}
}
