package policy

import (
	"fmt"
	"testing"
)

func TestOverlapNamesWhatTwoPatchesSetDifferently(t *testing.T) {
	const file = `{"resilience": {"timeout": {"default": 5}, "retry": {"max_attempts": 3}}, "mtls_mode": "strict",
		"security": {"cors": {"allow_origins": ["a"]}}, "services": {"default/users": {"timeout": 2}, "shop/pay": {}}}`
	for patch, want := range map[string]string{
		`{}`:                        `[]`,
		`{"egress": "deny"}`:        `[]`,
		`{"mtls_mode": "strict"}`:   `[]`,
		`{"mtls_mode": "disabled"}`: `[mtls_mode]`,
		`{"global_timeout": 7, "default_retry_attempts": 3}`:              `[resilience.timeout.default]`,
		`{"global_timeout": 5.0}`:                                         `[]`,
		`{"resilience": {"retry": {"delay": 9}}}`:                         `[]`,
		`{"security": {"cors": {"allow_origins": ["a", "b"]}}}`:           `[security.cors.allow_origins]`,
		`{"services": {"users": {"timeout": 2}}}`:                         `[]`,
		`{"services": {"users.default": {"strategy": "random"}}}`:         `[services.default/users]`,
		`{"services": {"users": null}}`:                                   `[services.default/users]`,
		`{"services": {"users.shop": {"timeout": 9}}}`:                    `[]`,
		`{"services": {"pay.shop": {"timeout": 9}}, "mtls_mode": "none"}`: `[mtls_mode services.shop/pay]`,
	} {
		got, err := Overlap([]byte(file), []byte(patch))
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v; want %s", patch, got, err, want)
		}
	}
	if _, err := Overlap([]byte(file), []byte(`[1]`)); err == nil {
		t.Error("a list is no patch")
	}
}

func TestOfAServicesRetriesTheDelayCanBeItsOwn(t *testing.T) {
	s, err := DefaultSettings().Merge([]byte(`{"resilience": {"retry": {"enabled": false, "delay": 4}},
		"services": {"none": {"retry_delay": 0}, "some": {"retry_delay": 0.5}, "more": {"retry_attempts": 2}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"none": "{1 0s}", "some": "{1 500ms}", "more": "{2 4s}", "other": "{1 4s}"} {
		if got := fmt.Sprint(s.TrafficFor(ServiceName{"default", name}).Retry); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestAPathOfMetricsIsOneThatIsFree(t *testing.T) {
	for path, ok := range map[string]bool{"/metrics": true, "/": true, "/a/b": true, "metrics": false, "/health": false, "/status": false, "/debug/pprof/": false, "/a{b}": false, "/a b": false} {
		_, err := DefaultSettings().Merge(fmt.Appendf(nil, `{"observability": {"metrics": {"path": %q}}}`, path))
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
}
