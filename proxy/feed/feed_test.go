package feed

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestReadyWithMeshAndInbound(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at})
	ready(t, f)
	if a.mesh.TrustDomain != "test.weir" || string(a.mesh.Bundle) != "roots" || a.inbound.Service != own {
		t.Errorf("%+v %+v", a.mesh, a.inbound)
	}
	first := c.request(wire.MeshType, subscribes(wire.MeshName))
	if first.GetNode().GetId() != "web-1" || len(first.InitialResourceVersions) != 0 {
		t.Error(first)
	}
	if st := f.Status(); !st.Connected || st.Control != at || st.FromFile || st.LastError != "" {
		t.Errorf("%+v", st)
	}
}

func TestAServiceIsFetchedOnFirstUse(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80, 81))
	var a app
	f, _ := start(t, &a, []string{at})
	ready(t, f)
	if a.service(store) != nil {
		t.Error("sent without being asked for")
	}
	if !f.Service(t.Context(), store) || len(a.service(store).Endpoints) != 2 {
		t.Error(a.service(store))
	}
	c.request(wire.ServiceType, answers)
	// And followed from then on.
	c.set(wire.ServiceType, store.String(), service(store, 80))
	a.until(t, "one endpoint", func() bool { return len(a.services[store].Endpoints) == 1 })
}

func TestAnUnknownNameIsAnsweredAtOnceAndComesToExist(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.Wait = time.Hour })
	ready(t, f)
	if f.Service(t.Context(), store) || f.Service(t.Context(), store) {
		t.Error("known")
	}
	c.set(wire.ServiceType, store.String(), service(store, 80))
	a.until(t, "the service", func() bool { return a.services[store] != nil })
	c.request(wire.ServiceType, answers) // of its absence
	c.request(wire.ServiceType, answers) // sent once it is in force
	if !f.Service(t.Context(), store) {
		t.Error("not known")
	}
}

func TestNamesThatCannotExistAreNotAskedFor(t *testing.T) {
	var a app
	f, err := New(Config{Control: []string{"x"}, ProxyID: "p", Service: own, Hooks: a.hooks()})
	if err != nil {
		t.Fatal(err)
	}
	f.Touch(policy.ServiceName{Namespace: "UPPER", Name: "x"})
	if f.Service(t.Context(), policy.ServiceName{Name: "*"}) || len(f.subs.services) != 0 {
		t.Error(f.subs.services)
	}
	for _, at := range []string{"[fe80::1%eth0]:80"} {
		if _, ok := f.ServiceAt(t.Context(), netip.MustParseAddrPort(at)); ok || len(f.subs.addresses) != 0 {
			t.Error(f.subs.addresses)
		}
	}
}

func TestAServiceThatIsGone(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	var a app
	f, _ := start(t, &a, []string{at})
	if ready(t, f); !f.Service(t.Context(), store) {
		t.Fatal("not known")
	}
	c.set(wire.ServiceType, store.String(), nil)
	a.until(t, "gone", func() bool { return a.services[store] == nil })
	c.request(wire.ServiceType, answers)
	c.request(wire.ServiceType, answers) // sent once it is in force
	if f.Service(t.Context(), store) {
		t.Error("still known")
	}
	if n, ok := f.ServiceAt(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("240.240.0.105"), 80)); ok {
		t.Error("its virtual address still is", n)
	}
}

func TestMeshAndInboundAreNeverLetGo(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at})
	ready(t, f)
	c.set(wire.MeshType, wire.MeshName, nil)
	c.set(wire.InboundType, own.String(), nil)
	c.request(wire.InboundType, answers) // of the first
	c.request(wire.InboundType, answers)
	if a.mesh.TrustDomain == "" || a.inbound.Service != own {
		t.Error("let go")
	}
}

func TestARefusedStateLeavesTheOldAndTellsWhy(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	var a app
	f, _ := start(t, &a, []string{at})
	if ready(t, f); !f.Service(t.Context(), store) {
		t.Fatal("not known")
	}
	a.mu.Lock()
	a.refuse = errors.New("a rule that I do not understand")
	a.mu.Unlock()
	c.set(wire.ServiceType, store.String(), service(store, 80, 81))
	nack := c.request(wire.ServiceType, func(r *discovery.DeltaDiscoveryRequest) bool { return r.ErrorDetail != nil })
	if !strings.Contains(nack.ErrorDetail.Message, "a rule that I do not understand") || !strings.Contains(nack.ErrorDetail.Message, "shop/store") {
		t.Error(nack.ErrorDetail)
	}
	if len(a.service(store).Endpoints) != 1 || !f.Service(t.Context(), store) {
		t.Error("the old is not in force")
	}
	if r := f.Status().Rejected; len(r) != 1 || r["weir.v1.Service shop/store"] == "" {
		t.Error(r)
	}
	a.mu.Lock()
	a.refuse = nil
	a.mu.Unlock()
	c.set(wire.ServiceType, store.String(), service(store, 80, 81, 82))
	a.until(t, "the new", func() bool { return len(a.services[store].Endpoints) == 3 })
	c.request(wire.ServiceType, func(r *discovery.DeltaDiscoveryRequest) bool { return r.ResponseNonce != "" && r.ErrorDetail == nil })
	if r := f.Status().Rejected; len(r) != 0 {
		t.Error(r)
	}
}

func TestAFirstStateThatIsRefusedIsNotKnownAndNotWaitedFor(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(bank, 80)) // under another's name
	var a app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.Wait = time.Hour })
	ready(t, f)
	if f.Service(t.Context(), store) || a.service(store) != nil || a.service(bank) != nil {
		t.Error("taken")
	}
	c.request(wire.ServiceType, func(r *discovery.DeltaDiscoveryRequest) bool {
		return strings.Contains(r.GetErrorDetail().GetMessage(), "is of money/bank")
	})
}

func TestAddresses(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.LookupType, "240.240.0.7", &wire.Lookup{Service: wire.FromName(bank)})
	c.set(wire.LookupType, "fd77:6569:7200::7", &wire.Lookup{Service: wire.FromName(bank)})
	c.set(wire.LookupType, "10.0.0.5:80", &wire.Lookup{Service: wire.FromName(store)})
	c.set(wire.LookupType, "[fd00::1]:80", &wire.Lookup{Service: wire.FromName(store)})
	var a app
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.Wait = time.Hour })
	ready(t, f)
	for range 2 {
		for address, want := range map[string]policy.ServiceName{
			"240.240.0.7:80": bank, "240.240.0.7:443": bank, "[::ffff:240.240.0.7]:80": bank, "[fd77:6569:7200::7]:1": bank,
			"10.0.0.5:80": store, "[::ffff:10.0.0.5]:80": store, "[fd00::1]:80": store, "10.0.0.5:81": {}, "8.8.8.8:53": {},
		} {
			if got, ok := f.ServiceAt(t.Context(), netip.MustParseAddrPort(address)); got != want || ok != !want.IsZero() {
				t.Errorf("%s: %v %v", address, got, ok)
			}
		}
	}
	if n := f.Status().Lookups; n != 6 {
		t.Errorf("%d lookups", n)
	}
	// An address of nobody becomes somebody's.
	c.set(wire.LookupType, "10.0.0.5:81", &wire.Lookup{Service: wire.FromName(store)})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if got, _ := f.ServiceAt(t.Context(), netip.MustParseAddrPort("10.0.0.5:81")); got == store {
			break
		} else if time.Now().After(end) {
			t.Fatal(got)
		}
	}
}

func TestVirtualAddressesOfFollowedServicesNeedNoLookup(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	var a app
	f, _ := start(t, &a, []string{at})
	if ready(t, f); !f.Service(t.Context(), store) {
		t.Fatal("not known")
	}
	svc := a.service(store)
	for _, ip := range []netip.Addr{svc.Virtual4, svc.Virtual6} {
		if n, ok := f.ServiceAt(t.Context(), netip.AddrPortFrom(ip, 80)); n != store || !ok {
			t.Error(ip, n, ok)
		}
	}
	if n := f.Status().Lookups; n != 0 {
		t.Errorf("%d lookups", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		f.ServiceAt(t.Context(), netip.AddrPortFrom(svc.Virtual4, 80))
		f.Service(t.Context(), store)
		f.Touch(store)
	}); n != 0 {
		t.Errorf("%v allocations for what is known", n)
	}
}

func TestManyWhoAskTheSameMakeOneSubscription(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	var a app
	f, _ := start(t, &a, []string{at})
	ready(t, f)
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if !f.Service(context.Background(), store) {
				t.Error("not known")
			}
		})
	}
	all.Wait()
	asked := 0
	for len(c.requests) > 0 {
		if r := <-c.requests; r.TypeUrl == wire.ServiceType {
			asked += len(r.ResourceNamesSubscribe)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func TestAHookMayTouchOtherServices(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	c.set(wire.ServiceType, bank.String(), service(bank, 80))
	var a app
	var f *Feed
	made := make(chan struct{})
	f, _ = start(t, &a, []string{at}, func(cfg *Config) {
		on := cfg.Hooks.OnService
		cfg.Hooks.OnService = func(n policy.ServiceName, s *policy.Service) error {
			<-made
			f.Touch(bank)
			return on(n, s)
		}
	})
	close(made)
	if ready(t, f); !f.Service(t.Context(), store) {
		t.Fatal("not known")
	}
	a.until(t, "the touched service", func() bool { return a.services[bank] != nil })
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for _, cfg := range []Config{
		{ProxyID: "p", Service: own}, {Control: []string{"x"}, Service: own}, {Control: []string{"x"}, ProxyID: "p"},
		{Control: []string{"x"}, ProxyID: "p", Service: own, Wait: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v", cfg)
		}
	}
}
