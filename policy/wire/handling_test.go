package wire

import (
	"reflect"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

func ptr[T any](v T) *T { return &v }

// wholeRule has every field set; not all of them go together in one rule.
func wholeRule() policy.TrafficRule {
	return policy.TrafficRule{
		ID: "r", MatchHeaders: map[string]string{"version": "not:beta"}, MatchPath: "/a*", MatchMethod: "GET,HEAD",
		MatchHost: "*.example.com", MatchQuery: map[string]string{"q": "present:"},
		DestinationService: "other", DestinationSubset: "v2", Weight: 7, Timeout: 1.5, RetryAttempts: 2, CircuitBreaker: true,
		RateLimit: &policy.ServiceLimit{Name: "a", Limit: 3, Window: 1, Key: "source", Algorithm: "token_bucket", Burst: 4, Scope: "mesh"},
		Handling: policy.Handling{
			Rewrite:         &policy.Rewrite{PathPrefix: "/b", Path: "/c", Host: "d"},
			RequestHeaders:  &policy.HeaderChanges{Remove: []string{"a"}, Set: map[string]string{"b": "c"}, Add: map[string]string{"d": "e"}},
			ResponseHeaders: &policy.HeaderChanges{Remove: []string{"f"}, Set: map[string]string{"g": "h"}, Add: map[string]string{"i": "j"}},
			Redirect:        &policy.Redirect{Status: 308, Scheme: "https", Host: "k", Path: "/l", PathPrefix: "/m"},
			DirectResponse:  &policy.DirectResponse{Status: 200, Body: "n", ContentType: "text/html"},
			Mirror:          &policy.Mirror{Service: "o", Subset: "p", Percent: ptr(0.0)},
			Fault: &policy.Fault{
				Delay: &policy.FaultDelay{Seconds: 0.5, Percent: ptr(1.5)}, Header: "q",
				Abort: &policy.FaultAbort{Status: 503, GRPCStatus: 14, Percent: ptr(100.0)},
			},
			PerTryTimeout: 1.25, IdleTimeout: 60, RetryOn: []string{"reset", "retriable-status-codes"}, RetryStatusCodes: []int{409, 429},
			RetryDelay: ptr(0.0), RetryMaxDelay: 3, Hedge: &policy.Hedge{After: 0.5, Percentile: 95, Percent: ptr(5.0)},
		},
	}
}

func TestAWholeRuleArrivesAsItWasSent(t *testing.T) {
	want := wholeRule()
	if field := zeroField(reflect.ValueOf(want), ""); field != "" {
		t.Fatalf("the example lacks %s", field)
	}
	got := throughWire(t, fromTrafficRule(&want), &TrafficRule{}).policy()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// zeroField names a field that is not set, down to the leaves.
func zeroField(v reflect.Value, path string) string {
	if v.Kind() == reflect.Pointer && !v.IsNil() && v.Elem().Kind() == reflect.Struct {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		if v.IsZero() {
			return path
		}
		return ""
	}
	for i := range v.NumField() {
		if field := zeroField(v.Field(i), path+"."+v.Type().Field(i).Name); field != "" {
			return field
		}
	}
	return ""
}

func TestAnEmptyRuleArrivesAsItWasSent(t *testing.T) {
	want := policy.TrafficRule{ID: "r", Weight: 100}
	if got := throughWire(t, fromTrafficRule(&want), &TrafficRule{}).policy(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestAffinityArrivesAsItWasSent(t *testing.T) {
	want := exampleService()
	want.Traffic.Affinity = policy.Affinity{Cookie: "at", TTL: time.Hour, Path: "/a"}
	got, err := throughWire(t, FromService(want), &Service{}).Policy()
	if err != nil {
		t.Fatal(err)
	}
	if got.Traffic.Affinity != want.Traffic.Affinity {
		t.Errorf("got %+v", got.Traffic.Affinity)
	}
}

// A proxy takes no rule that its control plane would not have taken.
func TestHandlingThatCannotBeIsRefused(t *testing.T) {
	bad := FromService(exampleService())
	bad.Rules[0].RequestHeaders = &HeaderChanges{Set: map[string]string{"X-Source-Service": "admin"}}
	if _, err := bad.Policy(); err == nil {
		t.Error("a rule that forges who calls is taken")
	}
}
