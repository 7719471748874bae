package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func ruleMatches(t *testing.T, m *trafficMesh) {
	for _, c := range []struct {
		name     string
		rule     policy.TrafficRule
		yes, not [][]string // curl's arguments
	}{
		{"header", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"version": "beta"} }),
			[][]string{{"-H", "Version: beta"}}, [][]string{{"-H", "Version: beta2"}, {"-H", "X: beta"}, {}}},
		{"header prefix", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"User-Agent": "prefix:Moz"} }),
			[][]string{{"-A", "Mozilla"}}, [][]string{{"-A", "curl"}}},
		{"header regex", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"X-User": "regex:[a-c]+[0-9]"} }),
			[][]string{{"-H", "X-User: abc1"}}, [][]string{{"-H", "X-User: abc12"}, {"-H", "X-User: d1"}}},
		{"header present", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"X-Canary": "present:"} }),
			[][]string{{"-H", "X-Canary: anything"}, {"-H", "X-Canary;"}}, [][]string{{}}},
		{"two headers", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"A": "1", "B": "2"} }),
			[][]string{{"-H", "B: 2", "-H", "A: 1"}}, [][]string{{"-H", "A: 1"}, {"-H", "B: 2"}}},
		{"path", newRule(func(r *policy.TrafficRule) { r.MatchPath = "/users/new" }),
			[][]string{{"http://users/users/new"}, {"http://users/users/new?a=b"}}, [][]string{{"http://users/users/newer"}, {"http://users/users"}}},
		{"path prefix", newRule(func(r *policy.TrafficRule) { r.MatchPath = "/beta/*" }),
			[][]string{{"http://users/beta/a/b"}}, [][]string{{"http://users/bet"}, {"http://users/x/beta/"}}},
		{"path regex", newRule(func(r *policy.TrafficRule) { r.MatchPath = "regex:/v[0-9]+/.*" }),
			[][]string{{"http://users/v12/x"}}, [][]string{{"http://users/va/x"}, {"http://users/x/v1/x"}}},
		{"method", newRule(func(r *policy.TrafficRule) { r.MatchMethod = "POST" }),
			[][]string{{"-d", "x"}}, [][]string{{}, {"-X", "PUT"}}},
		{"methods", newRule(func(r *policy.TrafficRule) { r.MatchMethod = "POST,PUT" }),
			[][]string{{"-d", "x"}, {"-X", "PUT"}}, [][]string{{}}},
		{"host", newRule(func(r *policy.TrafficRule) { r.MatchHost = "*.example.com" }),
			[][]string{{"-H", "Host: a.example.com"}, {"-H", "Host: A.Example.com:80"}}, [][]string{{}, {"-H", "Host: example.com"}}},
		{"query", newRule(func(r *policy.TrafficRule) { r.MatchQuery = map[string]string{"v": "prefix:2 "} }),
			[][]string{{"http://users/?a&v=2%20x"}, {"http://users/?v=2+x"}}, [][]string{{"http://users/?v=2"}, {"http://users/v=2%20"}}},
		{"header suffix", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"X-User": "suffix:@b.test"} }),
			[][]string{{"-H", "X-User: a@b.test"}}, [][]string{{"-H", "X-User: a@b.test.evil"}, {}}},
		{"header not", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"X-User": "not:prefix:a"} }),
			[][]string{{"-H", "X-User: b"}, {}}, [][]string{{"-H", "X-User: ab"}}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			c.rule.DestinationSubset = "v2"
			m.rules(t, "users", c.rule)
			try := func(args []string) []string {
				if len(args) == 0 || !strings.HasPrefix(args[len(args)-1], "http://") {
					args = append(args, "http://users/")
				}
				return append(strings.Fields(curl(t, m.front, args...)), strings.Fields(curl(t, m.front, args...))...)
			}
			for _, args := range c.yes {
				if got := try(args); got[0] != "users3" || got[1] != "users3" {
					t.Errorf("%v should match and went to %v", args, got)
				}
			}
			for _, args := range c.not {
				if got := try(args); got[0] == "users3" && got[1] == "users3" {
					t.Errorf("%v should not match and went to %v", args, got)
				}
			}
		})
	}
}

func firstMatch(t *testing.T, m *trafficMesh) {
	m.rules(t, "users",
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset = "/a/b*", "v2" }),
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset = "/a/*", "v1" }))
	if got := m.get(t, 4, "http://users/a/bc"); slices.ContainsFunc(got, func(s string) bool { return s != "users3" }) {
		t.Errorf("/a/bc went to %v", got)
	}
	if got := m.get(t, 4, "http://users/a/c"); slices.Contains(got, "users3") {
		t.Errorf("/a/c went to %v", got)
	}
}

func split(t *testing.T, m *trafficMesh) {
	part := func(subset string, weight int) policy.TrafficRule {
		return newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset, r.Weight = "/split*", subset, weight })
	}
	t.Run("80:20", func(t *testing.T) {
		m.reset(t)
		m.rules(t, "users", part("v1", 80), part("v2", 20))
		m.get(t, 300, "http://users/split")
		// 60 of 300 are expected, 7 is the standard deviation: six of them on each side.
		if got := m.counts(); got[2] < 60-42 || got[2] > 60+42 || got[0]+got[1]+got[2] != 300 {
			t.Errorf("300 requests split 80:20 went %v", got)
		}
	})
	t.Run("100:0", func(t *testing.T) {
		m.reset(t)
		m.rules(t, "users", part("v1", 100), part("v2", 0))
		m.get(t, 50, "http://users/split")
		if got := m.counts(); got != [3]int{25, 25, 0} {
			t.Errorf("50 requests split 100:0 went %v", got)
		}
	})
}

func otherService(t *testing.T, m *trafficMesh) {
	m.rules(t, "users", newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationService = "/orders*", "orders" }))
	if got := curl(t, m.front, "http://users/orders/1"); got != "orders\n" {
		t.Errorf("got %q", got)
	}
	m.orders.app.mu.Lock()
	defer m.orders.app.mu.Unlock()
	if s := m.orders.seen[len(m.orders.seen)-1]; s.Host != "users" || s.Target != "/orders/1" {
		t.Errorf("the app saw %+v", s)
	}
}

func noSubset(t *testing.T, m *trafficMesh) {
	m.rules(t, "users", newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset = "/none", "v9" }))
	a := ask(t, m.front, "http://users/none")
	a.want(t, 503, "no-endpoints", `{"error":"No healthy endpoints available"}`+"\n")
	if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("X-Request-ID") == "" {
		t.Errorf("head %v", a.Header)
	}
}
