package policy

import (
	"strings"
	"testing"
	"time"
)

func TestWhatIsWrongWithALimitIsNamed(t *testing.T) {
	for limit, want := range map[string]string{
		`{"limit": 1, "key": "cookie:a"}`:                                                  `key: "cookie:a" is not source, header:NAME or jwt:CLAIM`,
		`{"limit": 1, "key": "source,"}`:                                                   `key: "" is not source`,
		`{"limit": 1, "key": "source,source"}`:                                             `key: "source" is there twice`,
		`{"limit": 1, "key": "header:a,header:b,header:c,header:d,source"}`:                `key: 5 parts are more than 4`,
		`{"limit": 1, "key": "header:a b"}`:                                                `key: "header:a b" is not`,
		`{"limit": 1, "key": "jwt:"}`:                                                      `key: "jwt:" is not`,
		`{"limit": 1, "algorithm": "leaky"}`:                                               `algorithm: "leaky" is not one of sliding_window, token_bucket`,
		`{"limit": 1, "burst": 2}`:                                                         `burst: is of a token_bucket`,
		`{"limit": 1, "burst": -2, "algorithm": "token_bucket"}`:                           `burst: -2 is not in 1..`,
		`{"limit": 1, "window": 86400, "burst": 2, "algorithm": "token_bucket"}`:           `takes more than 24h0m0s to fill`,
		`{"limit": 10000000, "window": 1, "algorithm": "token_bucket"}`:                    `more than the million tokens a second`,
		`{"limit": 1, "scope": "world"}`:                                                   `scope: "world" is not one of proxy, mesh`,
		`{"limit": 1, "name": "a b"}`:                                                      `name: "a b" is not`,
		`{"limit": 1, "window": 0.01}`:                                                     `window: 0.01 s is not in`,
		`{"limit": 1, "windows": 1}`:                                                       `did you mean "window"?`,
		`{"limit": 1, "name": "` + strings.Repeat("a", 64) + `"}`:                          `is not 1 to 63`,
		`{"limit": 1}, "rate_limits": [{"limit": 0}]`:                                      `rate_limits[0].limit: 0 is not in 1..`,
		`{"limit": 1}, "rate_limits": [{"limit": 1, "name": "default"}]`:                   `rate_limits[0].name: "default" is the name of another limit`,
		`null, "rate_limits": [{"limit": 1, "name": "a"}, {"limit": 2, "name": "a"}]`:      `rate_limits[1].name: "a" is the name of another limit`,
		`null, "rate_limits": [` + strings.Repeat(`{"limit": 1},`, 16) + `{"limit": 1}]`:   `rate_limits: 17 are more than 16`,
		`null, "rate_limits": {"limit": 1}`:                                                `rate_limits: {"limit":1} is not a list`,
		`null, "rate_limits": [{"limit": 1, "name": "default-2"}, {"limit": 1}]`:           `rate_limits[1].name: "default-2" is the name of another limit`,
		`{"limit": 2, "key": "jwt:a,b"}`:                                                   `key: "b" is not`,
		`{"limit": 2, "key": "header:` + strings.Repeat("a", 10) + `,header:"}`:            `key: "header:" is not`,
		`{"limit": 2, "window": 1, "algorithm": "token_bucket", "burst": 100000000}`:       `burst: 100000000 is not in`,
		`{"limit": 2, "window": 86400, "algorithm": "token_bucket", "burst": 10000000}`:    `to fill`,
		`{"limit": 2, "window": 60, "algorithm": "sliding_window", "burst": 3, "name":""}`: `burst: is of a token_bucket`,
	} {
		limit = strings.Replace(limit, `null, `, ``, 1)
		patch := `{"services": {"a": {"rate_limit": ` + limit + `}}}`
		if strings.HasPrefix(limit, `"rate_limits"`) {
			patch = `{"services": {"a": {` + limit + `}}}`
		}
		if _, err := DefaultSettings().Merge([]byte(patch)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", patch, err, want)
		}
	}
}

func TestAServiceHasTheMeshsLimitAndItsOwn(t *testing.T) {
	s, err := DefaultSettings().Merge([]byte(`{"security": {"rate_limiting": {"enabled": true, "default_limit": 7, "window": 30}}, "services": {
		"a": {"rate_limits": [{"limit": 2, "window": 1, "algorithm": "token_bucket"}, {"limit": 3, "key": "source,header:X-T", "scope": "mesh"}]},
		"b": {"rate_limit": {"limit": 0}, "rate_limits": [{"limit": 5, "key": "jwt:https://a/b"}]},
		"c": {"rate_limit": {"limit": 4, "name": "most"}, "rate_limits": [{"limit": 5}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for service, want := range map[string][]RateLimit{
		"x": {{Limit: 7, Window: 30 * time.Second}},
		"a": {{Limit: 7, Window: 30 * time.Second}, {Limit: 2, Window: time.Second, Burst: 2}, {Limit: 3, Window: 30 * time.Second, Key: "source,header:X-T", Name: "default-2", Mesh: true}},
		"b": {{Limit: 5, Window: 30 * time.Second, Key: "jwt:https://a/b", Name: "default-2"}},
		"c": {{Limit: 4, Window: 30 * time.Second, Name: "most"}, {Limit: 5, Window: 30 * time.Second, Name: "default-2"}},
	} {
		traffic := s.TrafficFor(ServiceName{"default", service})
		got := traffic.Limits()
		if len(got) != len(want) {
			t.Errorf("%s: %+v", service, got)
			continue
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: limit %d is %+v, want %+v", service, i, got[i], want[i])
			}
		}
	}
}

func TestWhoCountsALimit(t *testing.T) {
	for key, want := range map[string][2]bool{ // by the receiver, with a token
		"": {}, "header:source": {}, "header:jwt": {}, "source": {true, false}, "jwt:sub": {true, true},
		"header:a,source": {true, false}, "header:a,jwt:b": {true, true}, "header:a,header:b": {},
	} {
		l := RateLimit{Limit: 1, Key: key}
		if got := [2]bool{l.CountedByReceiver(), l.NeedsToken()}; got != want {
			t.Errorf("%q: %v", key, got)
		}
	}
}

func TestALimitOfARule(t *testing.T) {
	r := DefaultTrafficRule()
	r.ID, r.RateLimit = "search", &ServiceLimit{Limit: 3}
	if p := r.Validate(); len(p) > 0 {
		t.Fatal(p)
	}
	rules := []TrafficRule{r}
	with := WithWindows(rules, time.Minute)
	want := RateLimit{Limit: 3, Window: time.Minute, Name: "search", Rule: "search"}
	if got := with[0].Limit(0); got != want || rules[0].RateLimit.Window != 0 {
		t.Errorf("%+v, and of the rule as given %+v", got, rules[0].RateLimit)
	}
	if ref := want.Ref(ServiceName{"default", "web"}); ref != (LimitRef{ServiceName{"default", "web"}, "search", "search"}) {
		t.Errorf("%+v", ref)
	}
	if again := WithWindows(with, time.Hour); &again[0] != &with[0] {
		t.Error("rules that need nothing are copied")
	}
	if LimitsByReceiver(rules) {
		t.Error("a limit without a key is counted by the callers' proxies")
	}
	r.RateLimit = &ServiceLimit{Limit: 0, Key: "source"}
	r.DestinationService = "other"
	p := r.Validate()
	if text := p.Error(); len(p) != 2 || !strings.Contains(text, "rate_limit.limit: 0 is not in 1..") || !strings.Contains(text, "rate_limit.key: \"source\" is counted by the proxies of the service itself") {
		t.Errorf("%v", p)
	}
	if !LimitsByReceiver([]TrafficRule{r}) {
		t.Error("a limit by caller is counted by the receiver")
	}
}
