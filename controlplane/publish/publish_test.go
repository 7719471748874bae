package publish

import (
	"fmt"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestNewNamesWhatIsMissing(t *testing.T) {
	w := newWorld()
	l := &leases{}
	for _, c := range []struct {
		want string
		cfg  Config
	}{
		{"Config.Source", Config{Identity: identityOf, Attach: l.attach}},
		{"Config.Identity", Config{Source: w, Attach: l.attach}},
		{"Config.Attach", Config{Source: w, Identity: identityOf}},
		{"Config.MaxNames", Config{Source: w, Identity: identityOf, Attach: l.attach, MaxNames: -1}},
	} {
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New gave %v, want it to name %s", err, c.want)
		}
	}
}

func TestUnknownServiceIsRemovedAtOnceAndSentWhenItComesToExist(t *testing.T) {
	r := newRig(t)
	c := r.follow(users, "u-1")
	c.subscribe(wire.ServiceType, orders.String())
	c.ack(c.expect(wire.ServiceType, nil, []string{orders.String()}))

	r.world.put(orders, "random")
	r.server.Changed(Change{Revision: 7, Services: []policy.ServiceName{orders}})
	resp := c.expect(wire.ServiceType, []string{orders.String()}, nil)
	if got := serviceIn(t, resp, orders).Traffic.Strategy; got != "random" {
		t.Errorf("strategy %q was sent, want random", got)
	}
	if resp.SystemVersionInfo != "7" {
		t.Errorf("system version %q, want the revision 7", resp.SystemVersionInfo)
	}
	c.ack(resp)

	r.world.change(func(w *world) { delete(w.services, orders) })
	r.server.Changed(Change{Services: []policy.ServiceName{orders}})
	c.ack(c.expect(wire.ServiceType, nil, []string{orders.String()}))
	r.server.Changed(Change{Services: []policy.ServiceName{orders}}) // absent still
	c.quiet()
}

func TestEveryTypeCarriesItsResource(t *testing.T) {
	r := newRig(t)
	r.world.change(func(w *world) {
		w.mesh = policy.Mesh{TrustDomain: "weir.test", EgressDeny: true, Bundle: []byte("roots")}
		w.inbounds[users] = policy.Inbound{MTLS: policy.Strict, JWTSecret: "s3cret"}
		w.lookups["240.240.0.7"] = orders
	})
	c := r.follow(users, "u-1")
	c.subscribe(wire.MeshType, wire.MeshName, "another")
	var mesh wire.Mesh
	resp := c.expect(wire.MeshType, []string{wire.MeshName}, []string{"another"})
	if err := resp.Resources[0].Resource.UnmarshalTo(&mesh); err != nil || !mesh.EgressDeny || string(mesh.Bundle) != "roots" {
		t.Errorf("mesh %v, %v", &mesh, err)
	}
	c.subscribe(wire.InboundType, users.String())
	var in wire.Inbound
	resp = c.expect(wire.InboundType, []string{users.String()}, nil)
	if err := resp.Resources[0].Resource.UnmarshalTo(&in); err != nil || in.JwtSecret != "s3cret" {
		t.Errorf("inbound %v, %v", &in, err)
	}
	c.subscribe(wire.LookupType, "240.240.0.7", "10.0.0.5:8001")
	var l wire.Lookup
	resp = c.expect(wire.LookupType, []string{"240.240.0.7"}, []string{"10.0.0.5:8001"})
	if err := resp.Resources[0].Resource.UnmarshalTo(&l); err != nil || l.Service.Policy() != orders {
		t.Errorf("lookup %v, %v", &l, err)
	}
	c.subscribe(wire.ServiceType, "no-slash", "Bad/Name", "a/b/c") // no such names can be: absent like others
	c.expect(wire.ServiceType, nil, []string{"Bad/Name", "a/b/c", "no-slash"})
}

func TestChangeIsReadOnceAndOnlyForThoseWhoFollowIt(t *testing.T) {
	r := newRig(t)
	for _, n := range []policy.ServiceName{users, orders, carts} {
		r.world.put(n, "random")
	}
	var followers []*client
	for i := range 3 {
		c := r.follow(users, fmt.Sprintf("u-%d", i))
		c.subscribe(wire.ServiceType, orders.String())
		c.ack(c.expect(wire.ServiceType, []string{orders.String()}, nil))
		followers = append(followers, c)
	}
	other := r.follow(carts, "c-1")
	other.subscribe(wire.ServiceType, users.String())
	other.ack(other.expect(wire.ServiceType, []string{users.String()}, nil))

	before := r.world.readsOf("service " + orders.String())
	r.world.put(orders, "round_robin")
	r.server.Changed(Change{Services: []policy.ServiceName{orders, carts}})
	for _, c := range followers {
		resp := c.expect(wire.ServiceType, []string{orders.String()}, nil)
		if got := serviceIn(t, resp, orders).Traffic.Strategy; got != "round_robin" {
			t.Errorf("strategy %q was sent, want round_robin", got)
		}
		c.ack(resp)
		c.quiet()
	}
	other.quiet()
	if n := r.world.readsOf("service "+orders.String()) - before; n != 1 {
		t.Errorf("the changed service was read %d times for three proxies, want once", n)
	}
	if n := r.world.readsOf("service " + carts.String()); n != 0 {
		t.Errorf("a service that nobody follows was read %d times", n)
	}
	if n := r.world.readsOf("service " + users.String()); n != 1 {
		t.Errorf("a service that did not change was read %d times, want once", n)
	}
}

func TestChangeOfAWholeTypeSendsOnlyWhatDiffers(t *testing.T) {
	r := newRig(t)
	r.world.put(orders, "random")
	r.world.put(carts, "random")
	c := r.follow(users, "u-1")
	c.subscribe(wire.InboundType, users.String())
	c.ack(c.expect(wire.InboundType, []string{users.String()}, nil))
	c.subscribe(wire.ServiceType, orders.String(), carts.String())
	c.ack(c.expect(wire.ServiceType, []string{carts.String(), orders.String()}, nil))
	r.world.put(carts, "least_conn")
	r.server.Changed(Change{Mesh: true, AllServices: true, AllInbounds: true, AllLookups: true})
	c.ack(c.expect(wire.ServiceType, []string{carts.String()}, nil))
	c.quiet()
	r.world.change(func(w *world) { w.inbounds[users] = policy.Inbound{DefaultAllow: true} })
	r.server.Changed(Change{Inbounds: []policy.ServiceName{users, orders}})
	c.ack(c.expect(wire.InboundType, []string{users.String()}, nil))
	c.quiet()
}

func TestReconnectBringsOnlyWhatDiffers(t *testing.T) {
	r := newRig(t)
	for _, n := range []policy.ServiceName{users, orders, carts} {
		r.world.put(n, "random")
	}
	all := []string{carts.String(), orders.String(), users.String()}
	c := r.follow(users, "u-1")
	c.subscribe(wire.ServiceType, all...)
	resp := c.expect(wire.ServiceType, all, nil)
	versions := map[string]string{}
	for _, res := range resp.Resources {
		versions[res.Name] = res.Version
	}
	c.ack(resp)
	c.cancel()

	r.world.put(carts, "least_conn")
	r.world.change(func(w *world) { delete(w.services, users) })
	r.server.Changed(Change{Services: []policy.ServiceName{carts, users}})
	c = r.follow(users, "u-1")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResourceNamesSubscribe: all, InitialResourceVersions: versions})
	c.ack(c.expect(wire.ServiceType, []string{carts.String()}, []string{users.String()}))
	c.quiet()
	if got := r.server.Resources(users, "u-1"); len(got) != 3 || got[1].Name != orders.String() || got[1].Acked != versions[orders.String()] {
		t.Errorf("what the proxy brought does not count as taken: %+v", got)
	}
}

func TestVersionHoldsAcrossServers(t *testing.T) {
	version := func() string {
		r := newRig(t)
		r.world.change(func(w *world) {
			s := withStrategy(orders, "random")
			s.Rules = []policy.TrafficRule{{ID: "r1", MatchHeaders: map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}, Weight: 1}}
			w.services[orders] = s
		})
		c := r.follow(users, "u-1")
		c.subscribe(wire.ServiceType, orders.String())
		return c.expect(wire.ServiceType, []string{orders.String()}, nil).Resources[0].Version
	}
	if a, b := version(), version(); a != b {
		t.Errorf("the same state has versions %s and %s", a, b)
	}
}

func TestNameSubscribedAnewIsAnsweredAnew(t *testing.T) {
	r := newRig(t)
	r.world.put(orders, "random")
	c := r.follow(users, "u-1")
	for range 2 { // the proxy may have dropped it meanwhile
		c.subscribe(wire.ServiceType, orders.String())
		c.ack(c.expect(wire.ServiceType, []string{orders.String()}, nil))
	}
	c.unsubscribe(wire.ServiceType, orders.String(), "never/there")
	c.quiet()
	r.world.put(orders, "least_conn")
	r.server.Changed(Change{Services: []policy.ServiceName{orders}})
	c.quiet()
}

func TestWhatNobodyFollowsIsForgotten(t *testing.T) {
	r := newRig(t)
	c := r.follow(users, "u-1")
	c.subscribe(wire.ServiceType, orders.String(), carts.String())
	c.ack(c.expect(wire.ServiceType, nil, []string{carts.String(), orders.String()}))
	c.unsubscribe(wire.ServiceType, orders.String())
	c.quiet()
	topics := func() int {
		r.server.mu.Lock()
		defer r.server.mu.Unlock()
		return len(r.server.topics[kindService])
	}
	if n := topics(); n != 1 {
		t.Errorf("%d services are kept, want the one that is followed", n)
	}
	c.cancel()
	until(t, "the stream's services are forgotten", func() bool { return topics() == 0 })
	until(t, "the proxy is forgotten", func() bool { return len(r.server.Proxies()) == 0 })
}
