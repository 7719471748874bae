package publish

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func TestOnlyThoseAreForetoldWhoFollowWhatWouldDiffer(t *testing.T) {
	r := newRig(t)
	r.world.put(orders, "random")
	r.world.put(carts, "random")
	for id, follows := range map[string]policy.ServiceName{"u-1": orders, "u-2": orders, "u-3": carts} {
		c := r.follow(users, id)
		c.subscribe(wire.ServiceType, follows.String())
		c.ack(c.expect(wire.ServiceType, []string{follows.String()}, nil))
	}
	inSync := func() bool {
		return !slices.ContainsFunc(r.server.Proxies(), func(p ProxyStatus) bool { return !p.InSync() })
	}
	until(t, "all have taken what they follow", inSync)
	then := newWorld()
	then.put(orders, "least_conn")
	then.put(carts, "random")
	told := func(c Change) string {
		var ids []string
		for _, s := range r.server.Foretell(c, then) {
			ids = append(ids, s.Service.Name+"/"+s.ID)
		}
		return fmt.Sprint(ids)
	}
	for want, c := range map[string]Change{
		"[users/u-1 users/u-2]": {AllServices: true}, // of carts nothing differs
		"[]":                    {Services: []policy.ServiceName{carts, users}, Mesh: true, Lookups: []string{"10.0.0.1:80"}, AllInbounds: true, AllLookups: true},
	} {
		if got := told(c); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v would be told to %s, want %s", c, got, want)
		}
	}
	if got := told(Change{Services: []policy.ServiceName{orders}}); got != "[users/u-1 users/u-2]" {
		t.Errorf("a service by its name would be told to %s", got)
	}
	if !inSync() {
		t.Error("somebody was told something")
	}
}

func TestAProxysReportIsShown(t *testing.T) {
	r := newRig(t)
	want := policy.Report{
		ResidentBytes: 9 << 20, CertificateExpires: time.Unix(1_800_000_000, 0), Control: "10.0.0.9:8081",
		Circuits: []policy.CircuitState{{Service: orders, Endpoint: "o-1", State: "open"}},
	}
	m := r.dial(users)
	m.send(&wire.AttachRequest{Hello: hello("u-1"), Report: wire.FromReport(want)})
	m.answer()
	if got := r.leases.last().hello.Control; got != want.Control {
		t.Errorf("the store is told of %q", got)
	}
	m.send(&wire.AttachRequest{}) // without one the last stays
	m.answer()
	if got := r.only().Report; !reflect.DeepEqual(got, want) {
		t.Errorf("the report is %+v", got)
	}
}
