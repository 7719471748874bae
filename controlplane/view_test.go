package controlplane

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

var users = policy.ServiceName{Namespace: "default", Name: "users"}

// steps drives a view as the store would.
type steps struct {
	v  *view
	st store.State
}

func newSteps() *steps {
	s := &steps{st: store.State{Settings: policy.DefaultSettings()}}
	first := s.st
	s.v = newView(&first, "weir.local", func() []byte { return []byte("pem") })
	return s
}

func (s *steps) apply(c store.Change) publish.Change {
	s.st.Revision++
	next := s.st
	c.State = &next
	return s.v.apply(c)
}

func (s *steps) service(name policy.ServiceName, index int, addrs ...string) publish.Change {
	svc := &store.Service{Name: name, VirtualIndex: index}
	for i, a := range addrs {
		at := netip.MustParseAddrPort(a)
		e := policy.DefaultEndpoint()
		e.ID, e.Namespace, e.ServiceName, e.IP, e.Port = fmt.Sprint("e", i), name.Namespace, name.Name, at.Addr().String(), int(at.Port())
		svc.Endpoints = append(svc.Endpoints, store.Endpoint{Endpoint: e})
	}
	var services []*store.Service
	for other, v := range s.st.Services.All() {
		if other != name {
			services = append(services, v)
		}
	}
	if index != 0 {
		services = append(services, svc)
	}
	s.st.Services = store.ServicesOf(services...)
	return s.apply(store.Change{Services: map[policy.ServiceName]struct{}{name: {}}})
}

func (s *steps) proxies(proxies ...store.Proxy) publish.Change {
	changed := map[string]struct{}{}
	for p := range s.st.Proxies.All() {
		changed[p.ID] = struct{}{}
	}
	var now []*store.Proxy
	for _, p := range proxies {
		changed[p.ID] = struct{}{}
		now = append(now, &p)
	}
	s.st.Proxies = store.ProxiesOf(now...)
	return s.apply(store.Change{Proxies: changed})
}

func beside(id string, service policy.ServiceName, addr string) store.Proxy {
	return store.Proxy{ID: id, Service: service, Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
}

func TestAChangeNamesTheLookupsItTouches(t *testing.T) {
	s := newSteps()
	got := s.service(users, 7, "10.0.0.1:8001")
	slices.Sort(got.Lookups)
	if fmt.Sprint(got.Lookups) != "[10.0.0.1:8001 240.240.0.7 fd77:6569:7200::7]" {
		t.Errorf("lookups %v", got.Lookups)
	}
	for _, r := range got.Lookups {
		if name, ok := s.v.Lookup(r); !ok || name != users {
			t.Errorf("%s leads to %v", r, name)
		}
	}
	got = s.service(users, 7, "10.0.0.2:8001")
	if !slices.Contains(got.Lookups, "10.0.0.1:8001") || !slices.Contains(got.Lookups, "10.0.0.2:8001") {
		t.Errorf("a move touches %v", got.Lookups)
	}
	if _, ok := s.v.Lookup("10.0.0.1:8001"); ok {
		t.Error("the old address is still the service's")
	}
	s.service(users, 0)
	if _, ok := s.v.Lookup("240.240.0.7"); ok {
		t.Error("a service that is gone keeps its virtual address in use")
	}
	if len(s.v.byAddr)+len(s.v.byIP)+len(s.v.virtual) != 0 {
		t.Errorf("the index keeps %v %v %v", s.v.byAddr, s.v.byIP, s.v.virtual)
	}
}

func TestAnAddressOfTwoServicesLeadsToTheFirstByName(t *testing.T) {
	s := newSteps()
	other := policy.ServiceName{Namespace: "default", Name: "accounts"}
	s.service(users, 1, "10.0.0.1:80")
	s.service(other, 2, "10.0.0.1:80")
	if name, _ := s.v.Lookup("10.0.0.1:80"); name != other {
		t.Errorf("leads to %v", name)
	}
	s.service(other, 0)
	if name, _ := s.v.Lookup("10.0.0.1:80"); name != users {
		t.Errorf("leads to %v", name)
	}
}

func TestAProxyMakesItsEndpointsMeshedAndTheyStaySo(t *testing.T) {
	s := newSteps()
	meshed := func() bool {
		svc, _ := s.v.Service(users)
		return svc.Endpoints[0].Meshed
	}
	s.service(users, 1, "10.0.0.1:80")
	if meshed() {
		t.Error("no proxy is there")
	}
	if c := s.proxies(beside("p", users, "10.0.0.1")); len(c.Services) != 1 || !meshed() {
		t.Errorf("a proxy came: touched %v, meshed %v", c.Services, meshed())
	}
	s.proxies()
	if !meshed() {
		t.Error("callers would fall back to plaintext while a proxy is away")
	}
	s.service(users, 1, "10.0.0.1:80", "10.0.0.2:80")
	s.service(users, 1, "10.0.0.1:81")
	if !meshed() {
		t.Error("a change of the service made its callers fall back to plaintext while its proxy is away")
	}
	s.service(users, 0)
	s.service(users, 1, "10.0.0.1:80")
	if meshed() {
		t.Error("an endpoint registered anew has no proxy")
	}
}

// A control plane that starts while the proxy is away knows it from the store,
// which is told once, and not of endpoints that go with their proxy.
func TestThatAProxyWasThereIsToldToTheStore(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
	if got := s.v.unmarked(); len(got) != 0 {
		t.Errorf("without a proxy: %v", got)
	}
	s.st.Services.Get(users).Endpoints[1].Leased = true
	s.proxies(beside("p", users, "10.0.0.1"), beside("q", users, "10.0.0.2"))
	if got := s.v.unmarked(); len(got) != 1 || got[0].ID != "e0" {
		t.Errorf("to be told are %v", got)
	}
	s.st.Services.Get(users).Endpoints[0].Meshed = true
	s.proxies()
	if got := s.v.unmarked(); len(got) != 0 {
		t.Errorf("told again: %v", got)
	}
	state := s.st
	svc, _ := newView(&state, "weir.local", func() []byte { return nil }).Service(users)
	if !svc.Endpoints[0].Meshed || svc.Endpoints[2].Meshed {
		t.Errorf("a new control plane shows %+v", svc.Endpoints)
	}
}

func TestAChangeTouchesOnlyTheAddressesThatMoved(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
	if c := s.service(users, 1, "10.0.0.1:80", "10.0.0.9:80", "10.0.0.3:80"); !sameLookups(c.Lookups, "10.0.0.2:80", "10.0.0.9:80") {
		t.Errorf("a move of one touches %v", c.Lookups)
	}
	if c := s.service(users, 1, "10.0.0.1:80", "10.0.0.9:80", "10.0.0.3:80"); len(c.Lookups) != 0 {
		t.Errorf("another weight touches %v", c.Lookups)
	}
	// Two endpoints at one address, then one.
	s.service(users, 1, "10.0.0.1:80", "10.0.0.1:80")
	s.service(users, 1, "10.0.0.1:80")
	if name, ok := s.v.Lookup("10.0.0.1:80"); !ok || name != users {
		t.Errorf("the address that is left leads to %v", name)
	}
}

func sameLookups(got []string, want ...string) bool {
	return slices.Equal(slices.Sorted(slices.Values(got)), want)
}

// Whatever happens, in whatever portions, the index is that of the state.
func TestTheIndexIsThatOfTheState(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	s := newSteps()
	for range 2000 {
		name := policy.ServiceName{Namespace: "default", Name: fmt.Sprint("s", random.IntN(4))}
		var addrs []string
		for range random.IntN(5) {
			addrs = append(addrs, fmt.Sprintf("10.0.0.%d:%d", random.IntN(4), 80+random.IntN(2)))
		}
		s.service(name, random.IntN(5), addrs...)
		state := s.st
		fresh := newView(&state, "weir.local", nil)
		for _, index := range []*view{s.v, fresh} {
			for _, users := range index.byIP { // in no order
				slices.SortFunc(users, func(a, b user) int { return compareNames(a.name, b.name) })
			}
		}
		if got, want := fmt.Sprint(s.v.byAddr, s.v.byIP), fmt.Sprint(fresh.byAddr, fresh.byIP); got != want {
			t.Fatalf("the index is\n%s\nof the state\n%s", got, want)
		}
		for a, name := range s.v.virtual {
			if svc := s.st.Services.Get(name); svc == nil {
				t.Fatalf("%s leads to %s, which is gone", a, name)
			}
		}
	}
}

func TestDisabledTellsCallersByAddress(t *testing.T) {
	s := newSteps()
	shop := policy.ServiceName{Namespace: "default", Name: "shop"}
	s.service(users, 1, "10.0.0.1:80")
	s.service(shop, 2, "10.0.0.2:80")
	s.proxies(beside("p", shop, "10.0.0.3"))
	s.st.Security = []policy.SecurityRule{{
		ID: "r", SourceNamespace: "default", SourceService: "shop", DestinationNamespace: "default", DestinationService: "users",
		AllowedMethods: []string{"GET"}, MTLSMode: policy.Disabled,
	}}
	c := s.apply(store.Change{Security: true})
	if !c.AllInbounds || !c.AllServices {
		t.Errorf("a rule that disables mTLS touches %+v", c)
	}
	s.v.turned()
	in := s.v.Inbound(users)
	if fmt.Sprint(in.Rules[0].Addresses) != "[10.0.0.2 10.0.0.3]" {
		t.Errorf("addresses %v", in.Rules[0].Addresses)
	}
	svc, _ := s.v.Service(users)
	if !svc.Traffic.SendsPlaintext(shop, 80) || svc.Traffic.SendsPlaintext(users, 80) {
		t.Errorf("plaintext from %v", svc.Traffic.PlaintextFrom)
	}
	if c := s.service(shop, 2, "10.0.0.9:80"); !c.AllInbounds {
		t.Error("callers moved, and those who know them by address do not hear of it")
	}
}

func TestTheSecretGoesOnlyWhereARuleNeedsIt(t *testing.T) {
	s := newSteps()
	s.st.Settings.Security.JWTSecret = "hush"
	rule := policy.SecurityRule{
		ID: "r", SourceNamespace: "*", SourceService: "*", DestinationNamespace: "default", DestinationService: "users",
		AllowedMethods: []string{"GET"}, RequiredJWT: true,
	}
	s.st.Security = []policy.SecurityRule{rule}
	s.apply(store.Change{Security: true, Settings: true})
	if s.v.Inbound(users).JWTSecret != "hush" {
		t.Error("users cannot check tokens")
	}
	if in := s.v.Inbound(policy.ServiceName{Namespace: "default", Name: "other"}); in.JWTSecret != "" || len(in.Rules) != 0 {
		t.Errorf("other gets %+v", in)
	}
}

func TestNewStateIsTheSameAsStepByStep(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80", "10.0.0.2:80")
	s.proxies(beside("p", users, "10.0.0.2"))
	state := s.st
	fresh := newView(&state, "weir.local", func() []byte { return nil })
	a, _ := s.v.Service(users)
	b, _ := fresh.Service(users)
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("step by step %v\nat once     %v", a, b)
	}
}

func TestAForeseenViewIsWhatTheViewBecomesAndChangesNothing(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80")
	s.proxies(beside("p", users, "10.0.0.1"))
	shop := policy.ServiceName{Namespace: "default", Name: "shop"}
	at := policy.Ref{Kind: policy.KindEndpoint, Namespace: "default", Service: "users", ID: "e0"}
	moved := s.st.Services.Get(users).Endpoints[0].Endpoint
	was := moved
	moved.IP = "10.0.0.2"
	rule := policy.SecurityRule{ID: "r", SourceNamespace: "default", SourceService: "shop", DestinationNamespace: "default", DestinationService: "users", AllowedMethods: []string{"GET"}}
	split := policy.DefaultTrafficRule()
	split.ID = "t"
	settings := s.st.Settings
	settings.Egress = "deny"

	before, _ := s.v.Service(users)
	then, c := s.v.foresee([]policy.Difference{
		policy.Compare(at, &policy.Resource{Endpoint: &was}, &policy.Resource{Endpoint: &moved}),
		policy.Compare(policy.Ref{Kind: policy.KindSecurityRule, ID: "r"}, nil, &policy.Resource{Security: &rule}),
		policy.Compare(policy.Ref{Kind: policy.KindTrafficRule, Namespace: "default", Service: "shop", ID: "t"}, nil, &policy.Resource{Traffic: &split}),
		policy.Compare(policy.Ref{Kind: policy.KindConfig}, nil, &policy.Resource{Settings: &settings}),
	})
	if !c.Mesh || !c.AllInbounds || !slices.Contains(c.Services, users) || !slices.Contains(c.Lookups, "10.0.0.2:80") || !slices.Contains(c.Lookups, "10.0.0.1:80") {
		t.Errorf("it touches %+v", c)
	}
	svc, _ := then.Service(users)
	other, ok := then.Service(shop)
	if svc.Endpoints[0].IP != "10.0.0.2" || svc.Endpoints[0].Meshed || !ok || len(other.Rules) != 1 || len(then.Inbound(users).Rules) != 1 || !then.Mesh().EgressDeny {
		t.Errorf("foreseen: %+v, %+v, %+v", svc, other, then.Inbound(users))
	}
	after, _ := s.v.Service(users)
	if fmt.Sprint(before) != fmt.Sprint(after) || s.v.Mesh().EgressDeny || len(s.v.Inbound(users).Rules) != 0 {
		t.Error("the view itself has changed")
	}
	if _, ok := s.v.Lookup("10.0.0.1:80"); !ok {
		t.Error("the view itself has lost an address")
	}
	gone, c := s.v.foresee([]policy.Difference{policy.Compare(at, &policy.Resource{Endpoint: &was}, nil)})
	if _, ok := gone.Service(users); ok || len(c.Services) != 1 {
		t.Errorf("a service without endpoints is there: %+v", c)
	}
}

func TestWhatIsOrderedOfACircuitIsInTheService(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80", "10.0.0.2:80")
	with := *s.st.Services.Get(users)
	with.Circuits = map[string]store.CircuitOrder{"e1": {CircuitOrder: policy.CircuitOrder{State: "open", Number: 7}, Until: 5}}
	s.st.Services = store.ServicesOf(&with)
	change := s.apply(store.Change{Services: map[policy.ServiceName]struct{}{users: {}}})
	if !slices.Contains(change.Services, users) {
		t.Error("nobody is told")
	}
	svc, _ := s.v.Service(users)
	if svc.Endpoints[0].Circuit != (policy.CircuitOrder{}) || svc.Endpoints[1].Circuit != (policy.CircuitOrder{State: "open", Number: 7}) {
		t.Errorf("endpoints %+v", svc.Endpoints)
	}
	// What a dry run foretells knows it too: else every change would seem to end the order.
	then, _ := s.v.foresee([]policy.Difference{{Ref: policy.Ref{Kind: policy.KindEndpoint, Namespace: "default", Service: "users", ID: "e0"}}})
	if svc, _ := then.Service(users); len(svc.Endpoints) != 1 || svc.Endpoints[0].Circuit.State != "open" {
		t.Errorf("foreseen %+v", svc.Endpoints)
	}
}
