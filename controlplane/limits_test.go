package controlplane

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

var limitOfUsers = policy.LimitRef{Service: users, Name: "default"}

// sharing is a control plane that divides 100 requests a second, and so many for
// each key where keyed.
func sharing(name string, keyed bool) *shareOut {
	s := newShareOut(nil, func(ref policy.LimitRef) (policy.RateLimit, bool) {
		l := policy.RateLimit{Limit: 100, Window: time.Second, Mesh: true}
		if keyed {
			l.Key = "header:X"
		}
		return l, ref == limitOfUsers
	})
	s.self = func() (string, float64) { return name, 1 }
	return s
}

func front(id string) publish.ProxyName {
	return publish.ProxyName{Service: policy.ServiceName{Namespace: "default", Name: "front"}, ID: id}
}

func wanted(rate float64, keys ...policy.KeyDemand) []policy.Demand {
	return []policy.Demand{{Limit: limitOfUsers, Rate: rate, Keys: keys}}
}

func (s *shareOut) of(id string) float64 {
	if all := s.shares(front(id)); len(all) == 1 {
		return all[0].Requests
	}
	return -1
}

func TestAProxyThatVanishesKeepsItsShareForAWhile(t *testing.T) {
	s := sharing("a", false)
	now := time.Now()
	s.demands(front("1"), wanted(1000))
	s.demands(front("2"), wanted(1000))
	s.divide(now)
	if s.of("1") != 50 || s.of("2") != 50 {
		t.Fatalf("%v and %v", s.of("1"), s.of("2"))
	}
	s.detached(front("1"), false)
	if s.divide(now.Add(shareOutlives / 2)); s.of("2") != 50 {
		t.Errorf("while the other may come back: %v", s.of("2"))
	}
	if told := s.divide(now.Add(2 * shareOutlives)); s.of("2") != 100 || fmt.Sprint(told) != fmt.Sprint([]publish.ProxyName{front("2")}) {
		t.Errorf("after its lease: %v, %v are told", s.of("2"), told)
	}
	s.demands(front("1"), wanted(1000)) // back
	s.detached(front("2"), true)        // and this one took leave
	if s.divide(now); s.of("1") != 100 || s.of("2") != -1 {
		t.Errorf("%v and %v", s.of("1"), s.of("2"))
	}
	s.detached(front("1"), false)
	s.demands(front("1"), wanted(1000)) // back before its lease has ended
	if s.divide(now.Add(2 * shareOutlives)); s.of("1") != 100 {
		t.Errorf("one that came back lost its share: %v", s.of("1"))
	}
}

func TestWhoLacksAShareIsUrgent(t *testing.T) {
	s := sharing("a", false)
	s.demands(front("1"), wanted(1))
	select {
	case <-s.urgent:
	default:
		t.Error("a new proxy waits")
	}
	s.divide(time.Now())
	s.demands(front("1"), wanted(1))
	select {
	case <-s.urgent:
		t.Error("one that has enough is urgent")
	default:
	}
}

// tell lets control planes know what each other's proxies want, in one order or
// the other.
func tell(planes ...*shareOut) {
	var members []store.Member
	for _, p := range planes {
		name, since := p.self()
		members = append(members, store.Member{Name: name, Since: since, Demands: p.totals()})
	}
	for _, p := range planes {
		p.members = members
	}
}

func TestControlPlanesDivideALimitAmongThemselves(t *testing.T) {
	a, b, c := sharing("a", false), sharing("b", false), sharing("c", false)
	a.demands(front("1"), wanted(1000))
	a.demands(front("2"), wanted(5))
	b.demands(front("3"), wanted(15))
	c.demands(front("4"), wanted(1000))
	tell(a, b, c)
	for _, p := range []*shareOut{a, b, c} {
		p.divide(time.Now())
	}
	one, two, three, four := a.of("1"), a.of("2"), b.of("3"), c.of("4")
	if one+two+three+four != 100 {
		t.Errorf("%v, %v, %v and %v are not 100 together", one, two, three, four)
	}
	if two < 5 || three < 15 || one < 30 || four < 30 {
		t.Errorf("%v, %v, %v and %v", one, two, three, four)
	}
	// One that nobody has told of yet counts with what it knows itself.
	a.members = a.members[1:]
	if a.divide(time.Now()); a.of("1")+a.of("2") != one+two {
		t.Errorf("%v and %v before the store has it", a.of("1"), a.of("2"))
	}
	// Alone again.
	tell(a)
	if a.divide(time.Now()); a.of("1")+a.of("2") != 100 {
		t.Errorf("%v and %v alone", a.of("1"), a.of("2"))
	}
}

func TestKeysAreDividedAmongControlPlanesToo(t *testing.T) {
	a, b := sharing("a", true), sharing("b", true)
	hot := func(rate float64) policy.KeyDemand { return policy.KeyDemand{Key: 7, Rate: rate} }
	a.demands(front("1"), wanted(1000, hot(1000)))
	b.demands(front("2"), wanted(1000, hot(10)))
	b.demands(front("3"), wanted(1000))
	b.demands(front("4"), wanted(1000, policy.KeyDemand{Key: 8, Rate: 1}))
	tell(a, b)
	a.divide(time.Now())
	b.divide(time.Now())
	for id, s := range map[string]*shareOut{"1": a, "2": b, "3": b, "4": b} {
		if s.of(id) != 25 {
			t.Errorf("proxy %s has %v of every key, want a fourth", id, s.of(id))
		}
	}
	keys := func(s *shareOut, id string) (n float64) {
		for _, k := range s.shares(front(id))[0].Keys {
			n += k.Requests
		}
		return n
	}
	if one, two := keys(a, "1"), keys(b, "2"); one+two != 100 || two < 10 || one < 80 {
		t.Errorf("of the hot key there are %v and %v", one, two)
	}
	if four := keys(b, "4"); four != 100 {
		t.Errorf("a key that is at one place only has %v there", four)
	}
}

func TestALimitIsFoundByItsName(t *testing.T) {
	s := newSteps()
	s.st.Settings.Services = map[string]policy.ServiceSettings{"users": {RateLimits: []policy.ServiceLimit{{Limit: 7, Scope: "mesh"}, {Limit: 8, Name: "b", Window: 1}}}}
	rule := policy.DefaultTrafficRule()
	rule.ID, rule.RateLimit = "r", &policy.ServiceLimit{Limit: 9, Scope: "mesh"}
	s.st.Services = store.ServicesOf(&store.Service{Name: users, VirtualIndex: 1, Rules: []policy.TrafficRule{rule}})
	s.apply(store.Change{Settings: true, Services: map[policy.ServiceName]struct{}{users: {}}})
	for ref, want := range map[policy.LimitRef]policy.RateLimit{
		limitOfUsers:                                  {Limit: 7, Window: time.Minute, Mesh: true},
		{Service: users, Name: "b"}:                   {Limit: 8, Window: time.Second, Name: "b"},
		{Service: users, Rule: "r", Name: "r"}:        {Limit: 9, Window: time.Minute, Name: "r", Rule: "r", Mesh: true},
		{Service: users, Name: "nobody"}:              {},
		{Service: users, Rule: "none", Name: "none"}:  {},
		{Service: front("").Service, Rule: "r"}:       {},
		{Service: front("").Service, Name: "default"}: {},
	} {
		if got, ok := s.v.meshLimit(ref); got != want || ok != (want.Limit > 0) {
			t.Errorf("%+v: %+v %v", ref, got, ok)
		}
	}
}

func TestAServicesProxiesCountWhatGoesByWhoCalls(t *testing.T) {
	s := newSteps()
	s.st.Settings.Security.JWTSecret = "secret"
	s.st.Settings.Services = map[string]policy.ServiceSettings{"users": {RateLimits: []policy.ServiceLimit{{Limit: 1}, {Limit: 2, Key: "source"}}}}
	s.apply(store.Change{Settings: true})
	in := s.v.Inbound(users)
	if len(in.RateLimits) != 1 || in.RateLimits[0].Limit != 2 || in.Routes != nil || in.JWTSecret != "" {
		t.Errorf("%+v", in)
	}
	rule := func(key string) publish.Change {
		r := policy.DefaultTrafficRule()
		r.ID, r.RateLimit = "r", &policy.ServiceLimit{Limit: 3, Key: key}
		s.st.Services = store.ServicesOf(&store.Service{Name: users, VirtualIndex: 1, Rules: []policy.TrafficRule{r}})
		return s.apply(store.Change{Services: map[policy.ServiceName]struct{}{users: {}}})
	}
	if c := rule("header:X"); len(c.Inbounds) != 0 || s.v.Inbound(users).Routes != nil {
		t.Errorf("a limit that callers count touches %v", c.Inbounds)
	}
	c := rule("jwt:org")
	in = s.v.Inbound(users)
	if !slices.Contains(c.Inbounds, users) || len(in.Routes) != 1 || in.Routes[0].RateLimit.Window != 60 || in.JWTSecret != "secret" {
		t.Errorf("touched %v, %+v", c.Inbounds, in)
	}
	if c := rule(""); !slices.Contains(c.Inbounds, users) || s.v.Inbound(users).Routes != nil {
		t.Errorf("taken back it touches %v", c.Inbounds)
	}
	if svc, _ := s.v.Service(users); svc.Rules[0].RateLimit.Window != 60 {
		t.Errorf("callers have the rule %+v: without the mesh's window", svc.Rules[0].RateLimit)
	}
}
