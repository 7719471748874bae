package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// leases hands out leases and remembers what became of them.
type leases struct {
	ttl    time.Duration
	refuse error

	mu    sync.Mutex
	given []*testLease
}

func (l *leases) attach(_ context.Context, h Hello) (Lease, error) {
	if l.refuse != nil {
		return nil, l.refuse
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lease := &testLease{hello: h, ttl: l.ttl}
	l.given = append(l.given, lease)
	return lease, nil
}

func (l *leases) last() *testLease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.given[len(l.given)-1]
}

type testLease struct {
	hello Hello
	ttl   time.Duration

	mu        sync.Mutex
	renewals  int
	closed    int
	keepAlive error
	closeErr  error
}

func (l *testLease) TTL() time.Duration { return l.ttl }

func (l *testLease) KeepAlive(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewals++
	return l.keepAlive
}

func (l *testLease) Close(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed++
	return errors.Join(l.closeErr, ctx.Err())
}

func (l *testLease) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepAlive = err
}

func (l *testLease) counts() (renewals, closed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewals, l.closed
}

// member is a proxy's end of an attachment.
type member struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[wire.AttachRequest, wire.AttachResponse]
	cancel context.CancelFunc
}

func (r *rig) dial(as policy.ServiceName) *member {
	r.t.Helper()
	ctx, cancel := r.context(as)
	stream, err := wire.NewAttachmentClient(r.conn).Attach(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(cancel)
	return &member{t: r.t, stream: stream, cancel: cancel}
}

// attach goes through the hello.
func (r *rig) attach(as policy.ServiceName, hello *wire.Hello) *member {
	r.t.Helper()
	m := r.dial(as)
	m.send(&wire.AttachRequest{Hello: hello})
	m.answer()
	return m
}

func (m *member) send(req *wire.AttachRequest) {
	m.t.Helper()
	if err := m.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		m.t.Fatal(err)
	}
}

func (m *member) answer() time.Duration {
	m.t.Helper()
	resp, err := m.stream.Recv()
	if err != nil {
		m.t.Fatalf("receive: %v", err)
	}
	return resp.Ttl.AsDuration()
}

func (m *member) ends(want codes.Code) string {
	m.t.Helper()
	for {
		_, err := m.stream.Recv()
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) && want == codes.OK {
			return ""
		}
		if status.Code(err) != want {
			m.t.Fatalf("the stream ended with %v, want code %v", err, want)
		}
		return status.Convert(err).Message()
	}
}

func hello(id string) *wire.Hello {
	return &wire.Hello{ProxyId: id, Version: "1.2.3", Addresses: [][]byte{{10, 0, 0, 5}},
		Endpoints: []*wire.Endpoint{endpoint(id + "-8001")}}
}

func endpoint(id string) *wire.Endpoint {
	return &wire.Endpoint{Id: id, Ip: []byte{10, 0, 0, 5}, Port: 8001, Protocol: "http", Weight: 100,
		HealthCheckPath: "/health", Healthy: true, Meshed: true}
}

func TestAttachedProxyIsKnownAndItsEndpointsAreOfItsIdentity(t *testing.T) {
	r := newRig(t)
	m := r.dial(users)
	m.send(&wire.AttachRequest{Hello: hello("u-1"), Figures: &wire.Figures{InboundRequests: 3}})
	if ttl := m.answer(); ttl != time.Minute {
		t.Errorf("the answer's time to live is %v, want the lease's minute", ttl)
	}
	got := r.leases.last().hello
	if got.Service != users || got.ProxyID != "u-1" || len(got.Endpoints) != 1 || got.Endpoints[0].Service() != users || !got.Endpoints[0].Meshed {
		t.Errorf("the hello was passed on as %+v", got)
	}
	p := r.only()
	if !p.Attached || p.Following || p.Service != users || p.Version != "1.2.3" || p.Figures.InboundRequests != 3 || p.ConnectedAt.IsZero() {
		t.Errorf("the status is %+v", p)
	}
	c := r.follow(users, "u-1")
	c.quiet()
	if p := r.only(); !p.Attached || !p.Following {
		t.Errorf("both streams of a proxy are not one proxy: %+v", p)
	}
}

func TestFiguresAreSummedOverTheAttached(t *testing.T) {
	r := newRig(t)
	a, b := r.attach(users, hello("u-1")), r.attach(orders, hello("o-1"))
	a.send(&wire.AttachRequest{Figures: &wire.Figures{InboundRequests: 5, RequestDurationTotal: 1.5}})
	a.answer()
	b.send(&wire.AttachRequest{Figures: &wire.Figures{InboundRequests: 7, RequestDurationTotal: 0.5}})
	b.answer()
	b.send(&wire.AttachRequest{}) // without figures the last ones stay
	b.answer()
	if got := r.server.Totals(); got.InboundRequests != 12 || got.RequestDurationTotal != 2 || r.server.Connected() != 2 {
		t.Errorf("totals of %d proxies are %+v", r.server.Connected(), got)
	}
	again := r.attach(users, hello("u-1")) // a proxy that came back is not counted twice
	a.ends(codes.Aborted)
	again.send(&wire.AttachRequest{Figures: &wire.Figures{InboundRequests: 6}})
	again.answer()
	if got := r.server.Totals(); got.InboundRequests != 13 {
		t.Errorf("totals after a reconnect are %+v", got)
	}
	b.cancel()
	until(t, "the departed proxy's figures are gone", func() bool { return r.server.Totals().InboundRequests == 6 })
}

func TestLeavingRemovesTheEndpointsAtOnce(t *testing.T) {
	r := newRig(t)
	m := r.attach(users, hello("u-1"))
	m.send(&wire.AttachRequest{Leaving: true})
	m.ends(codes.OK)
	if _, closed := r.leases.last().counts(); closed != 1 {
		t.Errorf("the lease was closed %d times, want once", closed)
	}
	until(t, "the proxy is gone", func() bool { return r.server.Connected() == 0 })
}

func TestBrokenStreamLeavesTheLeaseToExpire(t *testing.T) {
	for name, breakIt := range map[string]func(*member){
		"cancelled": func(m *member) { m.cancel() },
		"half shut": func(m *member) { _ = m.stream.CloseSend(); m.ends(codes.OK) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			m := r.attach(users, hello("u-1"))
			breakIt(m)
			until(t, "the proxy is gone", func() bool { return r.server.Connected() == 0 })
			if _, closed := r.leases.last().counts(); closed != 0 {
				t.Error("the lease was closed: a proxy that reconnects would have been out of service")
			}
		})
	}
}

func TestLeaseIsRenewedAsOftenAsItNeedsAndNoMore(t *testing.T) {
	now := time.Unix(1000, 0)
	var mu sync.Mutex
	r := newRig(t, func(cfg *Config) {
		cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	m := r.attach(users, hello("u-1"))
	for range 50 {
		m.send(&wire.AttachRequest{})
		if ttl := m.answer(); ttl != time.Minute {
			t.Fatalf("time to live %v", ttl)
		}
	}
	if n, _ := r.leases.last().counts(); n != 0 {
		t.Errorf("the lease was renewed %d times within no time", n)
	}
	for i := range 3 {
		mu.Lock()
		now = now.Add(6 * time.Second)
		mu.Unlock()
		m.send(&wire.AttachRequest{})
		m.answer()
		if n, _ := r.leases.last().counts(); n != i+1 {
			t.Errorf("the lease was renewed %d times, want %d", n, i+1)
		}
	}
}

func TestStoreThatFailsForAWhileKeepsTheStream(t *testing.T) {
	r := newRig(t)
	r.leases.ttl = 0 // every message renews
	m := r.attach(users, hello("u-1"))
	lease := r.leases.last()
	lease.fail(errors.New("etcd has no leader"))
	m.send(&wire.AttachRequest{Figures: &wire.Figures{InboundRequests: 9}})
	until(t, "the figures arrived all the same", func() bool { return r.server.Totals().InboundRequests == 9 })
	until(t, "the renewal was tried", func() bool { n, _ := lease.counts(); return n == 2 })
	lease.fail(nil)
	m.send(&wire.AttachRequest{})
	m.answer()

	lease.fail(fmt.Errorf("etcd: %w", ErrLeaseLost))
	m.send(&wire.AttachRequest{})
	if text := m.ends(codes.Unavailable); !strings.Contains(text, "attach again") {
		t.Errorf("the stream ended with %q", text)
	}
}

func TestAttachmentIsRefused(t *testing.T) {
	many := hello("u-1")
	for i := range maxOffered {
		many.Endpoints = append(many.Endpoints, endpoint(fmt.Sprint("e", i)))
	}
	with := func(f func(*wire.Hello)) *wire.Hello { h := hello("u-1"); f(h); return h }
	for name, c := range map[string]struct {
		as     policy.ServiceName
		hello  *wire.Hello
		refuse error
		code   codes.Code
		text   string
	}{
		"no identity":      {policy.ServiceName{}, hello("u-1"), nil, codes.Unauthenticated, "no client certificate"},
		"no hello":         {users, nil, nil, codes.InvalidArgument, "first message"},
		"no id":            {users, hello(""), nil, codes.InvalidArgument, "id"},
		"bad address":      {users, with(func(h *wire.Hello) { h.Addresses = [][]byte{{1, 2, 3}} }), nil, codes.InvalidArgument, "hello.addresses[0]"},
		"bad endpoint":     {users, with(func(h *wire.Hello) { h.Endpoints[0].Port = 0 }), nil, codes.InvalidArgument, "hello.endpoints[0].port"},
		"virtual endpoint": {users, with(func(h *wire.Hello) { h.Endpoints[0].Ip = []byte{240, 240, 0, 9} }), nil, codes.InvalidArgument, "hello.endpoints[0].ip"},
		"twice the same":   {users, with(func(h *wire.Hello) { h.Endpoints = append(h.Endpoints, h.Endpoints[0]) }), nil, codes.InvalidArgument, "hello.endpoints[1].id"},
		"too many":         {users, many, nil, codes.InvalidArgument, "1025"},
		"store down":       {users, hello("u-1"), errors.New("etcd has no leader"), codes.Unavailable, "no leader"},
		"parent's status":  {users, hello("u-1"), status.Error(codes.AlreadyExists, "the address is another service's"), codes.AlreadyExists, "another service's"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.leases.refuse = c.refuse
			m := r.dial(c.as)
			m.send(&wire.AttachRequest{Hello: c.hello})
			if text := m.ends(c.code); !strings.Contains(text, c.text) {
				t.Errorf("refused with %q, want it to name %q", text, c.text)
			}
			if r.server.Connected() != 0 || len(r.leases.given) != 0 {
				t.Error("something of it was kept")
			}
		})
	}
}

func TestSecondHelloEndsTheStream(t *testing.T) {
	r := newRig(t)
	m := r.attach(users, hello("u-1"))
	m.send(&wire.AttachRequest{Hello: hello("u-2")})
	m.ends(codes.InvalidArgument)
}

func TestAttachmentEndsWithCloseAndDisconnect(t *testing.T) {
	r := newRig(t)
	bad, good := r.attach(users, hello("u-1")), r.attach(orders, hello("o-1"))
	r.server.Disconnect(func(_ policy.ServiceName, id string) bool { return id == "u-1" })
	bad.ends(codes.PermissionDenied)
	r.server.Close()
	good.ends(codes.Unavailable)
	if _, closed := r.leases.last().counts(); closed != 0 {
		t.Error("a control plane that stops took the endpoints out of service")
	}
	late := r.dial(users)
	late.send(&wire.AttachRequest{Hello: hello("u-3")})
	late.ends(codes.Unavailable)
}
