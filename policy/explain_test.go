package policy

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// known is what an explanation goes by, in a test.
type known struct {
	services map[ServiceName]*Service
	in       Inbound
}

func (k *known) Service(n ServiceName) (*Service, bool) { s, ok := k.services[n]; return s, ok }
func (k *known) Inbound(ServiceName) Inbound            { return k.in }
func (k *known) Addresses(ServiceName) []netip.Addr     { return fewAddrs[:1] }
func (k *known) Circuits(_, _ ServiceName) map[string]string {
	return map[string]string{"open": "its circuit is open"}
}
func ordersAt(change ...func(*Target)) *Service {
	settings := DefaultSettings()
	s := &Service{Name: orders, Traffic: settings.TrafficFor(orders)}
	for _, id := range []string{"a", "open", "far"} {
		e := DefaultEndpoint()
		e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = id, orders.Name, orders.Namespace, "10.0.0.1", 80
		t := Target{Endpoint: e, Meshed: true}
		for _, c := range change {
			c(&t)
		}
		s.Endpoints = append(s.Endpoints, t)
	}
	return s
}

// What is explained is what a guard decides, and each rule says one thing.
func TestAnExplanationIsWhatAGuardDecides(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 2000 {
		in := randomInbound(rnd)
		in.MTLS, in.PortModes = Strict, nil
		c := randomCall(rnd)
		q := &Question{From: c.Name, To: orders, Port: 80, Method: c.Method, Path: c.Path, Claims: c.claims, Header: map[string][]string{"x-a": c.headers["X-A"]}}
		if c.claims == nil {
			q.Token = TokenMissing
		}
		e, err := Explain(q, &known{map[ServiceName]*Service{orders: ordersAt()}, in})
		if err != nil {
			t.Fatal(err)
		}
		c.Verified, c.Port = true, 80
		want := guardOf(t, in).Authorize(&c.Call)
		if e.Allowed != want.Allow || e.Reason != want.Reason || e.Rule != want.Rule {
			t.Fatalf("explained %+v, decided %+v", e, want)
		}
		decided := 0
		for _, r := range e.Security {
			if r.Decided {
				decided++
			}
			if r.Why == "" || r.Decided != (r.Rule == want.Rule) {
				t.Fatalf("rule %+v of %+v", r, e)
			}
		}
		if decided > 1 || (want.Rule != "") != (decided == 1) {
			t.Fatalf("%d rules decided: %+v", decided, e)
		}
	}
}

func TestAnExplanationTellsOfEndpointsAndEncryption(t *testing.T) {
	in := Inbound{Service: orders, MTLS: Strict, Rules: []InboundRule{allow("r", shop)}}
	q := &Question{From: shop, To: orders, Method: "GET", Path: "/"}
	explain := func(s *Service) *Explanation {
		t.Helper()
		e, err := Explain(q, &known{map[ServiceName]*Service{orders: s}, in})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := explain(ordersAt(func(t *Target) {
		if t.ID == "far" {
			t.Status = Unhealthy
		}
	}))
	if !e.Endpoints[0].In || e.Endpoints[1].In || e.Endpoints[1].Why != "its circuit is open" || !strings.Contains(e.Endpoints[2].Why, "unhealthy") || e.Encryption.Kind != "mtls" {
		t.Errorf("%+v", e)
	}
	e = explain(ordersAt(func(t *Target) { t.Meshed = false }))
	if !e.Allowed || e.Reason != "not-enforced" || e.Encryption.Kind != "plaintext" {
		t.Errorf("without a proxy: %+v", e)
	}
	// Where mTLS is disabled the caller is told by its address.
	plain := ordersAt()
	plain.Traffic.MTLS, in.MTLS = Disabled, Disabled
	if e = explain(plain); e.Allowed || e.Encryption.Kind != "plaintext" || !strings.Contains(e.Security[0].Why, "cannot be told without mTLS") {
		t.Errorf("in plain text: %+v", e)
	}
	in.Rules[0].Addresses = fewAddrs[:1]
	if e = explain(plain); !e.Allowed || e.Rule != "r" {
		t.Errorf("by its address: %+v", e)
	}
	none := ordersAt(func(t *Target) { t.Status = Unhealthy })
	if e = explain(none); e.Encryption.Kind != "none" {
		t.Errorf("without an endpoint: %+v", e)
	}
	if _, err := Explain(&Question{From: shop, To: shop}, &known{}); err == nil || !strings.Contains(err.Error(), "there is no service default/shop") {
		t.Errorf("an unknown service: %v", err)
	}
}

// A path is read as the proxies read it, where rules look at it.
func TestAnExplanationReadsPathsAsProxiesDo(t *testing.T) {
	rule := func(id string, does RuleAction, paths ...string) InboundRule {
		return InboundRule{SecurityRule: SecurityRule{ID: id, Action: does, Paths: paths, SourceNamespace: "*", SourceService: "*",
			DestinationNamespace: orders.Namespace, DestinationService: orders.Name, AllowedMethods: []string{"*"}}}
	}
	guarded := Inbound{Service: orders, MTLS: Strict, Rules: []InboundRule{rule("all", Allow), rule("secret", Deny, "/secret*")}}
	open := Inbound{Service: orders, MTLS: Strict, Rules: []InboundRule{rule("all", Allow)}}
	routed := ordersAt()
	r := DefaultTrafficRule()
	r.ID, r.MatchPath, r.DestinationSubset = "beta", "/beta*", "beta"
	routed.Rules = []TrafficRule{r}
	for _, c := range []struct {
		path string
		svc  *Service
		in   Inbound
		want Reason
	}{
		{"/public", ordersAt(), guarded, ByRule}, {"/a/../secret", ordersAt(), guarded, Denied}, {"/%73ecret", ordersAt(), guarded, Denied},
		{"//secret", ordersAt(), guarded, AmbiguousPath}, {"/a%2F..%2Fsecret", ordersAt(), guarded, AmbiguousPath}, {"/%00", ordersAt(), guarded, BadPath},
		{"//secret", ordersAt(), open, ByRule}, {"/%00", ordersAt(), open, ByRule}, // no rule looks
		{"//beta", routed, open, AmbiguousPath}, {"/%", routed, open, BadPath}, {"/a//b", routed, open, ByRule},
	} {
		q := &Question{From: ServiceName{"default", "front"}, To: orders, Port: 80, Method: "GET", Path: c.path, Token: TokenMissing}
		e, err := Explain(q, &known{map[ServiceName]*Service{orders: c.svc}, c.in})
		if err != nil || e.Reason != c.want || e.Allowed != (c.want == ByRule) || e.Security == nil {
			t.Errorf("%s: %+v, %v, want %s", c.path, e, err, c.want)
		}
	}
}
