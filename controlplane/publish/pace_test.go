package publish

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestAPaceLetsSomePassAtOnceAndThenOneEach(t *testing.T) {
	var p pace
	now := time.Unix(1000, 0)
	for i := range paceAtOnce {
		if d := p.wait(now); d != 0 {
			t.Fatalf("change %d waits for %v", i, d)
		}
		p.spend(now)
	}
	for i := range 5 { // as often as it may
		d := p.wait(now)
		if d != paceEvery {
			t.Fatalf("then change %d waits for %v", i, d)
		}
		now = now.Add(d)
		p.spend(now)
	}
	now = now.Add(paceAtOnce * paceEvery) // rested
	for range paceAtOnce {
		if d := p.wait(now); d != 0 {
			t.Fatalf("after a rest a change waits for %v", d)
		}
		p.spend(now)
	}
	if p.wait(now) == 0 {
		t.Error("a long rest has saved up more than is passed at once")
	}
}

// Changes that come faster than a proxy is sent them go together, as they are in
// the end; what the proxy asks for meanwhile does not wait for them.
func TestOfManyChangesAProxyIsSentFewResponsesAndTheLastState(t *testing.T) {
	var now atomic.Int64
	r := newRig(t, func(c *Config) { c.Now = func() time.Time { return time.Unix(1000, now.Load()) } })
	c := r.follow(users, "u-1")
	r.world.put(orders, "start")
	c.subscribe(wire.ServiceType, orders.String())
	c.ack(c.expect(wire.ServiceType, []string{orders.String()}, nil))
	change := func(strategy string) {
		r.world.put(orders, strategy)
		r.server.Changed(Change{Services: []policy.ServiceName{orders}})
	}
	for i := range paceAtOnce { // one after the other, at once
		change(fmt.Sprint("early", i))
		resp := c.expect(wire.ServiceType, []string{orders.String()}, nil)
		if got := serviceIn(t, resp, orders).Traffic.Strategy; got != fmt.Sprint("early", i) {
			t.Fatalf("change %d is %q", i, got)
		}
		c.ack(resp)
	}
	for i := range 50 {
		change(fmt.Sprint("late", i))
		if i%10 == 0 {
			c.quiet() // a question is answered, and no change before it
		}
	}
	c.subscribe(wire.ServiceType, carts.String())
	c.ack(c.expect(wire.ServiceType, nil, []string{carts.String()}))
	if p := r.only(); p.InSync() {
		t.Errorf("with changes held back the proxy counts as current: %+v", p)
	}
	now.Store(int64(paceEvery))
	resp := c.expect(wire.ServiceType, []string{orders.String()}, nil)
	if got := serviceIn(t, resp, orders).Traffic.Strategy; got != "late49" {
		t.Errorf("the changes between arrived as %q", got)
	}
	c.ack(resp)
	c.quiet()
	until(t, "the proxy is current", func() bool { p := r.only(); return p.InSync() })
}

// A change that touches everything, and is in few of what a proxy follows, reaches
// it whichever those are.
func TestAChangeAmongManyThatStayArrives(t *testing.T) {
	r := newRig(t)
	c := r.follow(users, "u-1")
	var names []string
	for i := range 3 * maxBatch {
		name := policy.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%04d", i)}
		r.world.put(name, "start")
		names = append(names, name.String())
	}
	c.subscribe(wire.ServiceType, names...)
	for n := 0; n < len(names); {
		resp := c.recv()
		n += len(resp.Resources)
		c.ack(resp)
	}
	for _, i := range []int{0, maxBatch, 3*maxBatch - 1} {
		r.world.put(policy.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%04d", i)}, "other")
		r.server.Changed(Change{AllServices: true})
		c.ack(c.expect(wire.ServiceType, []string{names[i]}, nil))
	}
	c.quiet()
}

// A control plane that knows less than the proxies do, for a while, contradicts
// none of them: what is as it was in the end is not sent at all.
func TestWhatAProxyKnowsIsNotContradictedBeforeTheStateIsWhole(t *testing.T) {
	var now atomic.Int64
	settled := time.Unix(1000, 0).Add(100 * time.Millisecond)
	r := newRig(t, func(c *Config) {
		c.SettledAt = settled
		c.Now = func() time.Time { return time.Unix(1000, now.Load()) }
	})
	r.world.put(orders, "as before")
	r.world.put(carts, "as before")
	first := r.follow(users, "u-0")
	first.subscribe(wire.ServiceType, orders.String(), carts.String())
	resp := first.expect(wire.ServiceType, []string{carts.String(), orders.String()}, nil) // it is not known from before
	versions := map[string]string{}
	for _, res := range resp.Resources {
		versions[res.Name] = res.Version
	}
	first.ack(resp)

	r.world.change(func(w *world) { delete(w.services, orders); delete(w.services, carts) })
	c := r.follow(users, "u-1")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResourceNamesSubscribe: []string{orders.String(), carts.String()}, InitialResourceVersions: versions})
	c.quiet()
	c.subscribe(wire.ServiceType, users.String()) // an app waits for it
	c.ack(c.expect(wire.ServiceType, nil, []string{users.String()}))
	r.world.put(carts, "other")
	r.server.Changed(Change{Services: []policy.ServiceName{carts}})
	c.quiet()
	r.world.put(orders, "as before")
	r.server.Changed(Change{Services: []policy.ServiceName{orders}})
	now.Store(int64(100 * time.Millisecond))
	c.ack(c.expect(wire.ServiceType, []string{carts.String()}, nil))
	c.quiet()
}
