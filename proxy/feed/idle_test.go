package feed

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestWhatIsIdleIsForgotten(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	c.set(wire.ServiceType, bank.String(), service(bank, 80))
	var a app
	var clock fakeClock
	clock.set(time.Now())
	f, _ := start(t, &a, []string{at}, func(cfg *Config) {
		cfg.IdleAfter = 10 * time.Minute
		cfg.Now = clock.now
	})
	ready(t, f)
	for _, n := range []policy.ServiceName{store, bank} {
		if !f.Service(t.Context(), n) {
			t.Fatal(n)
		}
	}
	f.ServiceAt(t.Context(), netip.MustParseAddrPort("10.0.0.5:80"))
	clock.set(clock.now().Add(9 * time.Minute))
	f.Touch(bank)
	clock.set(clock.now().Add(2 * time.Minute))
	poke(f.sweep)
	c.request(wire.ServiceType, func(r *discovery.DeltaDiscoveryRequest) bool {
		return slices.Equal(r.ResourceNamesUnsubscribe, []string{store.String()})
	})
	c.request(wire.LookupType, func(r *discovery.DeltaDiscoveryRequest) bool {
		return slices.Equal(r.ResourceNamesUnsubscribe, []string{"10.0.0.5:80"})
	})
	a.until(t, "store is dropped", func() bool { return a.services[store] == nil })
	if a.service(bank) == nil || f.Status().Services != 1 || f.Status().Lookups != 0 {
		t.Errorf("%+v", f.Status())
	}
	// Used again, it is fetched again.
	if !f.Service(t.Context(), store) || a.service(store) == nil {
		t.Error("not fetched again")
	}
}

func TestDisconnectedWhatIsKnownIsNotForgotten(t *testing.T) {
	c := newControl(t)
	at, stop := c.serve("", nil)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	var a app
	var clock fakeClock
	clock.set(time.Now())
	f, _ := start(t, &a, []string{at}, func(cfg *Config) { cfg.Now = clock.now })
	if ready(t, f); !f.Service(t.Context(), store) {
		t.Fatal("not known")
	}
	stop()
	connected(t, f, false)
	f.Service(t.Context(), bank)
	clock.set(clock.now().Add(24 * time.Hour))
	f.forgetIdle()
	if a.service(store) == nil || !f.Service(t.Context(), store) {
		t.Error("forgotten while nobody could tell it again")
	}
	if n := f.Status().Services; n != 1 {
		t.Errorf("%d services: what is not known stays", n)
	}
}

func TestSubscriptionsAreBounded(t *testing.T) {
	now := time.Now()
	tb := newTable()
	for n := range maxSubs + 100 {
		tb.add(resource{lookupKind, fmt.Sprintf("10.0.%d.%d:80", n/250, n%250)}, now.Add(time.Duration(n)))
	}
	drop := tb.idle(now.Add(-time.Hour), true)
	for _, s := range drop {
		tb.remove(s)
	}
	if len(tb.addresses) != maxSubs*7/8 || len(tb.all) != len(tb.addresses) {
		t.Error(len(tb.addresses), len(tb.all))
	}
	if tb.addresses[netip.MustParseAddrPort("10.0.0.0:80")] != nil {
		t.Error("the oldest stayed")
	}
}

type fakeClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *fakeClock) now() time.Time   { c.mu.Lock(); defer c.mu.Unlock(); return c.at }
func (c *fakeClock) set(at time.Time) { c.mu.Lock(); defer c.mu.Unlock(); c.at = at }
