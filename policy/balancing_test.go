package policy

import (
	"strings"
	"testing"
	"time"
)

// merged gives what a service gets of a patch.
func merged(t *testing.T, patch string) Traffic {
	t.Helper()
	s, err := DefaultSettings().Merge([]byte(patch))
	if err != nil {
		t.Fatal(err)
	}
	return s.TrafficFor(ServiceName{"default", "users"})
}

func TestWhatHoldsForBalancingWhereNothingIsSet(t *testing.T) {
	got := merged(t, `{}`)
	if want := (Balancing{LoadFactor: 1.25, PreferZone: true, Aggression: 1}); got.Balancing != want {
		t.Errorf("balancing is %+v", got.Balancing)
	}
	if got.Outliers.Enabled || got.Overload != (Overload{}) {
		t.Errorf("outliers %+v, overload %+v", got.Outliers, got.Overload)
	}
}

func TestAServiceLaysItsBalancingOverTheMeshs(t *testing.T) {
	const mesh = `"load_balancing": {"locality": "ignore", "slow_start": 30, "slow_start_aggression": 2, "panic_threshold": 50, "hash_load_factor": 2},
		"resilience": {"overload": {"max_concurrent": 100, "max_pending": 10, "max_connections": 50},
			"outlier_detection": {"enabled": true, "max_ejection_percent": 50, "base_ejection_time": 5}}`
	of := merged(t, `{`+mesh+`}`)
	if want := (Balancing{LoadFactor: 2, SlowStart: 30 * time.Second, Aggression: 2, Panic: 50}); of.Balancing != want {
		t.Errorf("the mesh's: %+v", of.Balancing)
	}
	if want := (Overload{100, 10, 50}); of.Overload != want || !of.Outliers.Enabled || of.Outliers.BaseEjection != 5*time.Second || of.Outliers.MaxEjectedPart != 50 {
		t.Errorf("the mesh's: %+v, %+v", of.Overload, of.Outliers)
	}
	own := merged(t, `{`+mesh+`, "services": {"users": {"locality": "prefer", "slow_start": 0, "panic_threshold": 0, "hash_load_factor": 0,
		"max_pending": 0, "outlier_detection": {"max_ejection_percent": 20}}}}`)
	if want := (Balancing{PreferZone: true, Aggression: 2}); own.Balancing != want {
		t.Errorf("its own: %+v", own.Balancing)
	}
	if want := (Overload{100, 0, 50}); own.Overload != want {
		t.Errorf("its own: %+v", own.Overload)
	}
	if o := own.Outliers; !o.Enabled || o.MaxEjectedPart != 20 || o.BaseEjection != 5*time.Second || o.Interval != 10*time.Second {
		t.Errorf("what it leaves out is not the mesh's: %+v", o)
	}
	if got := merged(t, `{`+mesh+`, "services": {"users": {"max_concurrent": 0, "max_connections": 0}}}`); got.Overload != (Overload{Pending: 10}) {
		t.Errorf("bounds cannot be lifted for one service: %+v", got.Overload)
	}
	if off := merged(t, `{`+mesh+`, "services": {"users": {"outlier_detection": {"enabled": false}}}}`); off.Outliers.Enabled {
		t.Error("a service cannot turn the detection off")
	}
}

func TestHashKeysThatAreTaken(t *testing.T) {
	for key, want := range map[string][2]string{
		"": {"path", ""}, "path": {"path", ""}, "source": {"source", ""}, "header:X-User": {"header", "X-User"},
		"cookie:sid": {"cookie", "sid"}, "query:user": {"query", "user"},
	} {
		if got := merged(t, `{"services":{"users":{"hash_key":"`+key+`"}}}`).HashKey; got != key {
			t.Errorf("%q became %q", key, got)
		}
		if kind, name := SplitHashKey(key); kind != want[0] || name != want[1] {
			t.Errorf("%q is %q, %q", key, kind, name)
		}
	}
}

func TestWhatIsWrongWithBalancingIsNamed(t *testing.T) {
	for patch, want := range map[string]string{
		`{"services":{"a":{"hash_key":"header:"}}}`:                       `services.a.hash_key: "header:" is not path, source, header:NAME, cookie:NAME or query:NAME`,
		`{"services":{"a":{"hash_key":"cookie:a b"}}}`:                    `services.a.hash_key:`,
		`{"services":{"a":{"hash_key":"query:a=b"}}}`:                     `services.a.hash_key:`,
		`{"services":{"a":{"locality":"near"}}}`:                          `services.a.locality: "near" is not one of prefer, ignore`,
		`{"services":{"a":{"slow_start":-1}}}`:                            `services.a.slow_start: -1 s is not in 0..`,
		`{"services":{"a":{"panic_threshold":101}}}`:                      `services.a.panic_threshold: 101 is not in 0..100`,
		`{"services":{"a":{"hash_load_factor":1}}}`:                       `services.a.hash_load_factor: 1 is not 0 (no bound) or in 1.01..100`,
		`{"services":{"a":{"max_concurrent":-1}}}`:                        `services.a.max_concurrent: -1 is not in 0..`,
		`{"services":{"a":{"outlier_detection":{"interval":0}}}}`:         `services.a.outlier_detection.interval: 0 s is not in 1..`,
		`{"services":{"a":{"outlier_detection":{"intervall":9}}}}`:        `did you mean "interval"?`,
		`{"load_balancing":{"locality":"far"}}`:                           `load_balancing.locality: "far" is not one of`,
		`{"load_balancing":{"slow_start_aggression":0}}`:                  `load_balancing.slow_start_aggression: 0 is not in`,
		`{"load_balancing":{"panic_threshold":-1}}`:                       `load_balancing.panic_threshold: -1 is not in 0..100`,
		`{"resilience":{"overload":{"max_pending":-1}}}`:                  `resilience.overload.max_pending: -1 is not in 0..`,
		`{"resilience":{"outlier_detection":{"max_ejection_percent":0}}}`: `resilience.outlier_detection.max_ejection_percent: 0 is not in 1..100`,
		`{"resilience":{"outlier_detection":{"minimum_hosts":2}}}`:        `resilience.outlier_detection.minimum_hosts: 2 is not in 3..`,
		`{"resilience":{"outlier_detection":{"latency_factor":1}}}`:       `resilience.outlier_detection.latency_factor: 1 is not in 1.1..1000`,
		`{"resilience":{"outlier_detection":{"max_ejection_time":1}}}`:    `max_ejection_time: 1 s is less than base_ejection_time, 30 s`,
		`{"resilience":{"overload":{"max_pending":5}}}`:                   `resilience.overload.max_pending: has no effect without max_concurrent or max_connections`,
		`{"services":{"a":{"max_pending":5}}}`:                            `services.a.max_pending: has no effect without max_concurrent`,
		// Each is right alone, together they are not.
		`{"services":{"a":{"outlier_detection":{"base_ejection_time":301}}}}`: `services.a.outlier_detection.max_ejection_time: 300 s is less than base_ejection_time, 301 s`,
	} {
		if _, err := DefaultSettings().Merge([]byte(patch)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", patch, err, want)
		}
	}
}
