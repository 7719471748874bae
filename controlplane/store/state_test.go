package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// A State made change by change is that which is read at once.
func TestAStateMadeOfChangesEqualsOneReadAtOnce(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	var wg sync.WaitGroup
	for g := range 4 {
		s := []*Store{a, b}[g%2]
		wg.Go(func() { churn(t, s, g) })
	}
	wg.Wait()
	fresh := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	want := plain(t, fresh.State())
	for _, s := range []*Store{a, b} {
		must(t, s.await(t.Context(), lastRevision(t, s)))
		if got := plain(t, s.State()); got != want {
			t.Errorf("followed:\n%s\nread at once:\n%s", got, want)
		}
	}
}

func lastRevision(t *testing.T, s *Store) int64 {
	t.Helper()
	resp, err := s.client.Get(t.Context(), s.keys.mesh(), clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(1))
	must(t, err)
	return resp.Kvs[0].ModRevision
}

func churn(t *testing.T, s *Store, g int) {
	ctx := t.Context()
	check := func(err error) {
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) {
			t.Error(err)
		}
	}
	for i := range 40 {
		service, id := fmt.Sprintf("s%d", i%5), fmt.Sprintf("e%d", (i+g)%7)
		if i%8 == 0 { // in each round another stays
			l, err := s.Attach(ctx, Proxy{ID: fmt.Sprintf("p%d-%d", i%3, g), Service: shop(service), Version: fmt.Sprint(i)}, nil)
			check(err)
			if i%3 == 0 {
				check(l.Close(ctx))
			}
		}
		switch (i*7 + g*3) % 6 {
		case 0, 1:
			check(s.PutEndpoint(ctx, endpoint(service, id)))
		case 2:
			check(s.DeleteEndpoint(ctx, "shop", service, id))
		case 3:
			check(s.SetStatus(ctx, "shop", service, id, []string{policy.Healthy, policy.Unhealthy}[g%2]))
		case 4:
			r := policy.DefaultTrafficRule()
			r.ID = id
			_, err := s.AddTrafficRule(ctx, shop(service), r)
			check(err)
		case 5:
			check(s.DeleteTrafficRule(ctx, shop(service), id))
			check(s.UpdateSettings(ctx, fmt.Appendf(nil, `{"global_timeout":%d}`, i+1)))
		}
	}
	must(t, s.PutEndpoint(ctx, endpoint(fmt.Sprintf("end%d", g), "e")))
}

func plain(t *testing.T, st *State) string {
	t.Helper()
	var out strings.Builder
	for _, name := range slices.SortedFunc(maps.Keys(maps.Collect(st.Services.All())), func(a, b policy.ServiceName) int { return strings.Compare(a.String(), b.String()) }) {
		svc := *st.Services.Get(name)
		svc.Revision = 0 // a key that went leaves none behind
		b, err := json.Marshal(svc)
		must(t, err)
		fmt.Fprintf(&out, "%s\n", b)
	}
	for _, p := range slices.SortedFunc(st.Proxies.All(), func(a, b *Proxy) int { return strings.Compare(a.ID, b.ID) }) {
		fmt.Fprintf(&out, "%+v\n", *p)
	}
	b, err := json.Marshal(st.Settings)
	must(t, err)
	out.Write(b)
	return out.String()
}
