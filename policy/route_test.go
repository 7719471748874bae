package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func service(rules ...TrafficRule) *Service {
	s := &Service{Name: ServiceName{"default", "user-service"}, Rules: rules}
	s.Traffic = defaultTraffic()
	return s
}

func defaultTraffic() Traffic {
	s := DefaultSettings()
	return s.TrafficFor(ServiceName{"default", "user-service"})
}

func rule(id string, change func(*TrafficRule)) TrafficRule {
	r := DefaultTrafficRule()
	r.ID = id
	change(&r)
	return r
}

func request(method, path string, header ...string) *Request {
	return &Request{Method: method, Path: path, Header: func(name string) (string, bool) {
		for i := 0; i+1 < len(header); i += 2 {
			if strings.EqualFold(header[i], name) {
				return header[i+1], true
			}
		}
		return "", false
	}}
}

func TestTheFirstRuleThatMatchesDecides(t *testing.T) {
	s := service(
		rule("beta", func(r *TrafficRule) { r.MatchHeaders["version"] = "beta"; r.DestinationSubset = "v2" }),
		rule("prefix", func(r *TrafficRule) { r.MatchHeaders["User-Agent"] = "prefix:curl/"; r.DestinationSubset = "v3" }),
		rule("regex", func(r *TrafficRule) { r.MatchHeaders["x-id"] = "regex:[0-9]+"; r.DestinationSubset = "v4" }),
		rule("present", func(r *TrafficRule) { r.MatchHeaders["x-canary"] = "present:"; r.DestinationSubset = "v5" }),
		rule("path", func(r *TrafficRule) { r.MatchPath = "/exact"; r.Timeout = 2 }),
		rule("under", func(r *TrafficRule) {
			r.MatchPath, r.MatchMethod = "/api/*", "POST"
			r.DestinationService, r.RetryAttempts = "order-service", 7
		}),
		rule("pattern", func(r *TrafficRule) { r.MatchPath = "regex:/v[12]/.*"; r.CircuitBreaker = false }),
	)
	router, err := NewRouter(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		req  *Request
		want string
	}{
		{"header in any case", request("GET", "/", "Version", "beta"), "beta"},
		{"header must be equal", request("GET", "/", "version", "beta2"), ""},
		{"earlier wins", request("GET", "/exact", "version", "beta"), "beta"},
		{"prefix", request("GET", "/", "user-agent", "curl/8"), "prefix"},
		{"regex is of the whole value", request("GET", "/", "x-id", "12a"), ""},
		{"regex", request("GET", "/", "x-id", "12"), "regex"},
		{"present, though empty", request("GET", "/", "x-canary", ""), "present"},
		{"exact path, query not looked at", request("GET", "/exact?a=1", ""), "path"},
		{"exact path is not a prefix", request("GET", "/exact/", ""), ""},
		{"path and method", request("POST", "/api/x"), "under"},
		{"method differs", request("GET", "/api/x"), ""},
		{"path pattern", request("GET", "/v2/x"), "pattern"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := router.Route(c.req, 1); got.Rule != c.want {
				t.Errorf("rule %q decided, want %q", got.Rule, c.want)
			}
		})
	}
	under := router.Route(request("POST", "/api/x"), 0)
	if under.Service != (ServiceName{"default", "order-service"}) || under.Attempts != 7 || under.Timeout != 30*time.Second || !under.Breaker {
		t.Errorf("route of %q is %+v", "under", under)
	}
	if r := router.Route(request("GET", "/exact"), 0); r.Timeout != 2*time.Second || r.Attempts != 3 {
		t.Errorf("timeout of the rule and attempts of the mesh are wanted, got %+v", r)
	}
	if router.Route(request("GET", "/v1/x"), 0).Breaker {
		t.Error("the rule turns the circuit off")
	}
}

func TestRulesWithTheSameMatchSplitByWeight(t *testing.T) {
	split := func(id, subset string, weight int) TrafficRule {
		return rule(id, func(r *TrafficRule) { r.MatchPath, r.DestinationSubset, r.Weight = "/x", subset, weight })
	}
	router, err := NewRouter(service(split("a", "v1", 90), split("b", "v2", 10), split("c", "v3", 0)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for roll := range uint64(1000) {
		got[router.Route(request("GET", "/x"), roll).Subset]++
	}
	if fmt.Sprint(got) != "map[v1:900 v2:100]" {
		t.Errorf("shares are %v, want 900 and 100", got)
	}
}

func TestAllWeightsZeroLeadToTheServiceItself(t *testing.T) {
	router, _ := NewRouter(service(rule("off", func(r *TrafficRule) { r.Weight, r.DestinationSubset = 0, "v9" })))
	if got := router.Route(request("GET", "/"), 5); got.Subset != "" || got.Rule != "" {
		t.Errorf("got %+v", got)
	}
}

func TestABadRuleIsNamed(t *testing.T) {
	_, err := NewRouter(service(rule("r7", func(r *TrafficRule) { r.MatchHeaders["a"] = "regex:(" })))
	if err == nil || !strings.Contains(err.Error(), `"r7"`) || !strings.Contains(err.Error(), "match_headers.a") {
		t.Errorf("error is %v", err)
	}
}

func TestRoutingAllocatesNothing(t *testing.T) {
	router, _ := NewRouter(service(rule("x", func(r *TrafficRule) {
		r.MatchHeaders["version"], r.MatchPath = "beta", "/a*"
	})))
	req := request("GET", "/abc", "version", "beta")
	if n := testing.AllocsPerRun(100, func() { router.Route(req, 3) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTrafficRuleProblemsNameThePath(t *testing.T) {
	r := TrafficRule{
		MatchHeaders: map[string]string{"bad name": "x"}, MatchPath: "no-slash", MatchMethod: "G T", DestinationService: "UPPER",
		Weight: -1, Timeout: -2, RetryAttempts: 101,
	}
	text := r.Validate().Error()
	for _, want := range []string{"match_headers.bad name:", "match_path:", "match_method:", "destination_service:", "weight: -1 is not in", "timeout: -2 s", "retry_attempts: 101 is not in 1..100"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	good := DefaultTrafficRule()
	if p := good.Validate(); len(p) > 0 {
		t.Errorf("a default rule has %v", p)
	}
}

func ExampleRouter_Route() {
	beta := DefaultTrafficRule()
	beta.ID, beta.MatchHeaders["version"], beta.DestinationSubset = "beta-users", "beta", "v2"
	settings := DefaultSettings()
	name := ServiceName{"default", "user-service"}
	router, err := NewRouter(&Service{Name: name, Rules: []TrafficRule{beta}, Traffic: settings.TrafficFor(name)})
	if err != nil {
		panic(err)
	}
	headers := map[string]string{"version": "beta"}
	route := router.Route(&Request{Method: "GET", Path: "/users/7", Header: func(n string) (string, bool) {
		v, ok := headers[n]
		return v, ok
	}}, 0)
	fmt.Println(route.Rule, route.Service, route.Subset, route.Timeout, route.Attempts)
	// Output: beta-users default/user-service v2 30s 3
}
