package policy

import (
	"strings"
	"testing"
)

// matched tells whether a rule matches a request.
func matched(t *testing.T, r TrafficRule, req *Request) bool {
	t.Helper()
	if p := r.Validate(); len(p) > 0 {
		t.Fatalf("%+v: %v", r, p)
	}
	m, err := newMatcher(&r)
	if err != nil {
		t.Fatal(err)
	}
	path, query, _ := strings.Cut(req.Path, "?")
	return m.matches(req, path, query)
}

func TestWhatARuleMatchesOn(t *testing.T) {
	host := func(h string) *Request { r := request("GET", "/"); r.Host = h; return r }
	query := func(q string) *Request { return request("GET", "/a?"+q) }
	for _, c := range []struct {
		name    string
		rule    func(*TrafficRule)
		yes, no []*Request
	}{
		{"several methods", func(r *TrafficRule) { r.MatchMethod = "GET, HEAD" },
			[]*Request{request("GET", "/"), request("HEAD", "/")}, []*Request{request("POST", "/"), request("get", "/")}},
		{"any method among them", func(r *TrafficRule) { r.MatchMethod = "GET,*" }, []*Request{request("BREW", "/")}, nil},
		{"host", func(r *TrafficRule) { r.MatchHost = "Shop.example.com" },
			[]*Request{host("shop.example.com"), host("SHOP.example.com:8080")}, []*Request{host("a.shop.example.com"), host("")}},
		{"host and below", func(r *TrafficRule) { r.MatchHost = "*.example.com" },
			[]*Request{host("a.example.com:1"), host("a.b.EXAMPLE.com")}, []*Request{host("example.com"), host("badexample.com")}},
		{"host by regex", func(r *TrafficRule) { r.MatchHost = "regex:(a|b)\\.test" },
			[]*Request{host("A.test"), host("b.test:80")}, []*Request{host("c.test"), host("a.test.evil")}},
		{"host that is an IPv6 address", func(r *TrafficRule) { r.MatchHost = "[::1]" }, []*Request{host("[::1]:80"), host("[::1]")}, []*Request{host("[::2]")}},
		{"query", func(r *TrafficRule) { r.MatchQuery = map[string]string{"v": "2"} },
			[]*Request{query("v=2"), query("x=1&v=2"), query("v=2&v=3")}, []*Request{query("v=3&v=2"), query("vv=2"), query("v"), query(""), request("GET", "/v=2")}},
		{"query is decoded once", func(r *TrafficRule) { r.MatchQuery = map[string]string{"a b": "c%d"} },
			[]*Request{query("a+b=c%25d"), query("a%20b=c%25d")}, []*Request{query("a+b=c%2525d"), query("a%2520b=c%25d")}},
		{"query badly encoded stands as it is", func(r *TrafficRule) { r.MatchQuery = map[string]string{"a": "%zz"} }, []*Request{query("a=%zz")}, nil},
		{"query present", func(r *TrafficRule) { r.MatchQuery = map[string]string{"debug": "present:"} },
			[]*Request{query("debug"), query("debug=")}, []*Request{query("nodebug=1")}},
		{"suffix", func(r *TrafficRule) { r.MatchHeaders = map[string]string{"Origin": "suffix:.example.com"} },
			[]*Request{request("GET", "/", "Origin", "https://a.example.com")}, []*Request{request("GET", "/", "Origin", "https://example.com.evil")}},
		{"not a value", func(r *TrafficRule) { r.MatchHeaders = map[string]string{"x": "not:beta"} },
			[]*Request{request("GET", "/", "x", "stable"), request("GET", "/")}, []*Request{request("GET", "/", "x", "beta")}},
		{"not there", func(r *TrafficRule) { r.MatchHeaders = map[string]string{"x": "not:present:"} },
			[]*Request{request("GET", "/")}, []*Request{request("GET", "/", "x", "")}},
		{"not a regex", func(r *TrafficRule) { r.MatchQuery = map[string]string{"n": "not:regex:[0-9]+"} },
			[]*Request{query("n=a"), query("")}, []*Request{query("n=17")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rule("r", c.rule)
			for _, req := range c.yes {
				if !matched(t, r, req) {
					t.Errorf("does not match %s %s at %q", req.Method, req.Path, req.Host)
				}
			}
			for _, req := range c.no {
				if matched(t, r, req) {
					t.Errorf("matches %s %s at %q", req.Method, req.Path, req.Host)
				}
			}
		})
	}
}

// A header that is to be absent must not be what a group of rules is looked up by.
func TestManyRulesWithNot(t *testing.T) {
	var rules []TrafficRule
	for range 20 {
		rules = append(rules, rule("never", func(r *TrafficRule) { r.MatchHeaders = map[string]string{"x": "y", "z": "not:a"} }))
	}
	for _, v := range []string{"b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		rules = append(rules, rule(v, func(r *TrafficRule) { r.MatchHeaders = map[string]string{"v": "not:" + v, "p": v} }))
	}
	router, err := NewRouter(service(rules...))
	if err != nil {
		t.Fatal(err)
	}
	if got := router.Route(request("GET", "/", "p", "d"), 0).Rule; got != "d" {
		t.Errorf("got %q", got)
	}
	if got := router.Route(request("GET", "/", "p", "d", "v", "d"), 0).Rule; got != "" {
		t.Errorf("got %q", got)
	}
}

func TestTheSameMatchIsASplitHoweverItIsWritten(t *testing.T) {
	a := rule("a", func(r *TrafficRule) {
		r.MatchMethod, r.MatchHost = "GET,HEAD", "A.test"
		r.MatchHeaders, r.MatchQuery = map[string]string{"X-Y": "1"}, map[string]string{"q": "1"}
	})
	b := rule("b", func(r *TrafficRule) {
		r.MatchMethod, r.MatchHost = "HEAD, GET", "a.test"
		r.MatchHeaders, r.MatchQuery = map[string]string{"x-y": "1"}, map[string]string{"q": "1"}
	})
	if matchKey(&a) != matchKey(&b) {
		t.Error("two matches of the same requests are not the same")
	}
	seen := map[string]string{}
	for name, change := range map[string]func(*TrafficRule){
		"none": func(*TrafficRule) {}, "query": func(r *TrafficRule) { r.MatchQuery = map[string]string{"a": "b"} },
		"header":  func(r *TrafficRule) { r.MatchHeaders = map[string]string{"a": "b"} },
		"host":    func(r *TrafficRule) { r.MatchHost = "a" },
		"method":  func(r *TrafficRule) { r.MatchMethod = "a" },
		"path":    func(r *TrafficRule) { r.MatchPath = "/a" },
		"joined":  func(r *TrafficRule) { r.MatchQuery = map[string]string{"a1:b": ""} },
		"joined2": func(r *TrafficRule) { r.MatchQuery = map[string]string{"a": "1:b"} },
	} {
		r := rule("r", change)
		if other, taken := seen[matchKey(&r)]; taken {
			t.Errorf("%s and %s count as the same", name, other)
		}
		seen[matchKey(&r)] = name
	}
}

func TestAMatchOnTheQueryAllocatesNothing(t *testing.T) {
	router, err := NewRouter(service(rule("q", func(r *TrafficRule) {
		r.MatchQuery, r.MatchHost, r.MatchMethod = map[string]string{"version": "2"}, "*.example.com", "GET,HEAD"
	})))
	if err != nil {
		t.Fatal(err)
	}
	req := request("GET", "/a?x=1&version=2")
	req.Host = "shop.example.com:80"
	if n := testing.AllocsPerRun(1000, func() {
		if route := router.Route(req, 1); route.Rule != "q" {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
