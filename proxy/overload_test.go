package proxy

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/h2"
	"github.com/weir-mesh/weir/proxy/loop"
)

// bound gives users other bounds.
func (o *path) bound(b policy.Overload) *destination {
	o.t.Helper()
	svc := *o.p.dests.Load().byName[users].svc
	svc.Traffic.Overload = b
	if err := o.p.setService(users, &svc); err != nil {
		o.t.Fatal(err)
	}
	return o.p.dests.Load().byName[users]
}

// refused is how many requests were turned away at a bound.
func refusedAt(t *testing.T, p *Proxy, bound string) string {
	t.Helper()
	for line := range strings.Lines(metricsOf(t, p)) {
		if strings.HasPrefix(line, "weir_overload_total{bound=\""+bound+`"`) {
			return strings.TrimSpace(line[strings.LastIndex(line, " "):])
		}
	}
	return "0"
}

func TestARequestTooManyIsRefused(t *testing.T) {
	o := newPathOut(t)
	d := o.bound(policy.Overload{Concurrent: 1})
	o.on(func() {
		d.gates.requests.TryEnter() // another is under way
		o.client.left, o.up.left = 1, 0
		o.p.h1.Serve(o.client, nil, func() bool { return false }, o.serve, func(error) {})
	})
	if got := refusedAt(t, o.p, "concurrent"); got != "1" {
		t.Errorf("%s were counted as refused", got)
	}
	d.gates.requests.Leave()
	o.on(func() { o.requests(3) }) // which fails unless they come through
	if n := d.gates.requests.Inside(); n != 0 {
		t.Errorf("%d are inside when all have left", n)
	}
}

func TestARequestWaitsForItsTurnAndItsWaitIsNoLatency(t *testing.T) {
	o := newPathOut(t)
	d := o.bound(policy.Overload{Concurrent: 1, Pending: 1})
	o.on(func() { o.requests(10) })
	e := o.p.usersPick().endpoints[0]
	const wait = 50 * time.Millisecond
	o.on(func() {
		d.gates.requests.TryEnter()
		o.l.AfterFunc(wait, d.gates.requests.Leave)
		o.requests(1)
	})
	if got := e.stats.Latency(time.Now()); got > wait/2 {
		t.Errorf("its endpoint is taken to need %v", got)
	}
	o.on(func() { // with one that waits already
		d.gates.requests.TryEnter()
		first := o.l.Spawn(func() { d.gates.requests.Enter(o.l, o.l.Now().Add(time.Hour)) })
		o.l.Yield()
		o.client.left, o.up.left = 1, 0
		o.p.h1.Serve(o.client, nil, func() bool { return false }, o.serve, func(error) {})
		d.gates.requests.Leave()
		first.Wait()
	})
	if got := refusedAt(t, o.p, "pending"); got != "1" {
		t.Errorf("%s were counted as refused", got)
	}
}

func TestABoundAllocatesNothing(t *testing.T) {
	limit := 0.05 // of the connection itself
	if raceEnabled {
		limit = 20 // sync.Pool drops at random under the race detector
	}
	o := newPathOut(t)
	o.bound(policy.Overload{Concurrent: 5, Pending: 5, Connections: 5})
	o.on(func() {
		o.requests(10)
		if per := testing.AllocsPerRun(5, func() { o.requests(1000) }) / 1000; per > limit {
			t.Errorf("%.3f allocations per request", per)
		}
	})
}

func TestBoundsOutliveAChangeOfTheService(t *testing.T) {
	o := newPathOut(t)
	d := o.bound(policy.Overload{Concurrent: 1})
	d.gates.requests.TryEnter()
	next := o.bound(policy.Overload{Concurrent: 2})
	if next.gates != d.gates || !next.gates.requests.TryEnter() || next.gates.requests.TryEnter() {
		t.Errorf("%d are inside", next.gates.requests.Inside())
	}
}

// two loops, and users with two endpoints that listen.
func twoLoops(t *testing.T, b policy.Overload) (*Proxy, *destination) {
	t.Helper()
	p := sidecar(t)
	p.cfg.Loops = 2
	svc := usersWith()
	for _, id := range []string{"a", "b"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		svc.Endpoints = append(svc.Endpoints, endpointOf(id, ln.Addr().(*net.TCPAddr).AddrPort().String()))
	}
	svc.Traffic.Overload = b
	if err := errors.Join(p.setService(users, svc), p.makeLoops()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); p.runLoops() }()
	t.Cleanup(func() { p.closeLoops(); <-ended })
	return p, p.dests.Load().byName[users]
}

func onLoop(l *loop.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { l.Go(func() { defer close(done); f() }) })
	<-done
}

// A connection of HTTP/2 on which no request is makes room, too.
func TestAnUnusedHTTP2ConnectionMakesRoom(t *testing.T) {
	p, d := twoLoops(t, policy.Overload{Connections: 1})
	svc := *d.svc
	svc.Endpoints = slices.Clone(svc.Endpoints)
	for i := range svc.Endpoints {
		svc.Endpoints[i].Protocol = "http2"
	}
	if err := p.setService(users, &svc); err != nil {
		t.Fatal(err)
	}
	d = p.dests.Load().byName[users]
	a, b := d.members[0], d.members[1]
	var up *h2.Upstream
	for shard, l := range p.loops { // of the same loop, and of another
		onLoop(p.loops[0], func() {
			var err error
			pool := a.kept[0].streams()
			up, err = pool.Take(p.loops[0], time.Time{}, func() (loop.Stream, error) { return p.dialEndpoint(p.loops[0], d, a, time.Time{}) })
			if err != nil {
				t.Fatal(err)
			}
		})
		dial := func() (c loop.Stream, err error) {
			onLoop(l, func() { c, err = p.dialEndpoint(l, d, b, time.Time{}) })
			return c, err
		}
		if _, err := dial(); !errors.Is(err, errOverload) {
			t.Errorf("loop %d, while a request is on the one connection: %v", shard, err)
		}
		onLoop(p.loops[0], func() { a.kept[0].streams().Put(p.loops[0].Now(), up) })
		c, err := dial()
		left := 0
		onLoop(p.loops[0], func() { left = a.kept[0].streams().Len() })
		if err != nil || d.gates.conns.Inside() != 1 || left != 0 {
			t.Fatalf("loop %d, with an unused one: %v, %d connections", shard, err, d.gates.conns.Inside())
		}
		onLoop(l, func() { _ = c.Close() })
	}
}

func TestNoMoreConnectionsThanMayBe(t *testing.T) {
	p, d := twoLoops(t, policy.Overload{Connections: 2})
	a, b := d.members[0], d.members[1]
	var open []loop.Stream
	dial := func(shard int, e *endpoint) (err error) {
		onLoop(p.loops[shard], func() {
			var c loop.Stream
			if c, err = p.dialEndpoint(p.loops[shard], d, e, time.Time{}); err == nil {
				open = append(open, c)
			}
		})
		return err
	}
	if err := errors.Join(dial(0, a), dial(1, b)); err != nil {
		t.Fatal(err)
	}
	if err := dial(0, b); !errors.Is(err, errOverload) {
		t.Errorf("the third: %v", err)
	}
	if got := refusedAt(t, p, "connections"); got != "1" {
		t.Errorf("%s were counted as refused", got)
	}
	// One that is idle makes room: on the same loop, and on another.
	for _, shard := range []int{0, 1} {
		onLoop(p.loops[0], func() { a.kept[0].h1.Put(p.loops[0].Now(), h1.NewUpstream(open[0])) })
		if err := dial(shard, b); err != nil {
			t.Errorf("loop %d, with one idle on loop 0: %v", shard, err)
		}
		if n := d.gates.conns.Inside(); n != 2 || a.kept[0].h1.Len() != 0 {
			t.Errorf("%d connections, %d idle", n, a.kept[0].h1.Len())
		}
		if shard == 0 {
			open[0] = open[2]
		}
	}
	// What cannot be dialled leaves no trace.
	gone := *a
	gone.addr = netip.MustParseAddrPort("127.0.0.1:1")
	onLoop(p.loops[0], func() { _ = open[0].Close() })
	onLoop(p.loops[1], func() { _ = open[len(open)-1].Close() })
	onLoop(p.loops[1], func() { _ = open[1].Close() })
	if err := dial(0, &gone); err == nil || errors.Is(err, errOverload) {
		t.Errorf("a dial to nowhere: %v", err)
	}
	if n := d.gates.conns.Inside(); n != 0 {
		t.Errorf("%d connections are counted, none is there", n)
	}
}
