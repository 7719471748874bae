package publish

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestRefusedRequestsEndTheStream(t *testing.T) {
	long := strings.Repeat("x", maxNameBytes+1)
	for name, c := range map[string]struct {
		as   policy.ServiceName
		id   string
		req  *discovery.DeltaDiscoveryRequest
		code codes.Code
		text string
	}{
		"no identity":       {policy.ServiceName{}, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.MeshType}, codes.Unauthenticated, "no client certificate"},
		"no id":             {users, "", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.MeshType, ResourceNamesSubscribe: []string{"mesh"}}, codes.InvalidArgument, "id"},
		"id with space":     {users, "a b", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.MeshType, ResourceNamesSubscribe: []string{"mesh"}}, codes.InvalidArgument, "printable"},
		"unknown type":      {users, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster", ResourceNamesSubscribe: []string{"a"}}, codes.InvalidArgument, "Cluster"},
		"no type":           {users, "p", &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"a"}}, codes.InvalidArgument, "type URL"},
		"star":              {users, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResourceNamesSubscribe: []string{"*"}}, codes.InvalidArgument, "name the resources"},
		"everything":        {users, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType}, codes.InvalidArgument, "name the resources"},
		"empty name":        {users, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResourceNamesSubscribe: []string{""}}, codes.InvalidArgument, "1 to 512"},
		"long name":         {users, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResourceNamesSubscribe: []string{long}}, codes.InvalidArgument, "1 to 512"},
		"another's inbound": {users, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.InboundType, ResourceNamesSubscribe: []string{users.String(), orders.String()}}, codes.PermissionDenied, "shop/orders"},
		"too many":          {users, "p", &discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResourceNamesSubscribe: []string{"a/a", "a/b", "a/c", "a/d"}}, codes.ResourceExhausted, "more than the 3"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(cfg *Config) { cfg.MaxNames = 3 })
			p := r.follow(c.as, c.id)
			p.send(c.req)
			if text := p.ends(c.code); !strings.Contains(text, c.text) {
				t.Errorf("the stream ended with %q, want it to name %q", text, c.text)
			}
			if n := r.world.readsOf("inbound " + orders.String()); n != 0 {
				t.Error("the other's inbound was read")
			}
			until(t, "nothing of it is kept", func() bool {
				r.server.mu.Lock()
				defer r.server.mu.Unlock()
				return len(r.server.sessions)+len(r.server.topics[kindService])+len(r.server.topics[kindInbound]) == 0
			})
		})
	}
}

func TestNackIsKeptAndNotAnsweredByTheSameAgain(t *testing.T) {
	r := newRig(t)
	r.world.put(orders, "random")
	c := r.follow(users, "u-1")
	c.subscribe(wire.ServiceType, orders.String(), carts.String())
	c.ack(c.expect(wire.ServiceType, []string{orders.String()}, []string{carts.String()}))

	r.world.put(orders, "broken")
	r.server.Changed(Change{Revision: 5, Services: []policy.ServiceName{orders}})
	c.nack(c.expect(wire.ServiceType, []string{orders.String()}, nil), "strategy is not known")
	r.server.Changed(Change{Revision: 6, Services: []policy.ServiceName{orders}}) // the same content
	c.quiet()
	p := r.only()
	st := p.Types[0]
	if st.Nack != "strategy is not known" || !slices.Equal(st.Refused, []string{orders.String()}) || st.Sent != 5 || st.Acked != 0 || st.NackAt.IsZero() {
		t.Errorf("after the NACK the status is %+v", st)
	}
	if p.InSync() {
		t.Error("a proxy that refused something counts as in sync")
	}

	r.world.change(func(w *world) { w.services[carts] = withStrategy(carts, "random") })
	r.server.Changed(Change{Revision: 7, Services: []policy.ServiceName{carts}})
	c.ack(c.expect(wire.ServiceType, []string{carts.String()}, nil))
	c.quiet()
	if st := r.only().Types[0]; st.Nack == "" || st.Acked != 7 {
		t.Errorf("an ACK of another resource settled the NACK: %+v", st)
	}

	r.world.put(orders, "least_conn")
	r.server.Changed(Change{Revision: 8, Services: []policy.ServiceName{orders}})
	c.ack(c.expect(wire.ServiceType, []string{orders.String()}, nil))
	c.quiet()
	if p := r.only(); p.Types[0].Nack != "" || !p.InSync() {
		t.Errorf("after the ACK the status is %+v", p)
	}
}

func TestStaleNonceSaysNothingButItsSubscriptionsCount(t *testing.T) {
	r := newRig(t)
	r.world.put(orders, "random")
	c := r.follow(users, "u-1")
	c.subscribe(wire.ServiceType, orders.String())
	resp := c.expect(wire.ServiceType, []string{orders.String()}, nil)
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.ServiceType, ResponseNonce: "4711", ResourceNamesSubscribe: []string{carts.String()}})
	c.expect(wire.ServiceType, nil, []string{carts.String()})
	c.quiet()
	if st := r.only().Types[0]; st.Pending != 2 || st.Subscribed != 2 {
		t.Errorf("a made-up nonce acknowledged something: %+v", st)
	}
	c.ack(resp)
	c.quiet()
	if st := r.only().Types[0]; st.Pending != 1 {
		t.Errorf("the right nonce did not acknowledge: %+v", st)
	}
}

func TestProxyThatDoesNotAcknowledgeGetsTheLastStateOnce(t *testing.T) {
	r := newRig(t)
	r.world.put(orders, "v0")
	slow, quick := r.follow(users, "slow"), r.follow(users, "quick")
	slow.subscribe(wire.ServiceType, orders.String())
	first := slow.expect(wire.ServiceType, []string{orders.String()}, nil)
	quick.subscribe(wire.ServiceType, orders.String())
	quick.ack(quick.expect(wire.ServiceType, []string{orders.String()}, nil))
	for i := 1; i <= 20; i++ {
		r.world.put(orders, fmt.Sprintf("v%d", i))
		r.server.Changed(Change{Services: []policy.ServiceName{orders}})
		quick.ack(quick.expect(wire.ServiceType, []string{orders.String()}, nil))
	}
	slow.quiet() // changes wait for the ACK, answers to new names do not
	slow.ack(first)
	resp := slow.expect(wire.ServiceType, []string{orders.String()}, nil)
	if got := serviceIn(t, resp, orders).Traffic.Strategy; got != "v20" {
		t.Errorf("after 20 changes %q was sent, want the last", got)
	}
	slow.ack(resp)
	slow.quiet()
}

// The flow-control windows of HTTP/2 are 64 KiB; a bundle larger than that keeps
// the server in Send until the proxy reads.
func TestProxyThatDoesNotReadHoldsUpNobody(t *testing.T) {
	r := newRig(t)
	fill := func(b byte) {
		r.world.change(func(w *world) { w.mesh.Bundle = bytes.Repeat([]byte{b}, 1<<20) })
	}
	fill('a')
	stuck, quick := r.follow(users, "stuck"), r.follow(users, "quick")
	stuck.subscribe(wire.MeshType, wire.MeshName)
	stuck.subscribe(wire.ServiceType, orders.String())
	until(t, "the stuck proxy is sent to", func() bool { return r.world.readsOf("mesh") > 0 })
	quick.subscribe(wire.ServiceType, orders.String())
	quick.ack(quick.expect(wire.ServiceType, nil, []string{orders.String()}))
	const changes = 2 * paceAtOnce
	for i := range changes {
		fill(byte(i))
		r.world.put(orders, fmt.Sprintf("v%d", i))
		r.server.Changed(Change{Mesh: true, Services: []policy.ServiceName{orders}})
		quick.ack(quick.expect(wire.ServiceType, []string{orders.String()}, nil))
	}
	if n := r.world.readsOf("mesh"); n > 2 {
		t.Errorf("the bundle was read %d times for a proxy that does not read", n)
	}
	stuck.ack(stuck.expect(wire.MeshType, []string{wire.MeshName}, nil))
	for { // the mesh as it is now, and the service's last version; in which order depends on when it was asked for
		resp := stuck.recv()
		stuck.ack(resp)
		if resp.TypeUrl == wire.ServiceType && len(resp.Resources) == 1 && serviceIn(t, resp, orders).Traffic.Strategy == fmt.Sprint("v", changes-1) {
			break
		}
	}
}

func TestManyNamesComeInBoundedResponses(t *testing.T) {
	r := newRig(t)
	var names []string
	for i := range 5000 {
		n := policy.ServiceName{Namespace: "many", Name: fmt.Sprintf("s%d", i)}
		names = append(names, n.String())
		if i%2 == 0 {
			r.world.put(n, strings.Repeat("x", 4096))
		}
	}
	c := r.follow(users, "u-1")
	c.subscribe(wire.ServiceType, names...)
	got := map[string]bool{}
	for len(got) < len(names) {
		resp := c.recv()
		n := len(resp.Resources) + len(resp.RemovedResources)
		size := 0
		for _, res := range resp.Resources {
			got[res.Name] = true
			size += len(res.Resource.Value)
		}
		for _, name := range resp.RemovedResources {
			got[name] = true
		}
		if n > maxBatch || size > softBytes+8192 {
			t.Fatalf("one response holds %d resources and %d bytes", n, size)
		}
		c.ack(resp)
	}
	c.quiet()
	if st := r.only().Types[0]; st.Pending != 0 || st.Subscribed != 5000 {
		t.Errorf("the status is %+v", st)
	}
}

func TestNewerStreamTakesThePlaceOfTheOlder(t *testing.T) {
	r := newRig(t)
	older := r.follow(users, "u-1")
	older.quiet()
	newer := r.follow(users, "u-1")
	newer.quiet()
	older.ends(codes.Aborted)
	stranger := r.follow(orders, "u-1") // another service with the same id is another proxy
	stranger.quiet()
	newer.quiet()
	if n := len(r.server.Proxies()); n != 2 {
		t.Errorf("%d proxies are known, want 2", n)
	}
}

func TestDisconnectEndsTheStreamsOfARevokedIdentity(t *testing.T) {
	r := newRig(t)
	bad, good := r.follow(users, "u-1"), r.follow(orders, "o-1")
	bad.quiet()
	good.quiet()
	if n := r.server.Disconnect(func(s policy.ServiceName, _ string) bool { return s == users }); n != 1 {
		t.Errorf("%d streams were ended, want 1", n)
	}
	bad.ends(codes.PermissionDenied)
	good.quiet()
}

func TestCloseEndsAllAndTakesNoMore(t *testing.T) {
	r := newRig(t)
	c := r.follow(users, "u-1")
	c.quiet()
	r.server.Close()
	r.server.Close()
	c.ends(codes.Unavailable)
	late := r.follow(users, "u-2")
	late.subscribe(wire.ServiceType, orders.String())
	late.ends(codes.Unavailable)
}

func TestWhatCannotBeEncodedLeavesTheOldInForce(t *testing.T) {
	r := newRig(t)
	r.world.put(orders, "random")
	c := r.follow(users, "u-1")
	c.subscribe(wire.ServiceType, orders.String())
	c.ack(c.expect(wire.ServiceType, []string{orders.String()}, nil))
	r.world.put(orders, "not\xffUTF-8")
	r.world.put(carts, "not\xffUTF-8")
	r.server.Changed(Change{Services: []policy.ServiceName{orders}})
	c.subscribe(wire.ServiceType, carts.String()) // nothing to fall back on: no answer is better than a wrong one
	c.quiet()
	if st := r.only().Types[0]; st.Pending != 1 {
		t.Errorf("a service without any answer does not count as pending: %+v", st)
	}
	r.world.put(orders, "least_conn")
	r.world.put(carts, "random")
	r.server.Changed(Change{AllServices: true})
	got := map[string]bool{} // together, or in two responses
	for len(got) < 2 {
		resp := c.recv()
		for _, res := range resp.Resources {
			got[res.Name] = true
		}
		c.ack(resp)
	}
	if !got[carts.String()] || !got[orders.String()] {
		t.Errorf("%v were sent", got)
	}
}

// Many proxies follow a state that keeps changing; each must end with its last.
func TestAllProxiesArriveAtTheLastState(t *testing.T) {
	const proxies, rounds = 8, 100
	r := newRig(t)
	names := []policy.ServiceName{users, orders, carts}
	var list []string
	for _, n := range names {
		r.world.put(n, "v0")
		list = append(list, n.String())
	}
	var wg sync.WaitGroup
	for i := range proxies {
		c := r.follow(users, fmt.Sprintf("u-%d", i))
		c.subscribe(wire.ServiceType, list...)
		wg.Go(func() {
			have := map[policy.ServiceName]string{}
			want := fmt.Sprintf("v%d", rounds)
			for have[users] != want || have[orders] != want || have[carts] != want {
				resp, err := c.stream.Recv()
				if err != nil {
					t.Errorf("proxy %d has %v at the end: %v", i, have, err)
					return
				}
				for _, n := range names {
					for _, res := range resp.Resources {
						if res.Name == n.String() {
							have[n] = serviceIn(t, resp, n).Traffic.Strategy
						}
					}
				}
				c.ack(resp)
			}
		})
	}
	for _, n := range names {
		wg.Go(func() {
			for v := 1; v <= rounds; v++ {
				r.world.put(n, fmt.Sprintf("v%d", v))
				r.server.Changed(Change{Services: []policy.ServiceName{n}})
			}
		})
	}
	wg.Wait()
}
