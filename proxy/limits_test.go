package proxy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// keys is a request by what it has to count by.
type keys map[keyPart]string

func (k keys) keyPart(p keyPart) string { return k[p] }

func limitOf(t testing.TB, l policy.RateLimit, now time.Time) *limit {
	t.Helper()
	out, err := newLimit(l, users, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestARequestThatOneLimitRefusesCountsAgainstNone(t *testing.T) {
	now := time.Now()
	a := limitOf(t, policy.RateLimit{Limit: 10, Window: time.Minute, Name: "a"}, now)
	b := limitOf(t, policy.RateLimit{Limit: 2, Window: time.Hour, Name: "b"}, now)
	c := &limitCheck{limits: []*limit{a, b}}
	for i := range 5 {
		l, d := c.all(keys{}, now)
		if want := i < 2; d.OK != want {
			t.Fatalf("request %d: %+v", i, d)
		}
		if l != b {
			t.Errorf("request %d: %s is told of, %s is the tightest", i, l.policy.Name, "b")
		}
	}
	if left := a.whole.Peek(now).Remaining; left != 8 {
		t.Errorf("2 requests passed, and %d of 10 are left", left)
	}
	if asked := b.whole.Usage(now).Asked; asked != 5 {
		t.Errorf("5 requests asked, %d are told as demand", asked)
	}
}

func TestOfSeveralThatRefuseTheLongestIsTold(t *testing.T) {
	now := time.Now()
	short := limitOf(t, policy.RateLimit{Limit: 1, Window: time.Second}, now)
	long := limitOf(t, policy.RateLimit{Limit: 1, Window: time.Hour}, now)
	for _, order := range [][]*limit{{short, long}, {long, short}} {
		c := &limitCheck{limits: order}
		c.all(keys{}, now)
		if l, d := c.all(keys{}, now); d.OK || l != long || d.RetryAfter < time.Minute {
			t.Errorf("%+v of %v", d, l.policy)
		}
	}
}

func TestKeysOfSeveralPartsAreNotConfused(t *testing.T) {
	now := time.Now()
	l := limitOf(t, policy.RateLimit{Limit: 1, Window: time.Hour, Key: "source,header:A,jwt:b"}, now)
	if want := []keyPart{{keySource, ""}, {keyHeader, "A"}, {keyClaim, "b"}}; !slices.Equal(l.parts, want) {
		t.Fatalf("parts are %v", l.parts)
	}
	c := &limitCheck{limits: []*limit{l}}
	for _, k := range []keys{
		{{keySource, ""}: "x", {keyHeader, "A"}: "y"}, {{keySource, ""}: "xy"}, {{keyHeader, "A"}: "xy"},
		{{keyHeader, "A"}: "x", {keyClaim, "b"}: "y"}, {{keyClaim, "b"}: "xy"}, {},
	} {
		if _, d := c.all(k, now); !d.OK {
			t.Errorf("%v is taken for another", k)
		}
		if _, d := c.all(k, now); d.OK {
			t.Errorf("%v is not known again", k)
		}
	}
}

func TestAClaimAsAKey(t *testing.T) {
	for want, claim := range map[string]any{
		"": nil, "org": "org", "7": 7.0, "1700000000": 1.7e9, "0.5": 0.5, "true": true, `["a","b"]`: []any{"a", "b"},
	} {
		if got := claimText(claim); got != want {
			t.Errorf("%v: %q", claim, got)
		}
	}
}

func TestALimitThatStaysKeepsItsCount(t *testing.T) {
	p := sidecar(t)
	svc := func(change func(*policy.Service)) *destination {
		t.Helper()
		s := usersWith(endpointOf("a", "10.0.0.1:80"))
		s.Traffic.RateLimits = []policy.RateLimit{{Limit: 5, Window: time.Minute, Name: "a"}, {Limit: 7, Window: time.Minute, Key: "header:X", Name: "b"}, {Limit: 9, Window: time.Minute, Key: "source", Name: "c"}}
		s.Rules = []policy.TrafficRule{{ID: "r", Weight: 1, RateLimit: &policy.ServiceLimit{Limit: 3, Window: 60}}, {ID: "s", Weight: 1, RateLimit: &policy.ServiceLimit{Limit: 3, Window: 60, Key: "jwt:sub"}}}
		change(s)
		if err := p.setService(users, s); err != nil {
			t.Fatal(err)
		}
		return p.dests.Load().byName[users]
	}
	first := svc(func(*policy.Service) {})
	if len(first.limits) != 2 || len(first.routeLimits) != 1 {
		t.Fatalf("%d limits and %d of routes: those by caller are the receiver's", len(first.limits), len(first.routeLimits))
	}
	again := svc(func(s *policy.Service) {
		s.Traffic.Timeout = time.Second
		slices.Reverse(s.Traffic.RateLimits)
	})
	if again.limits[1] != first.limits[0] || again.limits[0] != first.limits[1] || again.routeLimits["r"] != first.routeLimits["r"] {
		t.Error("another change begins the counts anew")
	}
	other := svc(func(s *policy.Service) { s.Traffic.RateLimits[0].Limit = 6 })
	if other.limits[0] == first.limits[0] || other.limits[1] != first.limits[1] {
		t.Error("a change of one limit is to begin its count anew, and no other")
	}
	bad := usersWith(endpointOf("a", "10.0.0.1:80"))
	bad.Traffic.RateLimits = []policy.RateLimit{{Limit: 5, Name: "none"}}
	if err := p.setService(users, bad); err == nil {
		t.Error("a limit without a window is taken")
	}
}

func TestInboundLimitsAreThoseByCaller(t *testing.T) {
	p := sidecar(t)
	in := policy.Inbound{
		Service: p.cfg.Service, MTLS: policy.Strict, RateLimit: policy.RateLimit{Limit: 5, Window: time.Minute},
		RateLimits: []policy.RateLimit{{Limit: 5, Window: time.Minute, Key: "source", Name: "a"}, {Limit: 6, Window: time.Minute, Key: "header:X,jwt:org", Name: "b"}},
		Routes: []policy.TrafficRule{
			{ID: "plain", Weight: 1, MatchPath: "/a", RateLimit: &policy.ServiceLimit{Limit: 3, Window: 60}},
			{ID: "by", Weight: 1, MatchPath: "/*", RateLimit: &policy.ServiceLimit{Limit: 3, Window: 60, Key: "source"}},
		},
	}
	if err := p.setInbound(in); err != nil {
		t.Fatal(err)
	}
	g := p.guard.Load()
	if len(g.limits.limits) != 2 || !g.limits.needsToken || g.limits.routes["by"] == nil || g.limits.routes["plain"] != nil {
		t.Errorf("%+v", g.limits)
	}
	req := policy.Request{Method: "GET", Path: "/a"}
	if rule := g.limits.router.Route(&req, 0).Rule; rule != "plain" {
		t.Errorf("/a is of the rule %q: what stands before it counts", rule)
	}
	in.DefaultAllow = true
	if err := p.setInbound(in); err != nil || p.guard.Load().limits.limits[0] != g.limits.limits[0] {
		t.Errorf("another change begins the counts anew (%v)", err)
	}
	in.RateLimits[0].Window = 0
	if err := p.setInbound(in); err == nil || !p.guard.Load().Settings().DefaultAllow {
		t.Error("a limit without a window is taken")
	}
}

// What was told to be free of allocations stays so with every kind of limit.
func TestLimitsAllocateNothing(t *testing.T) {
	limits := func(l ...policy.RateLimit) func(*path) {
		return func(o *path) { o.setLimits(l) }
	}
	for name, change := range map[string]func(*path){
		"none":        limits(),
		"one":         limits(policy.RateLimit{Limit: 16_000_000, Window: time.Minute}),
		"a bucket":    limits(policy.RateLimit{Limit: 1_000_000, Window: time.Minute, Burst: 1_000_000}),
		"by header":   limits(policy.RateLimit{Limit: 16_000_000, Window: time.Minute, Key: "header:X-Trace"}),
		"by two":      limits(policy.RateLimit{Limit: 16_000_000, Window: time.Minute, Key: "header:X-Trace,header:Accept"}),
		"several":     limits(policy.RateLimit{Limit: 16_000_000, Window: time.Minute}, policy.RateLimit{Limit: 16_000_000, Window: time.Hour, Name: "b"}),
		"of the mesh": limits(policy.RateLimit{Limit: 16_000_000, Window: time.Minute, Mesh: true}),
		"of the route": func(o *path) {
			o.setLimits(nil, policy.TrafficRule{ID: "r", Weight: 1, RateLimit: &policy.ServiceLimit{Limit: 10_000_000, Window: 60}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newPathOut(t)
			change(o)
			o.on(func() {
				o.requests(10)
				const many = 1000
				per := testing.AllocsPerRun(5, func() { o.requests(many) }) / many
				limit := 0.05
				if raceEnabled {
					limit = 20
				}
				if per > limit {
					t.Errorf("%.3f allocations per request", per)
				}
			})
		})
	}
}

// setLimits gives the path's service these limits and no others.
func (o *path) setLimits(limits []policy.RateLimit, rules ...policy.TrafficRule) {
	o.t.Helper()
	svc := *o.p.dests.Load().byName[users].svc
	svc.Traffic.RateLimit, svc.Traffic.RateLimits, svc.Rules = policy.RateLimit{}, limits, rules
	if err := o.p.setService(users, &svc); err != nil {
		o.t.Fatal(err)
	}
}

// BenchmarkLimits is a request out with so many limits.
func BenchmarkLimits(b *testing.B) {
	for n := range 4 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := newPathOut(b)
			var limits []policy.RateLimit
			for i := range n {
				limits = append(limits, policy.RateLimit{Limit: 16_000_000, Window: time.Minute, Name: fmt.Sprint("l", i)})
			}
			o.setLimits(limits)
			b.ReportAllocs()
			o.on(func() {
				o.requests(10)
				b.ResetTimer()
				o.requests(b.N)
				b.StopTimer()
			})
		})
	}
}
