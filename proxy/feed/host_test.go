package feed

import (
	"testing"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestAHostOutsideIsLookedUpOnce(t *testing.T) {
	c := newControl(t)
	pay := policy.ServiceName{Namespace: "shop", Name: "pay"}
	c.set(wire.LookupType, "api.example.com", &wire.Lookup{Service: wire.FromName(pay)})
	at, _ := c.serve("", nil)
	var a app
	f, _ := start(t, &a, []string{at})
	connected(t, f, true)
	for range 3 {
		if name, ok := f.ServiceFor(t.Context(), "api.example.com"); !ok || name != pay {
			t.Fatalf("%v %v", name, ok)
		}
		if name, ok := f.ServiceFor(t.Context(), "www.example.com"); ok {
			t.Fatalf("nobody's host is %v", name)
		}
	}
	if n := len(f.subs.hosts); n != 2 {
		t.Errorf("%d hosts are followed", n)
	}
	f.mu.Lock()
	for _, s := range f.subs.hosts {
		f.subs.remove(s)
	}
	left := len(f.subs.hosts) + len(f.subs.addresses)
	f.mu.Unlock()
	if left != 0 {
		t.Errorf("%d are left", left)
	}
}
