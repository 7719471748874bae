package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// takePart lets a store be a member until the test ends or stop is called.
func takePart(t *testing.T, s *Store, self func() Member) (leads <-chan struct{}, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	led, done := make(chan struct{}, 10), make(chan error, 1)
	go func() {
		done <- s.TakePart(ctx, self, func(ctx context.Context) error {
			led <- struct{}{}
			<-ctx.Done()
			return nil
		})
	}()
	stop = func() {
		cancel()
		if err, ok := <-done; ok && err != nil {
			t.Error(err)
		}
		close(done)
	}
	return led, stop
}

func named(name string) func() Member {
	return func() Member {
		return Member{Name: name, Address: name + ":8081", Proxies: 2, Figures: policy.Figures{InboundRequests: 3}}
	}
}

// membersUntil asks until the answer is as wanted.
func membersUntil(t *testing.T, s *Store, ok func([]Member) bool) []Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		got, err := s.Members(ctx)
		must(t, err)
		if ok(got) {
			return got
		}
	}
}

func TestMembersKnowEachOtherAndWhoLeads(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	aLeads, stopA := takePart(t, a, named("a"))
	<-aLeads
	bLeads, stopB := takePart(t, b, named("b"))
	for _, s := range []*Store{a, b} {
		got := membersUntil(t, s, func(m []Member) bool { return len(m) == 2 })
		if got[0].Name != "a" || !got[0].Leader || got[1].Leader || got[1].Address != "b:8081" || got[1].Figures.InboundRequests != 3 {
			t.Errorf("members are %+v", got)
		}
	}
	stopA()
	<-bLeads // at once: what is given back need not run out
	if got := membersUntil(t, b, func(m []Member) bool { return len(m) == 1 }); !got[0].Leader || got[0].Name != "b" {
		t.Errorf("members are %+v", got)
	}
	stopB()
	if got := membersUntil(t, a, func(m []Member) bool { return len(m) == 0 }); len(got) != 0 {
		t.Error(got)
	}
}

func TestALeaderThatIsCutOffStopsBeforeAnotherLeads(t *testing.T) {
	w := &wire{t: t, addr: "127.0.0.1:0"}
	w.up()
	t.Cleanup(func() { w.cut() })
	a := open(t, func(c *Config) { c.Endpoints = []string{"http://" + w.addr} })
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan string, 10)
	ended := make(chan error, 2)
	part := func(s *Store, name string) {
		ended <- s.TakePart(ctx, named(name), func(ctx context.Context) error {
			events <- name + " leads"
			<-ctx.Done()
			events <- name + " stops"
			return nil
		})
	}
	go part(a, "a")
	if e := <-events; e != "a leads" {
		t.Fatal(e)
	}
	go part(b, "b")
	membersUntil(t, b, func(m []Member) bool { return len(m) == 2 })
	w.cut()
	// etcd ends the lease not before its time; the client stops at that time.
	got := []string{<-events, <-events}
	if !slices.Equal(got, []string{"a stops", "b leads"}) && !slices.Equal(got, []string{"b leads", "a stops"}) {
		t.Error(got)
	}
	short, done := context.WithTimeout(ctx, 200*time.Millisecond)
	defer done()
	if known, err := a.Members(short); !errors.Is(err, ErrUnavailable) {
		t.Errorf("cut off, it knows %+v, %v", known, err)
	}
	w.up()
	membersUntil(t, a, func(m []Member) bool { return len(m) == 2 && m[1].Leader })
	cancel()
	must(t, errors.Join(<-ended, <-ended))
}

func TestTheEmbeddedStoreHasOneMember(t *testing.T) {
	s := run(t, Config{DataDir: dataDir(t)})
	leads, stop := takePart(t, s, named("only"))
	<-leads
	if got, err := s.Members(t.Context()); err != nil || len(got) != 1 || !got[0].Leader || got[0].Name != "only" {
		t.Errorf("%+v, %v", got, err)
	}
	stop()
}

// What one acknowledged, another sees after Sync, at once and each time.
func TestAfterSyncNothingAcknowledgedIsMissing(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	other := open(t)
	ctx := t.Context()
	must(t, b.Sync(ctx)) // of nothing
	for i := range 100 {
		id := fmt.Sprint("e", i)
		must(t, a.PutEndpoint(ctx, endpoint("cart", id)))
		must(t, other.PutEndpoint(ctx, endpoint("cart", id))) // moves etcd's revision on, and not ours
		must(t, b.Sync(ctx))
		if n := len(b.State().Services.Get(shop("cart")).Endpoints); n != i+1 {
			t.Fatalf("after %d writes %d are known", i+1, n)
		}
	}
	must(t, a.DeleteEndpoint(ctx, "shop", "cart", "e0"))
	must(t, b.Sync(ctx))
	if _, ok := b.State().endpoint(shop("cart"), "e0"); ok {
		t.Error("what was removed is known")
	}
	if err := a.DeleteEndpoint(ctx, "shop", "cart", "e0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removing it again gives %v", err)
	}
}

func TestSyncWithoutTheClusterSaysSoInTime(t *testing.T) {
	w := &wire{t: t, addr: "127.0.0.1:0"}
	w.up()
	t.Cleanup(func() { w.cut() })
	s := open(t, func(c *Config) { c.Endpoints = []string{"http://" + w.addr} })
	must(t, s.PutEndpoint(t.Context(), endpoint("cart", "a")))
	w.cut()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Sync(ctx); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Sync gives %v", err)
	}
	awaited(t, "the watch hears of the end of its connection", func() bool { return s.Trouble() != nil })
	w.up()
	awaited(t, "it is followed again", func() bool { return s.Trouble() == nil })
	must(t, s.Sync(t.Context()))
}

// awaited waits for a condition that no channel tells of.
func awaited(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick, limit := time.NewTicker(time.Millisecond), time.After(30*time.Second)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("it did not come about that %s", what)
		}
	}
}

func TestThatAProxyWasThereOutlivesARegistrationAndNotARemoval(t *testing.T) {
	s, ctx := open(t), t.Context()
	meshed := func() bool { e, _ := s.State().endpoint(shop("cart"), "a"); return e.Meshed }
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	must(t, s.SetMeshed(ctx, "shop", "cart", "a"))
	must(t, s.SetMeshed(ctx, "shop", "cart", "a"))
	must(t, s.SetStatus(ctx, "shop", "cart", "a", policy.Unhealthy))
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	if !meshed() {
		t.Error("forgotten by a registration")
	}
	moved := endpoint("cart", "a")
	moved.IP = "10.0.0.6"
	if must(t, s.PutEndpoint(ctx, moved)); meshed() {
		t.Error("kept for another address")
	}
	must(t, s.SetMeshed(ctx, "shop", "cart", "a"))
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "a"))
	if must(t, s.PutEndpoint(ctx, moved)); meshed() {
		t.Error("kept over a removal")
	}
	if err := s.SetMeshed(ctx, "shop", "cart", "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of one that is not there: %v", err)
	}
}

func TestWhoTakesPartEndsWithoutTheClusterToo(t *testing.T) {
	leader := open(t)
	_, stopLeader := takePart(t, leader, named("a"))
	defer stopLeader()
	membersUntil(t, leader, func(m []Member) bool { return len(m) == 1 && m[0].Leader })
	w := &wire{t: t, addr: "127.0.0.1:0"}
	w.up()
	t.Cleanup(func() { w.cut() })
	s := open(t, func(c *Config) {
		c.Prefix, c.Endpoints, c.LeaseTTL = leader.cfg.Prefix, []string{"http://" + w.addr}, time.Minute
	})
	_, stop := takePart(t, s, named("b")) // waits for its turn
	membersUntil(t, leader, func(m []Member) bool { return len(m) == 2 })
	// So does who waits for a task of its own.
	ctx, end := context.WithCancel(t.Context())
	led, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Lead(ctx, "task", "b", func(ctx context.Context) error { close(led); <-ctx.Done(); return ctx.Err() })
	}()
	<-led
	w.cut()
	stop()
	end()
	must(t, <-ended)
	_, stop = takePart(t, s, named("b")) // waits for a lease
	stop()
}
