package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func planOf(t testing.TB, change func(*TrafficRule)) *Plan {
	t.Helper()
	r := rule("r", change)
	if p := r.Validate(); len(p) > 0 {
		t.Fatal(p)
	}
	router, err := NewRouter(service(r))
	if err != nil {
		t.Fatal(err)
	}
	return router.groups[0].routes[0].Plan
}

func TestARuleThatOnlyRoutesHasNoPlan(t *testing.T) {
	if p := planOf(t, func(r *TrafficRule) { r.DestinationSubset, r.RetryAttempts, r.MatchHost = "v2", 2, "a" }); p != nil {
		t.Errorf("got %+v", p)
	}
}

func TestPathsAreRewritten(t *testing.T) {
	for _, c := range []struct {
		match        string
		rewrite      Rewrite
		target, want string
	}{
		{"/api/*", Rewrite{PathPrefix: "/v2"}, "/api/users?a=b", "/v2/users?a=b"},
		{"/api/*", Rewrite{PathPrefix: "/v2/"}, "/api/users", "/v2/users"},
		{"/api*", Rewrite{PathPrefix: "/v2"}, "/api/users", "/v2/users"},
		{"/api*", Rewrite{PathPrefix: "/v2"}, "/api", "/v2"},
		{"/api*", Rewrite{PathPrefix: "/"}, "/api", "/"},
		{"/api*", Rewrite{PathPrefix: "/"}, "/api?x", "/?x"},
		{"/api/*", Rewrite{PathPrefix: "/"}, "/api/users", "/users"}, // not //users
		{"/*", Rewrite{PathPrefix: "/v2"}, "/users", "/v2/users"},
		{"/api*", Rewrite{PathPrefix: "/v2"}, "/apis", "/v2s"}, // what the rule says
		{"/a", Rewrite{Path: "/b"}, "/a?q", "/b?q"},
		{"", Rewrite{Path: "/$1"}, "/a", "/$1"}, // no regex, no groups
		{"regex:/v1/(.*)", Rewrite{Path: "/v2/$1"}, "/v1/a/b?q", "/v2/a/b?q"},
		{"regex:/(?P<kind>[a-z]+)/([0-9]+)", Rewrite{Path: "/$2/${kind}s/$$"}, "/user/7", "/7/users/$"},
		{"regex:/strip(.*)", Rewrite{Path: "$1"}, "/strip", "/"},
		{"regex:/strip(.*)", Rewrite{Path: "$1"}, "/stripped", "/ped"},
		{"", Rewrite{Path: "/b"}, "*", "*"},
	} {
		p := planOf(t, func(r *TrafficRule) { r.MatchPath, r.Rewrite = c.match, &c.rewrite })
		if got := string(p.AppendTarget([]byte("before"), c.target)); got != "before"+c.want {
			t.Errorf("%s %+v: %s becomes %q, want %q", c.match, c.rewrite, c.target, got, "before"+c.want)
		}
	}
}

func TestWhereARedirectLeads(t *testing.T) {
	for _, c := range []struct {
		match        string
		redirect     Redirect
		host, target string
		want         string
	}{
		{"", Redirect{Scheme: "https"}, "a.test:8080", "/x?y", "https://a.test/x?y"},
		{"", Redirect{Scheme: "https"}, "[::1]:80", "/", "https://[::1]/"},
		{"", Redirect{Scheme: "https"}, "", "/x", "/x"}, // HTTP/1.0 without Host
		{"", Redirect{Host: "b.test"}, "a.test", "*", "//b.test/"},
		{"", Redirect{Path: "/x"}, "a.test", "*", "/x"},
		{"", Redirect{Host: "b.test:1"}, "a.test", "/x", "//b.test:1/x"}, // whatever scheme the caller used
		{"", Redirect{Scheme: "http", Host: "b.test", Path: "/new"}, "a.test", "/old?q", "http://b.test/new?q"},
		{"/old/*", Redirect{PathPrefix: "/new"}, "a.test", "/old/x?q", "/new/x?q"},
		{"regex:/u/(.*)", Redirect{Path: "/users/$1"}, "a.test", "/u/7", "/users/7"},
		// A path of two slashes would lead to a host of the caller's choice.
		{"regex:/go(.*)", Redirect{Path: "$1"}, "a.test", "/go//evil.test/x", "/evil.test/x"},
		{"/go*", Redirect{PathPrefix: "/"}, "a.test", "/go//evil.test", "/evil.test"},
		{"/go*", Redirect{PathPrefix: "/"}, "a.test", `/go/\/\evil.test`, `/evil.test`},
	} {
		p := planOf(t, func(r *TrafficRule) { r.MatchPath, r.Redirect = c.match, &c.redirect })
		if got := string(p.AppendLocation(nil, c.host, c.target)); got != c.want {
			t.Errorf("%+v: %s%s leads to %q, want %q", c.redirect, c.host, c.target, got, c.want)
		}
	}
}

func TestHeaderChangesAreInOrder(t *testing.T) {
	p := planOf(t, func(r *TrafficRule) {
		r.RequestHeaders = &HeaderChanges{Add: map[string]string{"z": "1", "y": "2"}, Set: map[string]string{"x": "3"}, Remove: []string{"w"}}
	})
	if got := fmt.Sprint(p.Request); got != "[{0 w } {1 x 3} {2 y 2} {2 z 1}]" {
		t.Errorf("got %s", got)
	}
}

func TestAShareTakesItsPart(t *testing.T) {
	for _, percent := range []float64{0, 0.5, 10, 50, 99.9, 100} {
		s, taken := chance(&percent), 0
		rnd := rand.New(rand.NewPCG(1, 2))
		const many = 100_000
		for range many {
			if s.Takes(rnd.Uint64()) {
				taken++
			}
		}
		off := math.Abs(float64(taken) - many*percent/100)
		if off > 5*math.Sqrt(many*percent/100*(1-percent/100))+1e-9 {
			t.Errorf("%v %%: %d of %d", percent, taken, many)
		}
	}
	if all := chance(nil); !all.Takes(math.MaxUint64) || !all.Takes(0) {
		t.Error("left out is all")
	}
	if full := chance(ptr(100.0)); !full.Takes(math.MaxUint64) {
		t.Error("100 % is all")
	}
	if none := chance(ptr(0.0)); none.Takes(0) {
		t.Error("0 % is none")
	}
}

func TestWhatIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		on      string
		answers []int
		grpc    []string
		silence string // "" never, "dial" without a connection, "both"
	}{
		{"", []int{500, 501, 503, 599}, nil, "both"}, // only a delay is given
		{"5xx", []int{500, 503, 599}, nil, "both"},
		{"gateway-error", []int{502, 503, 504}, nil, "both"},
		{"connect-failure", nil, nil, "dial"},
		{"reset", nil, nil, "both"},
		{"retriable-status-codes", []int{409, 503}, nil, ""},
		{"cancelled", nil, []string{"1"}, ""},
		{"deadline-exceeded", nil, []string{"4"}, ""},
		{"resource-exhausted", nil, []string{"8"}, ""},
		{"internal", nil, []string{"13"}, ""},
		{"unavailable", nil, []string{"14"}, ""},
		{"connect-failure,unavailable,retriable-status-codes", []int{409, 503}, []string{"14"}, "dial"},
	} {
		p := planOf(t, func(r *TrafficRule) {
			if r.RetryMaxDelay = 1; c.on != "" {
				r.RetryOn = strings.Split(c.on, ",")
			}
			if strings.Contains(c.on, "codes") {
				r.RetryStatusCodes = []int{409, 503}
			}
		})
		var answers []int
		for _, status := range []int{200, 404, 409, 429, 500, 501, 502, 503, 504, 599, 600} {
			if p.Retries.Answer(status) {
				answers = append(answers, status)
			}
		}
		var grpc []string
		for _, status := range []string{"", "0", "1", "2", "4", "8", "13", "14", "16"} {
			if p.Retries.GRPC(status) {
				grpc = append(grpc, status)
			}
		}
		silence := map[[2]bool]string{{true, true}: "both", {true, false}: "dial", {false, false}: ""}[[2]bool{p.Retries.NoAnswer(false), p.Retries.NoAnswer(true)}]
		for _, want := range c.answers {
			if !p.Retries.Answer(want) {
				t.Errorf("%q: %d is not tried again", c.on, want)
			}
		}
		if c.on != "" && c.on != "5xx" && fmt.Sprint(answers) != fmt.Sprint(c.answers) || fmt.Sprint(grpc) != fmt.Sprint(c.grpc) || silence != c.silence {
			t.Errorf("%q: %v, gRPC %v, without an answer %q", c.on, answers, grpc, silence)
		}
	}
}

func TestTheTimesOfAPlan(t *testing.T) {
	p := planOf(t, func(r *TrafficRule) { r.Timeout, r.PerTryTimeout, r.IdleTimeout = 3, 1.5, 60 })
	if !p.Bounded || p.PerTry != 1500*time.Millisecond || p.Idle != time.Minute || p.Retries != nil {
		t.Errorf("got %+v", p)
	}
	p = planOf(t, func(r *TrafficRule) { r.RetryOn = []string{"reset"} })
	if p.Bounded || p.Delay != time.Second || p.MaxDelay != 10*time.Second {
		t.Errorf("got %+v", p)
	}
	if p = planOf(t, func(r *TrafficRule) { r.RetryDelay, r.RetryMaxDelay = ptr(0.0), 0.25 }); p.Delay != 0 || p.MaxDelay != 250*time.Millisecond {
		t.Errorf("got %+v", p)
	}
}

// FuzzRewrite: whatever a rule that is taken makes of a path can be a request
// target, and a redirect without a host never names one.
func FuzzRewrite(f *testing.F) {
	f.Add("/api/*", "/v2", "", "/api/users?x")
	f.Add("regex:/(.*)", "", "$1", "//evil.test")
	f.Fuzz(func(t *testing.T, match, prefix, path, target string) {
		if !strings.HasPrefix(target, "/") || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }) {
			return
		}
		r := rule("r", func(r *TrafficRule) { r.MatchPath, r.Redirect = match, &Redirect{Path: path, PathPrefix: prefix} })
		if len(r.Validate()) > 0 {
			return
		}
		router, err := NewRouter(service(r))
		if err != nil {
			t.Fatal(err)
		}
		plan := router.Route(request("GET", target), 0).Plan
		if plan == nil {
			return
		}
		got := string(plan.AppendTarget(nil, target))
		if !strings.HasPrefix(got, "/") || strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }) {
			t.Fatalf("%q becomes %q", target, got)
		}
		if to := string(plan.AppendLocation(nil, "a.test", target)); strings.HasPrefix(to, "//") || strings.HasPrefix(to, `/\`) || !strings.HasPrefix(to, "/") {
			t.Fatalf("%q leads to %q", target, to)
		}
	})
}
