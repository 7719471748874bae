package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func TestTheFirstChangeIsEverything(t *testing.T) {
	s, ctx := open(t), t.Context()
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	attach(t, s, "p")
	w := s.Watch()
	defer w.Close()
	c, err := w.Next(ctx)
	must(t, err)
	if c.State != s.State() || len(c.Services) != 1 || !c.Security || !c.Settings || len(c.Proxies) != 1 {
		t.Errorf("the first change is %+v", c)
	}
}

func TestChangesNameWhatChangedAndNothingElse(t *testing.T) {
	s, ctx := open(t), t.Context()
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	must(t, s.PutEndpoint(ctx, endpoint("still", "a")))
	w := s.Watch()
	defer w.Close()
	first, err := w.Next(ctx)
	must(t, err)

	// Several changes become one.
	must(t, s.PutEndpoint(ctx, endpoint("cart", "b")))
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "b"))
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "a"))
	c, err := w.Next(ctx)
	must(t, err)
	if names := slices.Collect(maps.Keys(c.Services)); len(names) != 1 || names[0] != shop("cart") || c.Security || c.Settings || len(c.Proxies) != 0 {
		t.Errorf("the change is %+v", c)
	}
	if c.State.Services.Get(shop("cart")) != nil || c.State.Services.Get(shop("still")) != first.State.Services.Get(shop("still")) {
		t.Errorf("the state is %+v", c.State)
	}
	must(t, s.UpdateSettings(ctx, []byte(`{"egress":"deny"}`)))
	if c, err = w.Next(ctx); err != nil || !c.Settings || len(c.Services) != 0 || c.State.Settings.Egress != "deny" {
		t.Errorf("the change is %+v, %v", c, err)
	}
	rule := policy.SecurityRule{SourceNamespace: "*", SourceService: "*", DestinationNamespace: "*", DestinationService: "*", AllowedMethods: []string{"*"}}
	_, err = s.AddSecurityRule(ctx, rule)
	must(t, err)
	if c, err = w.Next(ctx); err != nil || !c.Security || c.Settings || len(c.State.Security) != 1 {
		t.Errorf("the change is %+v, %v", c, err)
	}
	l, err := s.Attach(ctx, Proxy{ID: "p", Service: shop("cart")}, nil)
	must(t, err)
	if c, err = w.Next(ctx); err != nil || len(c.Proxies) != 1 || c.Security || len(c.Services) != 0 || c.State.Proxies.Len() != 1 {
		t.Errorf("the change is %+v, %v", c, err)
	}
	must(t, l.Close(ctx))
}

func TestAWatchMissesNoEndState(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	// A reader that puts together what it hears comes to the state that is.
	heard := map[policy.ServiceName]*Service{}
	var readers sync.WaitGroup
	w := s.Watch()
	defer w.Close()
	done := func() bool { return heard[shop("last")] != nil }
	readers.Go(func() {
		for !done() {
			c, err := w.Next(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			for name := range c.Services {
				if svc := c.State.Services.Get(name); svc != nil {
					heard[name] = svc
				} else {
					delete(heard, name)
				}
			}
		}
	})
	var writers sync.WaitGroup
	for g := range 4 {
		writers.Go(func() {
			for i := range 25 {
				name := fmt.Sprintf("s%d", (i+g)%9)
				if err := s.PutEndpoint(t.Context(), endpoint(name, fmt.Sprint(g))); err != nil {
					t.Error(err)
				}
				if err := s.DeleteEndpoint(t.Context(), "shop", name, fmt.Sprint((g+1)%4)); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	must(t, s.PutEndpoint(t.Context(), endpoint("last", "e")))
	readers.Wait()
	cancel()
	if !maps.Equal(heard, maps.Collect(s.State().Services.All())) {
		t.Errorf("heard\n%v\nthe state is\n%v", heard, maps.Collect(s.State().Services.All()))
	}
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next with an ended context gives %v", err)
	}
}

func TestNextEndsWithTheStore(t *testing.T) {
	s, err := Open(t.Context(), Config{Endpoints: []string{cluster}, Prefix: "closing"})
	must(t, err)
	w := s.Watch()
	_, err = w.Next(t.Context())
	must(t, err)
	ended := make(chan error)
	go func() {
		_, err := w.Next(context.Background())
		ended <- err
	}()
	must(t, s.Close())
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("the error is %v", err)
	}
	if _, err := s.Watch().Next(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("a watch on a closed store gives %v", err)
	}
	w.Close()
}

func TestWhatWasMissedIsReadAgain(t *testing.T) {
	writer := open(t)
	ctx := t.Context()
	must(t, writer.PutEndpoint(ctx, endpoint("gone", "a")))
	must(t, writer.PutEndpoint(ctx, endpoint("still", "a")))
	must(t, writer.PutEndpoint(ctx, endpoint("less", "a")))
	must(t, writer.PutEndpoint(ctx, endpoint("less", "b")))
	late, err := Open(ctx, Config{Endpoints: []string{cluster}, Prefix: writer.cfg.Prefix})
	must(t, err)
	defer late.Close()
	w := late.Watch()
	defer w.Close()
	before, err := w.Next(ctx)
	must(t, err)

	must(t, writer.DeleteEndpoint(ctx, "shop", "gone", "a"))
	must(t, writer.DeleteEndpoint(ctx, "shop", "less", "b"))
	must(t, writer.PutEndpoint(ctx, endpoint("new", "a")))
	_, err = writer.client.Compact(ctx, writer.State().Revision)
	must(t, err)

	runCtx, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- late.Run(runCtx) }()
	c, err := w.Next(ctx)
	must(t, err)
	want := map[policy.ServiceName]struct{}{shop("gone"): {}, shop("less"): {}, shop("new"): {}}
	if !maps.Equal(c.Services, want) || c.Settings || c.Security || len(c.Proxies) != 0 {
		t.Errorf("the change is %+v", c)
	}
	if c.State.Services.Get(shop("still")) != before.State.Services.Get(shop("still")) {
		t.Error("what did not change was made anew")
	}
	if got, old := c.State.Services.Get(shop("less")), before.State.Services.Get(shop("less")); len(got.Endpoints) != 1 || got.Revision <= old.Revision {
		t.Errorf("a service that lost an endpoint is %+v, before %+v", got, old)
	}
	must(t, writer.PutEndpoint(ctx, endpoint("after", "a")))
	if c, err = w.Next(ctx); err != nil || len(c.Services) != 1 {
		t.Errorf("the change after that is %+v, %v", c, err)
	}
	if err := late.Run(ctx); err == nil {
		t.Error("the store was followed twice")
	}
	cancel()
	must(t, <-ended)
}
