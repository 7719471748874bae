package store

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func TestAServiceComesAndGoesAndKeepsItsAddress(t *testing.T) {
	s, ctx := open(t), t.Context()
	must(t, s.PutEndpoint(ctx, endpoint("first", "e")))
	must(t, s.PutEndpoint(ctx, endpoint("cart", "b")))
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	svc := s.State().Services.Get(shop("cart"))
	if svc == nil || svc.VirtualIndex != 2 || len(svc.Endpoints) != 2 || svc.Endpoints[0].ID != "a" || svc.Endpoints[0].Leased {
		t.Fatalf("the service is %+v", svc)
	}
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "a"))
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "b"))
	if svc := s.State().Services.Get(shop("cart")); svc != nil {
		t.Fatalf("a service without endpoints and rules is %+v", svc)
	}
	must(t, s.PutEndpoint(ctx, endpoint("other", "e")))
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	if svc := s.State().Services.Get(shop("cart")); svc.VirtualIndex != 2 {
		t.Errorf("the service came back as %d", svc.VirtualIndex)
	}
	if svc := s.State().Services.Get(shop("other")); svc.VirtualIndex != 3 {
		t.Errorf("the next service is %d", svc.VirtualIndex)
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	s, ctx := open(t), t.Context()
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "a"))
	for what, err := range map[string]error{
		"endpoint":            s.DeleteEndpoint(ctx, "shop", "cart", "a"),
		"endpoint, odd id":    s.DeleteEndpoint(ctx, "shop", "cart", "../virtual"),
		"endpoint, no id":     s.DeleteEndpoint(ctx, "shop", "cart", ""),
		"status":              s.SetStatus(ctx, "shop", "cart", "a", policy.Unhealthy),
		"status, no service":  s.SetStatus(ctx, "shop", "nobody", "a", policy.Unhealthy),
		"traffic rule":        s.DeleteTrafficRule(ctx, shop("cart"), "r"),
		"security rule":       s.DeleteSecurityRule(ctx, "r"),
		"security rule, path": s.DeleteSecurityRule(ctx, "a/b"),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: the error is %v", what, err)
		}
	}
	if n := s.State().Services.Len(); n != 0 {
		t.Errorf("there are %d services", n)
	}
}

func TestWhatIsNotValidIsNotStored(t *testing.T) {
	s, ctx := open(t), t.Context()
	e := endpoint("cart", "a/b")
	e.Port = 70000
	_, err1 := s.AddTrafficRule(ctx, shop("cart"), policy.TrafficRule{ID: "a b", Weight: -1})
	_, err2 := s.AddSecurityRule(ctx, policy.SecurityRule{})
	_, err3 := s.Attach(ctx, Proxy{ID: "p", Service: shop("cart")}, []policy.Endpoint{endpoint("other", "a")})
	_, err4 := s.Attach(ctx, Proxy{ID: "p", Service: shop("cart")}, []policy.Endpoint{e})
	for i, err := range []error{s.PutEndpoint(ctx, e), err1, err2, err3, err4} {
		var p policy.Problems
		if !errors.As(err, &p) || len(p) == 0 {
			t.Errorf("%d: the error is %v", i, err)
		}
	}
	if _, err := s.AddTrafficRule(ctx, policy.ServiceName{Namespace: "A", Name: "b"}, policy.DefaultTrafficRule()); err == nil {
		t.Error("a rule of a service with a bad name was taken")
	}
	if st := s.State(); st.Services.Len()+len(st.Security)+st.Proxies.Len() != 0 {
		t.Errorf("the state is %+v", st)
	}
}

func TestRulesKeepTheOrderOfTheirCreation(t *testing.T) {
	s, ctx := open(t), t.Context()
	add := func(id string) {
		r := policy.DefaultTrafficRule()
		r.ID = id
		got, err := s.AddTrafficRule(ctx, shop("cart"), r)
		must(t, err)
		if id != "" && got != id || got == "" {
			t.Fatalf("the id is %q", got)
		}
	}
	ids := func() string {
		var out []string
		for _, r := range s.State().Services.Get(shop("cart")).Rules {
			out = append(out, r.ID)
		}
		return strings.Join(out, " ")
	}
	add("z")
	add("m")
	add("a")
	if got := ids(); got != "z m a" {
		t.Fatalf("the order is %s", got)
	}
	r := policy.DefaultTrafficRule()
	r.ID, r.Weight = "m", 7
	if _, err := s.AddTrafficRule(ctx, shop("cart"), r); !errors.Is(err, ErrConflict) {
		t.Errorf("adding a rule that is there gives %v", err)
	}
	if _, err := s.PutTrafficRule(ctx, shop("cart"), r); err != nil {
		t.Error(err)
	}
	if rules := s.State().Services.Get(shop("cart")).Rules; ids() != "z m a" || rules[1].Weight != 7 {
		t.Errorf("after a replacement the rules are %+v", rules)
	}
	must(t, s.DeleteTrafficRule(ctx, shop("cart"), "z"))
	add("z")
	if got := ids(); got != "m a z" {
		t.Errorf("the order is %s", got)
	}
	if v := s.State().Services.Get(shop("cart")).VirtualIndex; v != 1 {
		t.Errorf("a service of rules alone has the virtual address %d", v)
	}
	for _, id := range []string{"m", "a", "z"} {
		must(t, s.DeleteTrafficRule(ctx, shop("cart"), id))
	}
	if n := s.State().Services.Len(); n != 0 {
		t.Errorf("%d services are left", n)
	}
}

func TestSecurityRules(t *testing.T) {
	s, ctx := open(t), t.Context()
	rule := policy.SecurityRule{SourceNamespace: "*", SourceService: "*", DestinationNamespace: "shop", DestinationService: "cart", AllowedMethods: []string{"GET"}}
	first, err := s.AddSecurityRule(ctx, rule)
	must(t, err)
	rule.ID = "0" // sorts before any other
	_, err = s.AddSecurityRule(ctx, rule)
	must(t, err)
	if _, err := s.AddSecurityRule(ctx, rule); !errors.Is(err, ErrConflict) {
		t.Errorf("adding a rule that is there gives %v", err)
	}
	rule.RequiredJWT = true
	_, err = s.PutSecurityRule(ctx, rule)
	must(t, err)
	got := s.State().Security
	if len(got) != 2 || got[0].ID != first || got[1].ID != "0" || !got[1].RequiredJWT {
		t.Errorf("the rules are %+v", got)
	}
	must(t, s.DeleteSecurityRule(ctx, first))
	if got := s.State().Security; len(got) != 1 {
		t.Errorf("the rules are %+v", got)
	}
}

func TestStatusIsWrittenOnlyWhenItChanges(t *testing.T) {
	s, ctx := open(t), t.Context()
	must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
	before := s.State()
	must(t, s.SetStatus(ctx, "shop", "cart", "a", policy.Healthy))
	if s.State() != before {
		t.Error("an unchanged status was written")
	}
	must(t, s.SetStatus(ctx, "shop", "cart", "a", policy.Unhealthy))
	if e := s.Endpoints(shop("cart")); e[0].Status != policy.Unhealthy {
		t.Errorf("the status is %s", e[0].Status)
	}
	if before.Services.Get(shop("cart")).Endpoints[0].Status != policy.Healthy {
		t.Error("an old state was changed")
	}
	if err := s.SetStatus(ctx, "shop", "cart", "a", "ill"); err == nil {
		t.Error("a status that does not exist was taken")
	}
}

func TestStatusOfAnEndpointThatIsRemovedMeanwhile(t *testing.T) {
	s, ctx := open(t), t.Context()
	other := open(t, func(c *Config) { c.Prefix = s.cfg.Prefix })
	for i := range 20 {
		id := strconv.Itoa(i)
		must(t, s.PutEndpoint(ctx, endpoint("cart", id)))
		until(t, other, "the endpoint is known", func(st *State) bool { _, ok := st.endpoint(shop("cart"), id); return ok })
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := other.SetStatus(ctx, "shop", "cart", id, policy.Unhealthy); err != nil && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		})
		must(t, s.DeleteEndpoint(ctx, "shop", "cart", id))
		wg.Wait()
	}
	until(t, other, "all are gone", func(st *State) bool { return st.Services.Len() == 0 })
	if n := s.State().Services.Len(); n != 0 {
		t.Error("an endpoint came back")
	}
}

func TestSeenIsKeptInMemory(t *testing.T) {
	s, ctx := open(t), t.Context()
	e := endpoint("cart", "a")
	e.LastSeen = 100
	must(t, s.PutEndpoint(ctx, e))
	before := s.State()
	s.Seen("shop", "cart", "a", 200.5)
	s.Seen("shop", "cart", "nobody", 1)
	s.Seen("shop", "nobody", "a", 1)
	if got := s.Endpoints(shop("cart"))[0].LastSeen; got != 200.5 {
		t.Errorf("last seen %v", got)
	}
	if s.State() != before {
		t.Error("something was written")
	}
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "a"))
	must(t, s.PutEndpoint(ctx, e))
	if got := s.Endpoints(shop("cart"))[0].LastSeen; got != 100 {
		t.Errorf("an endpoint of the same name was last seen %v", got)
	}
	if got := s.Endpoints(shop("nobody")); got != nil {
		t.Errorf("an unknown service has %v", got)
	}
}

func TestConcurrentRegistrationsGetDifferentAddresses(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	const n = 20
	var wg sync.WaitGroup
	for i := range n {
		for _, s := range []*Store{a, b} { // both the same services
			wg.Go(func() {
				if err := s.PutEndpoint(t.Context(), endpoint(fmt.Sprintf("s%d", i), "e")); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for _, s := range []*Store{a, b} {
		st := until(t, s, "all are known", func(st *State) bool { return st.Services.Len() == n })
		seen := map[int]bool{}
		for _, svc := range st.Services.All() {
			if svc.VirtualIndex < 1 || svc.VirtualIndex > n || seen[svc.VirtualIndex] {
				t.Errorf("%s has the virtual address %d", svc.Name, svc.VirtualIndex)
			}
			seen[svc.VirtualIndex] = true
		}
	}
}

func TestAddressesAreUsedAgainOnlyWhenAllWereGiven(t *testing.T) {
	s, ctx := open(t), t.Context()
	for _, name := range []string{"live", "old", "older"} {
		must(t, s.PutEndpoint(ctx, endpoint(name, "e")))
	}
	must(t, s.DeleteEndpoint(ctx, "shop", "older", "e"))
	must(t, s.DeleteEndpoint(ctx, "shop", "old", "e"))
	_, err := s.client.Put(ctx, s.keys.virtualLast(), strconv.Itoa(policy.MaxVirtual-1))
	must(t, err)
	for _, want := range []struct {
		name  string
		index int
	}{{"last", policy.MaxVirtual}, {"heir", 3}, {"second", 2}} {
		must(t, s.PutEndpoint(ctx, endpoint(want.name, "e")))
		if got := s.State().Services.Get(shop(want.name)).VirtualIndex; got != want.index {
			t.Errorf("%s has %d, want %d", want.name, got, want.index)
		}
	}
	err = s.PutEndpoint(ctx, endpoint("toomany", "e"))
	if !errors.Is(err, ErrFull) {
		t.Errorf("with all addresses in use the error is %v", err)
	}
	if err := s.PutEndpoint(ctx, endpoint("old", "e")); !errors.Is(err, ErrFull) {
		t.Errorf("a service whose address went to another: the error is %v", err)
	}
}

func TestNoSettingIsLostInARace(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	var wg sync.WaitGroup
	for i := range 10 {
		for j, s := range []*Store{a, b} {
			wg.Go(func() {
				patch := fmt.Sprintf(`{"services":{"s%d-%d":{"timeout":%d}}}`, i, j, i+1)
				if err := s.UpdateSettings(t.Context(), []byte(patch)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for _, s := range []*Store{a, b} {
		until(t, s, "all settings are there", func(st *State) bool { return len(st.Settings.Services) == 20 })
	}
	var p policy.Problems
	if err := a.UpdateSettings(t.Context(), []byte(`{"egres":"deny"}`)); !errors.As(err, &p) {
		t.Errorf("a wrong patch gives %v", err)
	}
	if got := a.State().Settings.Egress; got != "allow" {
		t.Errorf("egress is %q", got)
	}
}

func TestSecretsAreMadeOnce(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	var wg sync.WaitGroup
	values := make([]string, 20)
	for i := range values {
		wg.Go(func() {
			s := []*Store{a, b}[i%2]
			v, err := s.GetOrCreate(t.Context(), "root", func() ([]byte, error) { return []byte(strconv.Itoa(i)), nil })
			if err != nil {
				t.Error(err)
			}
			values[i] = string(v)
		})
	}
	wg.Wait()
	if slices.Sort(values); values[0] != values[len(values)-1] || values[0] == "" {
		t.Errorf("the values are %q", values)
	}
	broken := errors.New("no entropy")
	if _, err := a.GetOrCreate(t.Context(), "other", func() ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
	if n := a.State().Services.Len(); n != 0 {
		t.Error("a secret is in the state")
	}
}

func TestAKeyThatCannotBeReadIsPassedOver(t *testing.T) {
	s, ctx := open(t, func(c *Config) { c.Log = nil }), t.Context()
	for _, key := range []string{s.keys.endpoint(shop("cart"), "bad"), s.keys.mesh() + "what", s.keys.settings(), s.keys.proxy("p"), s.keys.security("s"), s.keys.rule(shop("cart"), "r"), s.keys.virtual(shop("odd"))} {
		_, err := s.client.Put(ctx, key, "{")
		must(t, err)
	}
	must(t, s.PutEndpoint(ctx, endpoint("cart", "good")))
	if st := s.State(); st.Services.Len() != 1 || len(st.Services.Get(shop("cart")).Endpoints) != 1 || !reflect.DeepEqual(st.Settings, policy.DefaultSettings()) {
		t.Errorf("the state is %+v", st)
	}
	_, err := s.client.Delete(ctx, s.keys.endpoint(shop("cart"), "bad"))
	must(t, err)
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "good"))
	if n := s.State().Services.Len(); n != 0 {
		t.Errorf("%d services are left", n)
	}
}

func TestSettingsOfAnEarlierVersionGetTheDefaultsOfThisOne(t *testing.T) {
	got, err := readSettings([]byte(`{"egress":"deny"}`))
	must(t, err)
	want := policy.DefaultSettings()
	want.Egress = "deny"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the settings are %+v", got)
	}
}
