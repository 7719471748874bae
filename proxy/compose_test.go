package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/listen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var users = policy.ServiceName{Namespace: "default", Name: "users"}

func sidecar(t testing.TB) *Proxy {
	t.Helper()
	p, err := New(Config{Service: policy.ServiceName{Namespace: "default", Name: "front"}, Control: []string{"127.0.0.1:1"}, TokenFile: "unused", Admin: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func endpointOf(id, addr string, change ...func(*policy.Target)) policy.Target {
	at := netip.MustParseAddrPort(addr)
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = id, users.Name, users.Namespace, at.Addr().String(), int(at.Port())
	t := policy.Target{Endpoint: e}
	for _, c := range change {
		c(&t)
	}
	return t
}

func version(v string) func(*policy.Target) {
	return func(t *policy.Target) { t.Labels = map[string]string{"version": v} }
}

func usersWith(targets ...policy.Target) *policy.Service {
	s := policy.DefaultSettings()
	return &policy.Service{Name: users, Endpoints: targets, Traffic: s.TrafficFor(users)}
}

func idsOf(pk *pick) string {
	if pk == nil {
		return "none"
	}
	out := ""
	for _, e := range pk.endpoints {
		out += e.id
	}
	return out
}

func TestAChoiceIsNarrowedBySubsetAndByThePortDialled(t *testing.T) {
	p := sidecar(t)
	sick := endpointOf("x", "10.0.0.9:7001", func(t *policy.Target) { t.Status = policy.Unhealthy })
	err := p.setService(users, usersWith(endpointOf("a", "10.0.0.1:8001", version("v1")), endpointOf("b", "10.0.0.2:8001", version("v2")), endpointOf("c", "10.0.0.3:9001", version("v2")), sick))
	if err != nil {
		t.Fatal(err)
	}
	d := p.dests.Load().byName[users]
	for _, c := range []struct {
		subset string
		port   uint16
		want   string
	}{
		{"", 0, "abc"}, {"", 80, "abc"}, {"", 8001, "ab"}, {"", 9001, "c"},
		{"", 7001, "none"}, // meant for x, which is unhealthy: another port would be another thing
		{"v2", 80, "bc"}, {"v2", 8001, "b"}, {"v1", 9001, "none"}, {"v3", 80, "none"},
	} {
		if got := idsOf(d.choose(c.subset, c.port)); got != c.want {
			t.Errorf("subset %q port %d: %s, want %s", c.subset, c.port, got, c.want)
		}
	}
}

func TestAChangeOfAServiceKeepsCircuitsAndPools(t *testing.T) {
	p := sidecar(t)
	now := time.Now()
	if err := p.setService(users, usersWith(endpointOf("a", "10.0.0.1:80"), endpointOf("b", "10.0.0.2:80"))); err != nil {
		t.Fatal(err)
	}
	a := p.dests.Load().byName[users].choose("", 0).endpoints[0]
	for range 5 {
		ticket, _ := a.circuit.Allow(now)
		a.circuit.Failure(now, ticket)
	}
	if err := p.setService(users, usersWith(endpointOf("a", "10.0.0.1:80"), endpointOf("c", "10.0.0.3:80"))); err != nil {
		t.Fatal(err)
	}
	again := p.dests.Load().byName[users].choose("", 0).endpoints[0]
	if again.circuit.State(now) != breaker.Open || again.kept[0] != a.kept[0] || again.stats != a.stats {
		t.Error("what was known of an endpoint that stayed is lost")
	}
	if len(p.endpoints) != 2 {
		t.Errorf("%d endpoints are kept, 2 are there", len(p.endpoints))
	}
	if err := p.setService(users, nil); err != nil || len(p.endpoints) != 0 || p.dests.Load().byName[users] != nil {
		t.Errorf("a service that is gone leaves something: %v, %d endpoints", err, len(p.endpoints))
	}
}

func TestABadChangeIsRefusedAndTheOldStays(t *testing.T) {
	p := sidecar(t)
	if err := p.setService(users, usersWith(endpointOf("a", "10.0.0.1:80"))); err != nil {
		t.Fatal(err)
	}
	bad := usersWith(endpointOf("b", "10.0.0.2:80"))
	bad.Traffic.Strategy = "fastest"
	if err := p.setService(users, bad); err == nil {
		t.Fatal("an unknown strategy is taken")
	}
	if got := idsOf(p.dests.Load().byName[users].choose("", 0)); got != "a" {
		t.Errorf("endpoints are %s", got)
	}
}

func TestASelectionAvoidsOpenCircuitsAndWhatWasTried(t *testing.T) {
	p := sidecar(t)
	now := time.Now()
	if err := p.setService(users, usersWith(endpointOf("a", "10.0.0.1:80"), endpointOf("b", "10.0.0.2:80"), endpointOf("c", "10.0.0.3:80"))); err != nil {
		t.Fatal(err)
	}
	pk := p.dests.Load().byName[users].choose("", 0)
	open := pk.endpoints[1]
	for range 5 {
		ticket, _ := open.circuit.Allow(now)
		p.failed(open, ticket, now)
	}
	s := &selection{now: now}
	s.usableFn = s.usable
	for range 50 {
		s.begin(pk)
		first, _, ok := s.take(rand.Uint64(), 0)
		s.avoid(first)
		second, _, ok2 := s.take(rand.Uint64(), 0)
		s.avoid(second)
		third, _, ok3 := s.take(rand.Uint64(), 0)
		if !ok || !ok2 || !ok3 || first == open || second == open || third == open || first == second {
			t.Fatalf("took %s, %s, %s", first.id, second.id, third.id)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		s.begin(pk)
		e, _, _ := s.take(7, 0)
		e.stats.Cancel()
	}); n != 0 {
		t.Errorf("a selection costs %v allocations", n)
	}
	s.ignore = true // a rule turned circuits off
	seen := map[string]bool{}
	for range 100 {
		s.begin(pk)
		e, _, _ := s.take(rand.Uint64(), 0)
		seen[e.id] = true
	}
	if !seen["b"] {
		t.Error("with circuits off the open one is still avoided")
	}
}

func limited(n int) func(*policy.Target) {
	return func(t *policy.Target) {
		t.RateLimit, t.Limit = n, policy.RateLimit{Limit: n, Window: time.Minute}
	}
}

func TestAnEndpointOverItsOwnLimitIsPassedOver(t *testing.T) {
	p := sidecar(t)
	if err := p.setService(users, usersWith(endpointOf("a", "10.0.0.1:80", limited(2)), endpointOf("b", "10.0.0.2:80", limited(3)))); err != nil {
		t.Fatal(err)
	}
	pk := p.dests.Load().byName[users].choose("", 0)
	now := time.Now()
	s := &selection{now: now, counted: true}
	s.usableFn = s.usable
	took := map[string]int{}
	for range 5 {
		s.begin(pk)
		e, _, ok := s.take(rand.Uint64(), 0)
		if !ok {
			t.Fatalf("no choice after %v", took)
		}
		took[e.id]++
	}
	if took["a"] != 2 || took["b"] != 3 {
		t.Errorf("took %v", took)
	}
	s.begin(pk)
	if _, _, ok := s.take(1, 0); ok || s.full == nil || s.when.RetryAfter <= 0 || s.when.RetryAfter > time.Minute {
		t.Errorf("chosen %v, although both are at their limits; %+v", ok, s.when)
	}
	s.counted = false // a connection, not a request
	s.begin(pk)
	if _, _, ok := s.take(1, 0); !ok {
		t.Error("a limit of requests holds back a connection")
	}
	s.counted, s.now = true, now.Add(time.Minute+time.Second)
	s.begin(pk)
	if n := testing.AllocsPerRun(1, func() { s.take(7, 0) }); n != 0 {
		t.Errorf("a limit costs %v allocations", n)
	}
}

func TestWhatIsAnEndpointsOwnOutlivesOtherChanges(t *testing.T) {
	p := sidecar(t)
	own := func(n int, circuit float64) *endpoint {
		t.Helper()
		target := endpointOf("a", "10.0.0.1:80", limited(n))
		target.CircuitTimeout = circuit
		if err := p.setService(users, usersWith(target)); err != nil {
			t.Fatal(err)
		}
		return p.dests.Load().byName[users].choose("", 0).endpoints[0]
	}
	first := own(2, 5)
	if first.limits.Timeout != 5*time.Second {
		t.Errorf("the circuit stays open for %v", first.limits.Timeout)
	}
	if e := own(3, 5); e.circuit != first.circuit || e.limiter == first.limiter {
		t.Error("with another limit the circuit is to stay")
	}
	second := own(3, 6)
	if e := own(3, 7); e.circuit == second.circuit || e.limiter != second.limiter || e.limits.Timeout != 7*time.Second {
		t.Error("with another circuit the limit is to stay")
	}
}

func TestAllCircuitsOpenIsNoChoice(t *testing.T) {
	p := sidecar(t)
	now := time.Now()
	if err := p.setService(users, usersWith(endpointOf("a", "10.0.0.1:80"))); err != nil {
		t.Fatal(err)
	}
	pk := p.dests.Load().byName[users].choose("", 0)
	s := &selection{now: now}
	s.usableFn = s.usable
	for range 5 {
		s.begin(pk)
		e, ticket, ok := s.take(1, 0)
		if !ok {
			t.Fatal("the circuit opened too early")
		}
		p.failed(e, ticket, now)
	}
	s.begin(pk)
	if _, _, ok := s.take(1, 0); ok {
		t.Error("an open circuit was chosen")
	}
	s.now = now.Add(61 * time.Second)
	s.begin(pk)
	if _, ticket, ok := s.take(1, 0); !ok || !ticket.Probe() {
		t.Error("after its timeout one probe is to be let through")
	}
	if _, _, ok := s.take(1, 0); ok {
		t.Error("a second probe at the same time")
	}
}

func TestHowConnectionsAreCarried(t *testing.T) {
	kind := func(k detect.Kind) detect.Result { return detect.Result{Kind: k} }
	for _, c := range []struct {
		protocol string
		declared bool
		kind     detect.Kind
		want     carriage
	}{
		{"http", true, detect.HTTP1, asRequests},
		{"http", true, detect.Opaque, asRequests}, // to be refused by the engine, not carried past it
		{"http", true, detect.HTTP2, asStreams},   // the endpoint is spoken to in its version
		{"http", true, detect.TLS, asBytes},       // the app's own
		{"grpc", true, detect.HTTP2, asStreams},
		{"grpc", true, detect.HTTP1, asRequests},
		{"http2", true, detect.Opaque, asStreams}, // to be refused
		{"http2", true, detect.TLS, asBytes},
		{"tls", true, detect.HTTP1, asBytes},
		{"tcp", true, detect.HTTP1, asBytes},
		{"tcp", true, detect.HTTP2, asBytes},
		{"", false, detect.HTTP1, asRequests},
		{"", false, detect.HTTP2, asStreams},
		{"", false, detect.Opaque, asBytes},
		{"", false, detect.TLS, asBytes},
	} {
		if got := carriageOf(c.protocol, c.declared, kind(c.kind)); got != c.want {
			t.Errorf("%q %v %v: %v", c.protocol, c.declared, c.kind, got)
		}
	}
}

func TestHostsThatNameServices(t *testing.T) {
	p := sidecar(t)
	for host, want := range map[string]string{
		"users": "default/users", "Users.prod": "prod/users", "users.prod.svc": "prod/users",
		"users.prod.svc.cluster.local.": "prod/users", "www.example.com": "", "": "", "10.0.0.1": "", "[::1]": "", "a_b": "",
	} {
		got, ok := p.meshName(host)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %v %v, want %q", host, got, ok, want)
		}
	}
	for head, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: users:80\r\n\r\n":              "users",
		"GET / HTTP/1.1\r\nA: b\r\nhOsT:users.prod\r\nX: 1":     "users.prod",
		"GET / HTTP/1.1\r\nA: b\r\n\r\nHost: body":              "",
		"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n":                "::1",
		"":                                                      "",
		"GET / HTTP/1.0\r\nX-Host: no\r\nAccept: Host: x\r\n\r": "",
	} {
		if got := hostIn([]byte(head)); got != want {
			t.Errorf("%q: %q, want %q", head, got, want)
		}
	}
}

func TestIDsAreWellFormed(t *testing.T) {
	var i ids
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	parent := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`)
	seen := map[string]bool{}
	for range 1000 {
		id := fmt.Sprint(i.makeID())
		if !uuid.MatchString(id) || seen[id] {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
		if p := i.makeParent(); !parent.MatchString(p) {
			t.Fatalf("traceparent %q", p)
		}
	}
	if n := testing.AllocsPerRun(100, func() { i.makeID(); i.makeParent() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRulesThatAllowNoMoreCutLiveConnections(t *testing.T) {
	p := sidecar(t)
	shop := policy.Caller{Name: policy.ServiceName{Namespace: "default", Name: "shop"}, Verified: true}
	rule := policy.InboundRule{SecurityRule: policy.SecurityRule{
		ID: "r", SourceNamespace: "default", SourceService: "shop", DestinationNamespace: "default", DestinationService: "front", AllowedMethods: policy.DefaultMethods(),
	}}
	in := policy.Inbound{Service: p.cfg.Service, MTLS: policy.Strict, Rules: []policy.InboundRule{rule}}
	if err := p.setInbound(in); err != nil {
		t.Fatal(err)
	}
	cut := false
	from := &inbound{p: p, lc: &listen.Conn{}, caller: shop}
	live := p.live.add(from, &asked{Call: from.connection()}, func() { cut = true })
	if err := p.setInbound(in); err != nil || cut {
		t.Fatalf("cut although still allowed (%v)", err)
	}
	in.Rules = nil
	if err := p.setInbound(in); err != nil || !cut {
		t.Fatalf("not cut (%v)", err)
	}
	if why := p.live.remove(live); why.Reason != policy.NoRule {
		t.Errorf("cut for %+v", why)
	}
	other := in
	other.Service = users
	if err := p.setInbound(other); err == nil {
		t.Error("rules of another service are taken")
	}
}

// A WebSocket is what its request was: a rule about GET and its path holds for it.
func TestAnUpgradedConnectionIsJudgedByItsRequest(t *testing.T) {
	p := sidecar(t)
	shop := policy.Caller{Name: policy.ServiceName{Namespace: "default", Name: "shop"}, Verified: true}
	rule := policy.InboundRule{SecurityRule: policy.SecurityRule{
		ID: "r", SourceNamespace: "default", SourceService: "shop", DestinationNamespace: "default", DestinationService: "front", AllowedMethods: []string{"GET"},
		Paths: []string{"/ws"}, Headers: map[string]string{"X-Room": "7"},
	}}
	in := policy.Inbound{Service: p.cfg.Service, MTLS: policy.Strict, Rules: []policy.InboundRule{rule}}
	if err := p.setInbound(in); err != nil {
		t.Fatal(err)
	}
	cut := false
	from := &inbound{p: p, lc: &listen.Conn{}, caller: shop}
	ask := &asked{Call: from.connection()}
	ask.Method, ask.Path, ask.Header = "GET", "/ws?a", func(name string, n int) (string, bool) { return "7", name == "X-Room" && n == 0 }
	live := p.live.add(from, ask, func() { cut = true })
	if err := p.setInbound(in); err != nil || cut {
		t.Fatalf("cut although still allowed (%v)", err)
	}
	deny := rule
	deny.ID, deny.Action = "d", policy.Deny
	in.Rules = append(in.Rules, deny)
	if err := p.setInbound(in); err != nil || !cut {
		t.Fatalf("not cut (%v)", err)
	}
	if why := p.live.remove(live); why != (policy.Verdict{Reason: policy.Denied, Rule: "d"}) {
		t.Errorf("cut for %+v", why)
	}
}

func TestAWeightOfZeroIsOffered(t *testing.T) {
	cfg := Config{
		Service: users, Control: []string{"127.0.0.1:1"}, TokenFile: "unused", Admin: "127.0.0.1:0",
		Advertise: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, AppPorts: []AppPort{{Port: 80, Protocol: "http"}},
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if own := p.ownEndpoints(); len(own) != 1 || own[0].Weight != 0 {
		t.Errorf("offered is %+v", own)
	}
	cfg.Weight, cfg.HealthPath = -1, "health"
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "weight: -1") || !strings.Contains(err.Error(), "health_check_path:") {
		t.Errorf("error is %v", err)
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	if _, err := New(Config{Service: policy.ServiceName{Namespace: "default", Name: "Front"}, Control: []string{"x:1"}, TokenFile: "t"}); err == nil {
		t.Error("a bad service name is taken")
	}
}
