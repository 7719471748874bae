package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
)

func TestTwoStoresSeeEachOther(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = strings.Trim(a.cfg.Prefix, "/") }) // the same, however it is spelled
	stranger := open(t)
	must(t, a.PutEndpoint(t.Context(), endpoint("cart", "a")))
	st := until(t, b, "the endpoint is known", func(st *State) bool { return st.Services.Get(shop("cart")) != nil })
	if st.Services.Get(shop("cart")).VirtualIndex != 1 {
		t.Errorf("the service is %+v", st.Services.Get(shop("cart")))
	}
	must(t, b.UpdateSettings(t.Context(), []byte(`{"egress":"deny"}`)))
	must(t, b.DeleteEndpoint(t.Context(), "shop", "cart", "a"))
	until(t, a, "the endpoint is gone", func(st *State) bool { return st.Services.Len() == 0 && st.Settings.Egress == "deny" })
	if st := stranger.State(); st.Services.Len() != 0 || st.Settings.Egress != "allow" {
		t.Errorf("another mesh on the same cluster has %+v", st)
	}
}

// wire is a way to the cluster that a test may cut.
type wire struct {
	t    *testing.T
	addr string
	to   string // "" is the shared cluster
	ln   net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

func (w *wire) up() {
	ln, err := net.Listen("tcp", w.addr)
	must(w.t, err)
	w.ln, w.addr, w.down = ln, ln.Addr().String(), false
	w.wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", cmp.Or(w.to, strings.TrimPrefix(cluster, "http://")))
			if err != nil {
				w.t.Error(err)
				return
			}
			w.mu.Lock()
			if w.conns = append(w.conns, near, far); w.down {
				near.Close()
				far.Close()
			}
			w.mu.Unlock()
			for from, to := range map[net.Conn]net.Conn{near: far, far: near} {
				w.wg.Go(func() {
					io.Copy(to, from) // its error is that it was cut
					to.Close()
				})
			}
		}
	})
}

func (w *wire) cut() {
	w.ln.Close()
	w.mu.Lock()
	w.down = true
	for _, c := range w.conns {
		c.Close()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func TestAClusterThatIsAwayForAWhile(t *testing.T) {
	w := &wire{t: t, addr: "127.0.0.1:0"}
	w.up()
	t.Cleanup(func() { w.cut() })
	s := open(t, func(c *Config) { c.Endpoints, c.LeaseTTL = []string{"http://" + w.addr}, time.Minute })
	near := open(t, func(c *Config) { c.Prefix = s.cfg.Prefix })
	must(t, s.PutEndpoint(t.Context(), endpoint("cart", "a")))
	lease := attach(t, s, "p", endpoint("cart", "b"))
	w.cut()

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.PutEndpoint(ctx, endpoint("cart", "c")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a write without etcd gives %v", err)
	}
	if err := lease.KeepAlive(ctx); !errors.Is(err, ErrUnavailable) {
		t.Errorf("KeepAlive without etcd gives %v", err)
	}
	if n := len(s.Endpoints(shop("cart"))); n != 2 {
		t.Errorf("without etcd %d endpoints are known", n)
	}
	must(t, near.PutEndpoint(t.Context(), endpoint("cart", "meanwhile")))

	w.up()
	until(t, s, "what was missed is known", func(st *State) bool { _, ok := st.endpoint(shop("cart"), "meanwhile"); return ok })
	must(t, s.PutEndpoint(t.Context(), endpoint("cart", "d")))
	must(t, lease.KeepAlive(t.Context()))
	must(t, lease.Close(t.Context()))
}

func TestWhatEtcdReportsIsSaidInTheStoresWords(t *testing.T) {
	other := errors.New("other")
	for err, want := range map[error]error{
		rpctypes.ErrNoSpace: ErrFull, rpctypes.ErrNoLeader: ErrUnavailable, rpctypes.ErrTimeout: ErrUnavailable,
		status.Error(codes.Unknown, "context deadline exceeded"): ErrUnavailable, status.Error(codes.Unavailable, "no"): ErrUnavailable,
		rpctypes.ErrTooManyRequests: ErrUnavailable, context.DeadlineExceeded: ErrUnavailable,
		context.Canceled: context.Canceled, other: other,
	} {
		if got := explain(fmt.Errorf("step: %w", err)); !errors.Is(got, want) || !errors.Is(got, err) {
			t.Errorf("%v becomes %v", err, got)
		}
	}
}

// What is recognised is what would be written.
func FuzzKeys(f *testing.F) {
	k := keys("/weir/")
	name := shop("cart")
	for _, key := range []string{k.settings(), k.proxy("p"), k.security("s"), k.virtual(name), k.endpoint(name, "e"), k.rule(name, "r"), k.secret("ca"), k.virtualLast(), "/weir/mesh/services/a"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		what, name, id := k.parse(key)
		again := map[kind]func() string{
			virtualKey: func() string { return k.virtual(name) }, endpointKey: func() string { return k.endpoint(name, id) },
			ruleKey: func() string { return k.rule(name, id) }, securityKey: func() string { return k.security(id) },
			settingsKey: k.settings, proxyKey: func() string { return k.proxy(id) },
			unknownKey: func() string { return key },
		}[what]()
		if again != key || what == unknownKey && (name != policy.ServiceName{} || id != "") {
			t.Errorf("%q is read as %v %v %q", key, what, name, id)
		}
	})
}
