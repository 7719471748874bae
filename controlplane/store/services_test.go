package store

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// Beside a plain map that is copied each time, which is slow and obvious.
func TestServicesAreAMapThatNeverChanges(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	type moment struct {
		fast Services
		slow map[policy.ServiceName]*Service
	}
	now := moment{slow: map[policy.ServiceName]*Service{}}
	var past []moment
	for range 400 {
		e, slow := now.fast.draft(), maps.Clone(now.slow)
		for range 1 + random.IntN(8) {
			name := shop(fmt.Sprintf("s%d", random.IntN(600)))
			if random.IntN(3) == 0 {
				e.remove(serviceName(name))
				delete(slow, name)
			} else {
				svc := &Service{Name: name}
				e.put(svc)
				slow[name] = svc
			}
		}
		now = moment{Services{e.table}, slow}
		past = append(past, now)
	}
	for i, m := range past {
		if got := maps.Collect(m.fast.All()); !maps.Equal(got, m.slow) || m.fast.Len() != len(m.slow) {
			t.Fatalf("after change %d: %d services (Len %d), not %d", i, len(got), m.fast.Len(), len(m.slow))
		}
		for n := range 600 {
			name := shop(fmt.Sprintf("s%d", n))
			if m.fast.Get(name) != m.slow[name] {
				t.Fatalf("after change %d: %s is %p, not %p", i, name, m.fast.Get(name), m.slow[name])
			}
		}
	}
}

func TestAChangeSharesAllOtherServices(t *testing.T) {
	var all []*Service
	for i := range 1000 {
		all = append(all, &Service{Name: shop(fmt.Sprint("s", i))})
	}
	was := ServicesOf(all...)
	e := was.draft()
	e.put(&Service{Name: shop("s7")})
	copied := 0
	for i := range was.parts {
		if len(was.parts[i]) > 0 && &was.parts[i][0] != &e.parts[i][0] {
			copied++
		}
	}
	if copied != 1 {
		t.Errorf("%d slots were copied for one service", copied)
	}
	if was.Get(shop("s7")) != all[7] {
		t.Error("what was changed is also changed in the value before")
	}
}

func TestNamesOfAMeshAreSpreadOverTheSlots(t *testing.T) {
	var count [slots]int
	for i := range 10_000 {
		count[serviceName{Namespace: "default", Name: fmt.Sprintf("service-%d", i)}.slot()]++
	}
	for slot, n := range count {
		if n > 3*10_000/slots {
			t.Errorf("slot %d has %d of 10 000 names", slot, n)
		}
	}
}

func TestEqualEndpointsShareWhatTheyCan(t *testing.T) {
	m := newModel("/weir/", zap.NewNop())
	for i := range 3 {
		e := endpoint("cart", fmt.Sprint("e", i))
		e.Labels = map[string]string{"version": "v1"}
		value, err := json.Marshal(endpointRecord{Endpoint: e})
		must(t, err)
		m.put(&mvccpb.KeyValue{Key: []byte(m.keys.endpoint(shop("cart"), e.ID)), Value: value, ModRevision: int64(i + 1)})
	}
	st, _ := m.state(3)
	all := st.Services.Get(shop("cart")).Endpoints
	if len(all) != 3 {
		t.Fatalf("there are %d endpoints", len(all))
	}
	for i := range all {
		e := &all[i]
		if reflect.ValueOf(e.Labels).Pointer() != reflect.ValueOf(all[0].Labels).Pointer() {
			t.Errorf("%s has labels of its own", e.ID)
		}
		if unsafe.StringData(e.ServiceName) != unsafe.StringData(all[0].ServiceName) || unsafe.StringData(e.HealthCheckPath) != unsafe.StringData(all[0].HealthCheckPath) {
			t.Errorf("%s has names of its own", e.ID)
		}
		if e.Labels["version"] != "v1" || e.ServiceName != "cart" || e.Namespace != "shop" || e.Protocol != "http" || e.HealthCheckPath != "/health" {
			t.Errorf("what is shared is not what was stored: %+v", e)
		}
	}
}
