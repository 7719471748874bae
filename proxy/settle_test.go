package proxy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
)

func inZone(z string) func(*policy.Target) {
	return func(t *policy.Target) { t.Labels = map[string]string{"zone": z} }
}

func unhealthy(t *policy.Target) { t.Status = policy.Unhealthy }

// zoned is a proxy in zone a that knows users with so many endpoints in the zones a, b, c…
func zoned(t testing.TB, change func(*policy.Service), counts ...int) *Proxy {
	t.Helper()
	p := sidecar(t)
	p.cfg.Labels = map[string]string{"zone": "a"}
	svc := usersWith()
	for z, n := range counts {
		for i := range n {
			zone := string(rune('a' + z))
			svc.Endpoints = append(svc.Endpoints, endpointOf(fmt.Sprintf("%s%d", zone, i), fmt.Sprintf("10.0.%d.%d:80", z, i+1), inZone(zone)))
		}
	}
	if change != nil {
		change(svc)
	}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *Proxy) usersPick() *pick { return p.dests.Load().byName[users].choose("", 0) }

// sharesOf takes n times and counts by the first letter of the endpoints' ids.
func sharesOf(t testing.TB, pk *pick, now time.Time, n int) map[byte]float64 {
	t.Helper()
	s := &selection{now: now}
	s.usableFn = s.usable
	out := map[byte]float64{}
	for range n {
		s.begin(pk)
		e, ticket, ok := s.take(rand.Uint64(), rand.Uint64())
		if !ok {
			t.Fatal("no choice")
		}
		e.stats.Cancel()
		if e.circuit != nil {
			e.circuit.Cancel(ticket)
		}
		out[e.id[0]] += 1 / float64(n)
	}
	return out
}

func openCircuit(p *Proxy, e *endpoint, now time.Time) {
	for range 5 {
		ticket, _ := e.circuit.Allow(now)
		p.failed(e, ticket, now)
	}
}

// The formula: min(1, 1.4 × zones × near / all).
func TestRequestsStayInTheZoneWhileItHasEnough(t *testing.T) {
	random := func(s *policy.Service) { s.Traffic.Strategy = "random" }
	for _, c := range []struct {
		name   string
		counts []int
		open   int // circuits of the zone
		stay   float64
	}{
		{"as many as in the others", []int{4, 4, 4}, 0, 1},
		{"one of four is away", []int{4, 4, 4}, 1, 1},
		{"two are", []int{4, 4, 4}, 2, 1.4 * 3 * 2 / 10},
		{"three are", []int{4, 4, 4}, 3, 1.4 * 3 * 1 / 9},
		{"all are", []int{4, 4, 4}, 4, 0},
		{"one beside ten", []int{1, 5, 5}, 0, 1.4 * 3 * 1 / 11},
		{"only in this zone", []int{3}, 0, 1},
		{"none in this zone", []int{0, 3}, 0, 0},
	} {
		p, now := zoned(t, random, c.counts...), time.Now()
		pk := p.usersPick()
		for i := range c.open {
			openCircuit(p, pk.members[i].endpoint, now)
		}
		p.settleAll(now)
		got := sharesOf(t, pk, now, 20_000)
		if math.Abs(got['a']-c.stay) > 0.02 {
			t.Errorf("%s: %.3f stay, want %.3f", c.name, got['a'], c.stay)
		}
		if far := 1 - c.stay; len(c.counts) == 3 && math.Abs(got['b']-far/2) > 0.02 {
			t.Errorf("%s: %.3f went to b, want %.3f", c.name, got['b'], far/2)
		}
	}
}

func TestZonesDoNotMatterWhereTheyAreIgnored(t *testing.T) {
	p := zoned(t, func(s *policy.Service) { s.Traffic.Strategy, s.Traffic.Balancing.PreferZone = "random", false }, 2, 2)
	if got := sharesOf(t, p.usersPick(), time.Now(), 5000); math.Abs(got['a']-0.5) > 0.05 {
		t.Errorf("shares %v", got)
	}
	p = sidecar(t) // without a zone of its own
	if err := p.setService(users, usersWith(endpointOf("a1", "10.0.0.1:80", inZone("a")), endpointOf("b1", "10.0.0.2:80", inZone("b")))); err != nil {
		t.Fatal(err)
	}
	if got := sharesOf(t, p.usersPick(), time.Now(), 5000); got['a'] < 0.3 || got['b'] < 0.3 {
		t.Errorf("shares %v", got)
	}
}

// Before anything was settled anew, a zone without a usable endpoint is left at once; a retry leaves it before it repeats.
func TestNobodyWaitsForAZoneThatIsDown(t *testing.T) {
	p, now := zoned(t, nil, 1, 1), time.Now()
	pk := p.usersPick()
	s := &selection{now: now}
	s.usableFn = s.usable
	s.begin(pk)
	first, _, _ := s.take(1, 0)
	s.avoid(first)
	second, _, ok := s.take(2, 0)
	if !ok || first.id != "a0" || second.id != "b0" {
		t.Errorf("%s, then %s", first.id, second.id)
	}
	openCircuit(p, pk.members[0].endpoint, now)
	if got := sharesOf(t, pk, now, 100); got['b'] < 0.999 {
		t.Errorf("shares %v", got)
	}
}

// A key that leaves the zone always leaves it.
func TestAHashKeepsItsZone(t *testing.T) {
	p := zoned(t, func(s *policy.Service) { s.Traffic.Strategy = "consistent_hash" }, 1, 5, 5)
	pk, now := p.usersPick(), time.Now()
	s := &selection{now: now}
	s.usableFn = s.usable
	stayed := 0
	for range 2000 {
		hash := rand.Uint64()
		at := map[string]bool{}
		for range 5 {
			s.begin(pk)
			e, _, _ := s.take(rand.Uint64(), hash)
			e.stats.Cancel()
			at[e.id] = true
		}
		if len(at) != 1 {
			t.Fatalf("one key went to %v", at)
		}
		if at["a0"] {
			stayed++
		}
	}
	if want := 2000 * 1.4 * 3 / 11; math.Abs(float64(stayed)-want) > 100 {
		t.Errorf("%d of 2000 keys stayed, want about %.0f", stayed, want)
	}
}

func TestTheUnhealthyAreUsedWhenTooFewAreWell(t *testing.T) {
	with := func(panic, sick int) *Proxy {
		p := sidecar(t)
		svc := usersWith()
		svc.Traffic.Strategy, svc.Traffic.Balancing.Panic = "random", panic
		for i := range 4 {
			e := endpointOf(fmt.Sprintf("w%d", i), fmt.Sprintf("10.0.0.%d:80", i+1))
			if i < sick {
				e.ID = fmt.Sprintf("s%d", i)
				unhealthy(&e)
			}
			svc.Endpoints = append(svc.Endpoints, e)
		}
		if err := p.setService(users, svc); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		panic, sick int
		want        float64 // of requests to unhealthy ones
	}{{0, 3, 0}, {50, 1, 0}, {50, 2, 0}, {50, 3, 0.75}, {50, 4, 1}, {100, 1, 0.25}} {
		p := with(c.panic, c.sick)
		if got := sharesOf(t, p.usersPick(), time.Now(), 5000)['s']; math.Abs(got-c.want) > 0.05 {
			t.Errorf("%+v: %.3f went to unhealthy ones", c, got)
		}
	}
	if pk := with(0, 4).usersPick(); pk != nil {
		t.Error("without a threshold there is nobody to send to")
	}
}

func TestOnlyAnEndpointThatIsNewToAKnownServiceBeginsSlowly(t *testing.T) {
	p := sidecar(t)
	set := func(targets ...policy.Target) {
		t.Helper()
		svc := usersWith(targets...)
		svc.Traffic.Strategy, svc.Traffic.Balancing.SlowStart = "round_robin", time.Hour
		if err := p.setService(users, svc); err != nil {
			t.Fatal(err)
		}
	}
	a, b, c := endpointOf("a", "10.0.0.1:80"), endpointOf("b", "10.0.0.2:80"), endpointOf("c", "10.0.0.3:80")
	set(a, b)
	if got := sharesOf(t, p.usersPick(), time.Now(), 2000); math.Abs(got['a']-0.5) > 0.05 {
		t.Errorf("a service just heard of: %v", got)
	}
	set(a, b, c)
	if got := sharesOf(t, p.usersPick(), time.Now(), 2000); got['c'] > 0.1 || got['c'] == 0 {
		t.Errorf("c is new: %v", got)
	}
	unhealthy(&b)
	set(a, b)
	b.Status = policy.Healthy
	set(a, b)
	if got := sharesOf(t, p.usersPick(), time.Now(), 2000); got['b'] > 0.15 || got['b'] == 0 {
		t.Errorf("b is well again: %v", got)
	}
}

// metricsOf is what the proxy answers with.
func metricsOf(t *testing.T, p *Proxy) string {
	t.Helper()
	w := httptest.NewRecorder()
	p.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", http.NoBody))
	return w.Body.String()
}

// watched is users with four endpoints that are compared every 10 s.
func watched(t *testing.T) (*Proxy, *observer.ObservedLogs) {
	p := sidecar(t)
	core, logs := observer.New(zap.InfoLevel)
	p.log = zap.New(core)
	svc := usersWith()
	for i := range 4 {
		svc.Endpoints = append(svc.Endpoints, endpointOf(fmt.Sprint(i), fmt.Sprintf("10.0.0.%d:80", i+1)))
	}
	d := policy.DefaultSettings()
	enabled := true
	d.Services["users"] = policy.ServiceSettings{Strategy: "round_robin", Outliers: &policy.ServiceOutliers{Enabled: &enabled}}
	svc.Traffic = d.TrafficFor(users)
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	return p, logs
}

func TestAnOutlierIsLeftOutForAWhile(t *testing.T) {
	p, logs := watched(t)
	now := time.Now()
	sick := p.usersPick().endpoints[2]
	window := func(failing bool) {
		for _, e := range p.usersPick().endpoints {
			for i := range 200 {
				e.record(time.Millisecond, failing && e == sick && i%5 == 0)
			}
		}
		now = now.Add(10 * time.Second)
		if !p.settleAll(now) {
			t.Fatal("nobody will look again")
		}
	}
	window(false)
	if got := sharesOf(t, p.usersPick(), now, 400); got['2'] != 0.25 && math.Abs(got['2']-0.25) > 0.01 {
		t.Fatalf("shares %v", got)
	}
	window(true)
	if got := sharesOf(t, p.usersPick(), now, 400); got['2'] != 0 {
		t.Errorf("an outlier got a share of %v", got['2'])
	}
	if n := logs.FilterMessage("endpoint is an outlier and left out").Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	if text := metricsOf(t, p); !strings.Contains(text, `weir_outlier_ejections_total{direction="outbound",namespace="default",reason="success-rate",service="users"} 1`) ||
		!strings.Contains(text, `weir_outlier_ejected{direction="outbound",namespace="default",service="users"} 1`) {
		t.Errorf("metrics:\n%s", text)
	}
	// It is still used where there is no other.
	for i, e := range p.usersPick().endpoints {
		if i != 2 {
			openCircuit(p, e, now)
		}
	}
	if got := sharesOf(t, p.usersPick(), now, 10); got['2'] < 0.999 {
		t.Errorf("all other circuits are open: %v", got)
	}
	for _, e := range p.usersPick().endpoints {
		e.circuit.Force(breaker.Auto)
	}
	now = now.Add(30 * time.Second)
	p.settleAll(now)
	if got := sharesOf(t, p.usersPick(), now, 400); math.Abs(got['2']-0.25) > 0.01 {
		t.Errorf("when its time is over: %v", got)
	}
	if n := logs.FilterMessage("endpoint is no outlier any more").Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
}

func TestAnOutlierStaysOneThroughAChangeOfItsService(t *testing.T) {
	p, _ := watched(t)
	d := p.dests.Load().byName[users]
	for _, e := range p.usersPick().endpoints {
		for range 200 {
			e.record(time.Millisecond, e.id == "2")
		}
	}
	now := time.Now().Add(10 * time.Second)
	p.settleAll(now)
	svc := *d.svc
	svc.Endpoints = append(svc.Endpoints[:4:4], endpointOf("5", "10.0.0.9:80"))
	if err := p.setService(users, &svc); err != nil {
		t.Fatal(err)
	}
	if got := sharesOf(t, p.usersPick(), now, 400); got['2'] != 0 || got['5'] == 0 {
		t.Errorf("shares %v", got)
	}
	svc.Traffic.Outliers = policy.Outliers{}
	if err := p.setService(users, &svc); err != nil {
		t.Fatal(err)
	}
	if got := sharesOf(t, p.usersPick(), now, 400); got['2'] == 0 || p.settleAll(now) {
		t.Errorf("where outliers are not looked for: %v", got)
	}
	if text := metricsOf(t, p); !strings.Contains(text, `weir_outlier_ejected{direction="outbound",namespace="default",service="users"} 0`) {
		t.Error("the gauge stays behind")
	}
}

func TestASelectionAllocatesNothingWhateverIsSet(t *testing.T) {
	p := zoned(t, func(s *policy.Service) {
		s.Traffic.Strategy = "consistent_hash"
		s.Traffic.Balancing = policy.Balancing{LoadFactor: 1.25, PreferZone: true, SlowStart: time.Minute, Aggression: 2, Panic: 50}
		unhealthy(&s.Endpoints[0])
	}, 3, 5)
	pk, s := p.usersPick(), &selection{now: time.Now()}
	s.usableFn = s.usable
	if n := testing.AllocsPerRun(200, func() {
		s.begin(pk)
		e, _, _ := s.take(rand.Uint64(), rand.Uint64())
		e.stats.Cancel()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
