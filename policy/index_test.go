package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// firstRule is what Route is to do, written plainly: the rules one after the
// other.
func firstRule(rules []TrafficRule, req *Request) string {
	path, _, _ := strings.Cut(req.Path, "?")
	for _, r := range rules {
		ok := r.MatchMethod == "" || r.MatchMethod == "*" || r.MatchMethod == req.Method
		if prefix, isPrefix := strings.CutSuffix(r.MatchPath, "*"); isPrefix && !strings.HasPrefix(r.MatchPath, "regex:") {
			ok = ok && strings.HasPrefix(path, prefix)
		} else if r.MatchPath != "" {
			ok = ok && plainMatch(r.MatchPath, path)
		}
		for name, want := range r.MatchHeaders {
			v, there := req.Header(name)
			if prefix, isPrefix := strings.CutPrefix(want, "prefix:"); isPrefix {
				ok = ok && there && strings.HasPrefix(v, prefix)
			} else {
				ok = ok && there && (want == "present:" || plainMatch(want, v))
			}
		}
		if ok {
			return r.ID
		}
	}
	return ""
}

func plainMatch(want, value string) bool {
	if re, isRegex := strings.CutPrefix(want, "regex:"); isRegex {
		return regexp.MustCompile(`\A(?:` + re + `)\z`).MatchString(value)
	}
	return value == want
}

var (
	somePaths = []string{
		"", "", "/", "/*", "/a", "/a*", "/ab", "/ab*", "/abc*", "/b*", "/b/c", "/b/*", "/a/b/c", "/a/b*",
		"regex:/a.*", "regex:/(a|b)", "regex:/ab?c?", "regex:(?i)/AB", "regex:^/b$", "regex:.*c", "regex:/a|/b",
	}
	someHeaders = []string{"x", "X", "y", "tenant"}
	someValues  = []string{"1", "2", "3", "4", "", "prefix:1", "prefix:", "regex:[12]+", "present:"}
	asked       = []string{"/", "/a", "/ab", "/abc", "/abcd", "/b", "/b/c", "/a/b/c", "/a/b", "/A", "/AB", "", "*", "/a?x=/b", "/b\xff", "//"}
)

func one[T any](rnd *rand.Rand, of []T) T { return of[rnd.IntN(len(of))] }

// someRules makes n rules out of few words, so that they meet.
func someRules(rnd *rand.Rand, n int) []TrafficRule {
	rules := make([]TrafficRule, n)
	for i := range rules {
		rules[i] = rule(fmt.Sprint("r", i), func(r *TrafficRule) {
			r.MatchPath, r.MatchMethod = one(rnd, somePaths), one(rnd, []string{"", "", "", "*", "GET", "POST"})
			for range rnd.IntN(3) {
				r.MatchHeaders[one(rnd, someHeaders)] = one(rnd, someValues)
			}
		})
	}
	return rules
}

func someRequest(rnd *rand.Rand) *Request {
	var header []string
	for range rnd.IntN(4) {
		header = append(header, one(rnd, someHeaders), one(rnd, []string{"1", "2", "3", "4", "11", ""}))
	}
	return request(one(rnd, []string{"GET", "POST", "PUT"}), one(rnd, asked), header...)
}

// Whatever rules are listed by, the first that matches decides.
func TestTheIndexKeepsTheOrderOfRules(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	decided := map[string]bool{}
	for range 150 {
		rules := someRules(rnd, rnd.IntN(40))
		router, err := NewRouter(service(rules...))
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			req := someRequest(rnd)
			got, want := router.Route(req, 0).Rule, firstRule(rules, req)
			if got != want {
				t.Fatalf("%s %q: rule %q decided, want %q, of %+v", req.Method, req.Path, got, want, rules)
			}
			decided[want] = true
		}
	}
	if len(decided) < 20 {
		t.Errorf("only %v decided: the cases are too tame", slices.Sorted(maps.Keys(decided)))
	}
}

// FuzzIndex: no path and no header finds a way past an earlier rule.
func FuzzIndex(f *testing.F) {
	f.Add(uint64(1), "GET", "/abc?x", "1")
	f.Add(uint64(7), "POST", "/a\x00*", "prefix:1")
	f.Fuzz(func(t *testing.T, seed uint64, method, path, value string) {
		rules := someRules(rand.New(rand.NewPCG(seed, 0)), 30)
		router, err := NewRouter(service(rules...))
		if err != nil {
			t.Fatal(err)
		}
		req := request(method, path, "x", value, "tenant", value)
		if got, want := router.Route(req, 0).Rule, firstRule(rules, req); got != want {
			t.Fatalf("rule %q decided, want %q, of %+v", got, want, rules)
		}
	})
}

// What a request costs is what it looks at: of many rules by path none that has
// another path, and of headers only those that tell rules apart.
func TestARequestLooksAtFewOfManyRules(t *testing.T) {
	var rules []TrafficRule
	for i := range 1000 {
		rules = append(rules, rule(fmt.Sprint("r", i), func(r *TrafficRule) {
			r.MatchPath = fmt.Sprint("/", i)
			r.MatchHeaders[fmt.Sprint("x-", i)] = "1"
		}))
	}
	router, err := NewRouter(service(rules...))
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	req := &Request{Method: "GET", Path: "/999", Header: func(name string) (string, bool) {
		looks++
		return "1", name == "x-999"
	}}
	if got := router.Route(req, 0).Rule; got != "r999" || looks != 1 {
		t.Errorf("rule %q decided after a look at %d headers, want r999 after 1", got, looks)
	}
}

func TestSharesAreByWeightHoweverManyTheyAre(t *testing.T) {
	var rules []TrafficRule
	for i := range 30 {
		rules = append(rules, rule(fmt.Sprint("r", i), func(r *TrafficRule) { r.MatchPath, r.Weight = "/x", i%3 }))
	}
	router, err := NewRouter(service(rules...))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for roll := range uint64(300) {
		got[router.Route(request("GET", "/x"), roll).Rule]++
	}
	for i, r := range rules {
		if want := 10 * (i % 3); got[r.ID] != want {
			t.Errorf("rule %s of weight %d got %d of 300, want %d", r.ID, r.Weight, got[r.ID], want)
		}
	}
}
