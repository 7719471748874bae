package feed

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// message waits for the next message of an attachment.
func (c *control) message(what string, want func(*wire.AttachRequest) bool) *wire.AttachRequest {
	c.t.Helper()
	for {
		select {
		case m := <-c.attached:
			if want(m) {
				return m
			}
		case <-time.After(20 * time.Second):
			c.t.Fatal("never: " + what)
		}
	}
}

func hello(m *wire.AttachRequest) bool   { return m.Hello != nil }
func leaving(m *wire.AttachRequest) bool { return m.Leaving }
func alive(m *wire.AttachRequest) bool   { return m.Hello == nil && !m.Leaving }

func offering(cfg *Config) {
	e := policy.DefaultEndpoint()
	e.ID, e.Namespace, e.ServiceName, e.IP, e.Port = "web-1-80", own.Namespace, own.Name, "10.0.0.1", 80
	cfg.Endpoints = []policy.Target{{Endpoint: e, Meshed: true}}
	n := uint64(0)
	cfg.Figures = func() policy.Figures { n++; return policy.Figures{InboundRequests: n} }
}

func TestAttachedWithHelloThenKeptAlive(t *testing.T) {
	c := newControl(t)
	c.ttl = minTTL
	at, _ := c.serve("", nil)
	var a app
	start(t, &a, []string{at}, offering)
	h := c.message("hello", hello)
	if h.Hello.ProxyId != "web-1" || h.Hello.Version != "1.2.3" || len(h.Hello.Addresses) != 1 || len(h.Hello.Endpoints) != 1 {
		t.Error(h)
	}
	if e := h.Hello.Endpoints[0].Policy(own); e.Addr() != netip.MustParseAddrPort("10.0.0.1:80") || !e.Meshed {
		t.Errorf("%+v", e)
	}
	last := h.Figures.GetInboundRequests()
	for range 3 {
		m := c.message("a sign of life", alive)
		if m.Figures.GetInboundRequests() != last+1 {
			t.Error("figures are not those of now:", m.Figures)
		}
		last = m.Figures.GetInboundRequests()
	}
}

func TestFiguresAreReportedAsOftenAsTheMeshSays(t *testing.T) {
	c := newControl(t)
	c.ttl = time.Hour // signs of life are not what brings the first figures
	at, _ := c.serve("", nil)
	var a app
	var every atomic.Int64
	every.Store(int64(20 * time.Millisecond))
	_, stop := start(t, &a, []string{at}, offering, func(cfg *Config) {
		cfg.FiguresEvery = func() time.Duration { return time.Duration(every.Load()) }
	})
	c.message("hello", hello)
	for range 3 {
		if m := c.message("a report", alive); m.Figures == nil {
			t.Error("a sign of life for nothing")
		}
	}
	stop()

	c = newControl(t)
	c.ttl = minTTL
	at, _ = c.serve("", nil)
	every.Store(int64(time.Hour))
	start(t, &a, []string{at}, offering, func(cfg *Config) {
		cfg.FiguresEvery = func() time.Duration { return time.Duration(every.Load()) }
	})
	c.message("hello", hello)
	for range 3 {
		if m := c.message("a sign of life", alive); m.Figures != nil {
			t.Errorf("figures before their time: %v", m.Figures)
		}
	}
}

func TestAtTheEndLeaveIsTaken(t *testing.T) {
	c := newControl(t)
	at, _ := c.serve("", nil)
	var a app
	f, stop := start(t, &a, []string{at}, offering)
	ready(t, f)
	c.message("hello", hello)
	stop()
	select {
	case m := <-c.attached:
		if !m.Leaving || m.Figures == nil {
			t.Error(m)
		}
	default:
		t.Error("Run ended before leave was taken")
	}
}

func TestLeaveBeforeTheEndKeepsFollowing(t *testing.T) {
	c := newControl(t)
	at, stop := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at}, offering)
	ready(t, f)
	c.message("hello", hello)
	f.Leave()
	f.Leave()
	c.message("leaving", leaving)
	c.set(wire.ServiceType, store.String(), service(store, 80))
	if !f.Service(t.Context(), store) {
		t.Error("not followed")
	}
	// Not offered again after a reconnect.
	stop()
	connected(t, f, false)
	c.serve(at, nil)
	connected(t, f, true)
	c.set(wire.ServiceType, bank.String(), service(bank, 80))
	if !f.Service(t.Context(), bank) {
		t.Error("not followed")
	}
	if len(c.attached) > 0 {
		t.Error("attached again:", <-c.attached)
	}
}

func TestARefusedAttachmentIsTriedAgainAndStateIsFollowed(t *testing.T) {
	c := newControl(t)
	c.attach, c.ttl = errRefused, minTTL
	at, _ := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at}, offering)
	ready(t, f)
	for range 3 {
		c.message("hello", hello)
	}
	if !f.Connected() || f.Status().Attached {
		t.Errorf("want a connection and no attachment: %+v", f.Status())
	}
	c.change(func() { c.attach = nil })
	c.message("a sign of life", alive)
	for end := time.Now().Add(20 * time.Second); !f.Status().Attached; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the attachment does not show: %+v", f.Status())
		}
	}
	// A lease that was lost: attach again, on the same connection.
	c.change(func() { c.attach = status.Error(codes.Unavailable, "lease lost; attach again") })
	c.message("hello", hello)
	c.change(func() { c.attach = nil })
	c.message("a sign of life", alive)
	if f.Status().LastError != "" {
		t.Errorf("the connection was given up: %+v", f.Status())
	}
}

func TestAStuckControlPlaneIsLeft(t *testing.T) {
	stuck, good := newControl(t), newControl(t)
	stuck.ttl = minTTL
	at1, _ := stuck.serve("", nil)
	at2, _ := good.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at1, at2}, offering)
	ready(t, f)
	stuck.message("a sign of life", alive)
	stuck.change(func() { stuck.ttl = 0 }) // takes everything, answers nothing
	good.message("hello", hello)
	if f.Status().Control != at2 {
		t.Error(f.Status())
	}
}

func TestEachControlPlaneIsTriedBeforeTheLeaseEndsAndThenThereIsNoHurry(t *testing.T) {
	const ttl = 10 * time.Second
	for _, c := range []struct {
		addresses, moves int
		want             time.Duration
	}{
		{1, 0, silentTTLs * ttl}, {2, 0, ttl / 2}, {2, 1, silentTTLs * ttl}, {3, 1, ttl / 2}, {3, 2, silentTTLs * ttl}, {3, 9, silentTTLs * ttl},
	} {
		if got := patience(ttl, c.addresses, c.moves); got != c.want {
			t.Errorf("of %d addresses %d were silent: %v, want %v", c.addresses, c.moves, got, c.want)
		}
	}
	// What is sent in a third of the lease's life is missed at the next turn at
	// the latest, and a connection that is not made costs little: in time for the
	// lease, with a second to spare.
	if worst := ttl*2/3 + quickOpenTimeout + 2*minBackoff; worst > ttl-time.Second {
		t.Errorf("in the worst case the next but one takes us after %v", worst)
	}
}

func TestWhenAllAreSilentNobodyIsLeftInHaste(t *testing.T) {
	one, two := newControl(t), newControl(t)
	one.ttl, two.ttl = minTTL, minTTL
	at1, _ := one.serve("", nil)
	at2, _ := two.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at1, at2}, offering)
	ready(t, f)
	one.message("a sign of life", alive)
	two.change(func() { two.ttl = 0 })
	one.change(func() { one.ttl = 0 })
	two.message("hello", hello)
	if n := f.moves(); n != 1 {
		t.Errorf("%d moves are counted", n)
	}
	// An answer makes good for it.
	two.change(func() { two.ttl = minTTL })
	for f.moves() != 0 {
		two.message("a sign of life", alive)
	}
}
