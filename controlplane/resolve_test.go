package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weir-mesh/weir/controlplane/meshfile"
)

const named = `
mesh:
  services:
    users:
      instances:
        - url: http://users-1:8001
        - url: http://users-2:8001
        - url: http://10.0.0.9:8001
    pay:
      instances:
        - url: grpc://users-1:9000
`

func parsed(t *testing.T, text string) *meshfile.File {
	t.Helper()
	f, err := meshfile.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestNamesBecomeEndpointsAndKeepTheirLastAddresses(t *testing.T) {
	names := map[string]string{"users-1": "10.0.0.2 10.0.0.1 fd00::1", "users-2": "fd00::2 ::"}
	var asked atomic.Int32
	r := newResolver()
	r.lookup = func(_ context.Context, host string) (out []netip.Addr, err error) {
		asked.Add(1)
		if names[host] == "" {
			return nil, errors.New("no such host")
		}
		for a := range strings.FieldsSeq(names[host]) {
			out = append(out, netip.MustParseAddr(a))
		}
		return out, nil
	}
	f := parsed(t, named)
	stored := func(*meshfile.Instance) []netip.Addr { return nil }
	step := func(what, want, wantUnresolved string) {
		t.Helper()
		endpoints, unresolved := r.resolve(t.Context(), f, stored)
		var ids []string
		for _, e := range endpoints {
			ids = append(ids, e.ServiceName+"/"+e.ID)
		}
		if got := strings.Join(ids, " "); got != want || strings.Join(unresolved, "; ") != wantUnresolved {
			t.Errorf("%s:\n got %s\n     %v\nwant %s\n     %s", what, got, unresolved, want, wantUnresolved)
		}
	}
	const two = "pay/users-1:9000@10.0.0.1 pay/users-1:9000@10.0.0.2 users/users-1:8001@10.0.0.1 users/users-1:8001@10.0.0.2 "
	step("all names known", two+"users/users-2:8001@fd00::2 users/10.0.0.9:8001", "")
	if n := asked.Load(); n != 2 {
		t.Errorf("%d look-ups for two names", n)
	}
	names["users-2"] = ""
	step("one is gone", two+"users/users-2:8001@fd00::2 users/10.0.0.9:8001",
		"users-2:8001 of default/users: no such host; it keeps its last addresses")
	names["users-2"] = "10.0.0.7"
	step("and has moved", two+"users/users-2:8001@10.0.0.7 users/10.0.0.9:8001", "")

	names["users-1"], names["users-2"] = "", "0.0.0.0"
	r.last = nil // as after a restart
	stored = func(inst *meshfile.Instance) []netip.Addr {
		if inst.Host == "users-1" && inst.Endpoint.Port == 8001 {
			return []netip.Addr{netip.MustParseAddr("10.0.0.5")}
		}
		return nil
	}
	step("after a restart", "users/users-1:8001@10.0.0.5 users/10.0.0.9:8001",
		"users-1:9000 of default/pay: no such host; it is no endpoint yet; users-1:8001 of default/users: no such host; it keeps its last addresses; "+
			"users-2:8001 of default/users: users-2 has no address that an endpoint can have; it is no endpoint yet")
}

func TestManyNamesAreAskedForAFewAtATime(t *testing.T) {
	var b strings.Builder
	b.WriteString("mesh:\n  services:\n    users:\n      instances:\n")
	for i := range 100 {
		fmt.Fprintf(&b, "        - url: http://host-%d:80\n", i)
	}
	var now, most atomic.Int32
	r := newResolver()
	r.lookup = func(context.Context, string) ([]netip.Addr, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			continue
		}
		return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
	}
	endpoints, _ := r.resolve(t.Context(), parsed(t, b.String()), func(*meshfile.Instance) []netip.Addr { return nil })
	if len(endpoints) != 100 || most.Load() > lookupsAtOnce {
		t.Errorf("%d endpoints, %d at once", len(endpoints), most.Load())
	}
}
