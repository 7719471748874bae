package store

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

func attach(t *testing.T, s *Store, id string, endpoints ...policy.Endpoint) *Lease {
	t.Helper()
	p := Proxy{ID: id, Service: shop("cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.5")}, Version: "1"}
	l, err := s.Attach(t.Context(), p, endpoints)
	must(t, err)
	return l
}

func TestWhatAProxyAttachedGoesWithIt(t *testing.T) {
	s, ctx := open(t), t.Context()
	l := attach(t, s, "p", endpoint("cart", "a"), endpoint("cart", "b"))
	svc, p := s.State().Services.Get(shop("cart")), s.State().Proxies.Get("p")
	if len(svc.Endpoints) != 2 || !svc.Endpoints[0].Leased || svc.Endpoints[0].ProxyID != "p" || svc.VirtualIndex != 1 {
		t.Errorf("the service is %+v", svc)
	}
	if p.Service != shop("cart") || p.Version != "1" || len(p.Addresses) != 1 || l.TTL() != s.cfg.LeaseTTL {
		t.Errorf("the proxy is %+v, its lease lasts %v", p, l.TTL())
	}
	must(t, l.KeepAlive(ctx))
	must(t, l.Close(ctx))
	if st := s.State(); st.Services.Len()+st.Proxies.Len() != 0 {
		t.Errorf("after Close the state is %+v", st)
	}
	if err := l.KeepAlive(ctx); !errors.Is(err, ErrNotFound) {
		t.Errorf("keeping an ended lease alive gives %v", err)
	}
	must(t, l.Close(ctx))
}

func TestASilentProxyIsGoneAfterItsLease(t *testing.T) {
	s := open(t)
	attach(t, s, "p", endpoint("cart", "a"))
	must(t, s.PutEndpoint(t.Context(), endpoint("cart", "stays")))
	// A status keeps the endpoint on its lease.
	must(t, s.SetStatus(t.Context(), "shop", "cart", "a", policy.Unhealthy))
	if e, ok := s.State().endpoint(shop("cart"), "a"); !ok || !e.Leased || e.ProxyID != "p" {
		t.Errorf("after a change of status the endpoint is %+v", e)
	}
	st := until(t, s, "the lease has ended", func(st *State) bool { return st.Proxies.Len() == 0 })
	if e := st.Services.Get(shop("cart")).Endpoints; len(e) != 1 || e[0].ID != "stays" {
		t.Errorf("the endpoints are %+v", e)
	}
}

// A control plane that started again keeps up the leases of those it had, and not
// those of another.
func TestTheLeasesOfThoseWhoAreExpectedAreProlonged(t *testing.T) {
	s, ctx := open(t), t.Context()
	for id, control := range map[string]string{"expected": "a", "gone": "b"} {
		_, err := s.Attach(ctx, Proxy{ID: id, Service: shop("cart"), Control: control}, []policy.Endpoint{endpoint("cart", id)})
		must(t, err)
	}
	tick := time.NewTicker(s.cfg.LeaseTTL / 8)
	defer tick.Stop()
	for s.State().Proxies.Get("gone") != nil {
		must(t, s.Prolong(ctx, "a"))
		<-tick.C
	}
	if e := s.Endpoints(shop("cart")); len(e) != 1 || e[0].ID != "expected" {
		t.Errorf("when the other is gone the endpoints are %+v", e)
	}
	until(t, s, "what is not prolonged any more has ended", func(st *State) bool { return st.Proxies.Len() == 0 })
	must(t, s.Prolong(ctx, "a"))
}

func TestAProxyThatAttachesAgainReplaces(t *testing.T) {
	s, ctx := open(t), t.Context()
	old := attach(t, s, "p", endpoint("cart", "a"), endpoint("cart", "b"))
	other := attach(t, s, "q", endpoint("cart", "q"))
	now := attach(t, s, "p", endpoint("cart", "b"), endpoint("cart", "c"))
	ids := func() (out []string) {
		for _, e := range s.Endpoints(shop("cart")) {
			out = append(out, e.ID)
		}
		return out
	}
	if got := ids(); len(got) != 3 || got[0] != "b" || got[1] != "c" || got[2] != "q" {
		t.Errorf("the endpoints are %v", got)
	}
	must(t, old.Close(ctx)) // the end of a connection that broke long ago
	if got := ids(); len(got) != 3 || s.State().Proxies.Len() != 2 {
		t.Errorf("after the old lease's end the endpoints are %v", got)
	}
	// An endpoint that was registered by hand since is no longer the proxy's.
	must(t, s.PutEndpoint(ctx, endpoint("cart", "c")))
	must(t, now.Close(ctx))
	must(t, other.Close(ctx))
	if got := ids(); len(got) != 1 || got[0] != "c" {
		t.Errorf("the endpoints are %v", got)
	}
}

func TestWhatCannotAttach(t *testing.T) {
	s, ctx := open(t), t.Context()
	before, err := s.client.Leases(ctx)
	must(t, err)
	many := make([]policy.Endpoint, maxAttached+1)
	for i := range many {
		many[i] = endpoint("cart", strconv.Itoa(i))
	}
	for what, try := range map[string]struct {
		p Proxy
		e []policy.Endpoint
	}{
		"no id":      {Proxy{Service: shop("cart")}, nil},
		"id a path":  {Proxy{ID: "a/b", Service: shop("cart")}, nil},
		"no service": {Proxy{ID: "p"}, nil},
		"one twice":  {Proxy{ID: "p", Service: shop("cart")}, []policy.Endpoint{endpoint("cart", "a"), endpoint("cart", "a")}},
		"too many":   {Proxy{ID: "p", Service: shop("cart")}, many},
	} {
		if l, err := s.Attach(ctx, try.p, try.e); err == nil || l != nil {
			t.Errorf("%s: %v, %v", what, l, err)
		}
	}
	after, err := s.client.Leases(ctx)
	must(t, err)
	if len(after.Leases) > len(before.Leases) {
		t.Errorf("%d leases are left", len(after.Leases)-len(before.Leases))
	}
	_, err = s.Attach(ctx, Proxy{ID: "p", Service: shop("cart")}, many[:maxAttached])
	must(t, err)
	for i := range many {
		many[i].ID += "x"
	}
	l, err := s.Attach(ctx, Proxy{ID: "p", Service: shop("cart")}, many[:maxAttached])
	must(t, err)
	if n := len(s.Endpoints(shop("cart"))); n != maxAttached {
		t.Errorf("there are %d endpoints", n)
	}
	must(t, l.Close(ctx))
}

func TestOnlyOneLeads(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	var leading atomic.Int32
	type turn struct {
		who  string
		stop context.CancelFunc
	}
	turns := make(chan turn)
	ended := make(chan error, 2)
	start := func(who string, s *Store) context.CancelFunc {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			ended <- s.TakePart(ctx, func() Member { return Member{Name: who} }, func(ctx context.Context) error {
				if n := leading.Add(1); n != 1 {
					t.Errorf("%d lead", n)
				}
				turns <- turn{who, cancel}
				<-ctx.Done()
				leading.Add(-1)
				return ctx.Err()
			})
		}()
		return cancel
	}
	start("a", a)
	start("b", b)
	first := <-turns
	first.stop()
	second := <-turns
	if second.who == first.who {
		t.Errorf("%s led twice", first.who)
	}
	second.stop()
	must(t, <-ended)
	must(t, <-ended)
}

func TestATaskThatEndsIsNotRunAgain(t *testing.T) {
	broken := errors.New("broken")
	for name, s := range map[string]*Store{"cluster": open(t), "embedded": run(t, Config{DataDir: dataDir(t)})} {
		if err := s.TakePart(t.Context(), func() Member { return Member{Name: "x"} }, func(context.Context) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("%s: Lead gives %v", name, err)
		}
	}
}
