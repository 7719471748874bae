package policy

import (
	"strings"
	"testing"
)

func ptr[T any](v T) *T { return &v }

// What is wrong is named by its path, with what to do about it.
func TestHandlingThatCannotBeIsRefusedByName(t *testing.T) {
	for _, c := range []struct {
		name string
		rule func(*TrafficRule)
		want string // "" is nothing wrong
	}{
		{"methods", func(r *TrafficRule) { r.MatchMethod = "GET,P T" }, `match_method: "P T" is not a method`},
		{"no method", func(r *TrafficRule) { r.MatchMethod = "GET," }, `match_method: "" is not a method`},
		{"host with a path", func(r *TrafficRule) { r.MatchHost = "a/b" }, `match_host: "a/b" is not a host`},
		{"star inside a host", func(r *TrafficRule) { r.MatchHost = "a.*.b" }, `match_host: "a.*.b": a * stands for the first labels only`},
		{"star without a dot", func(r *TrafficRule) { r.MatchHost = "*a" }, `match_host: "*a": a *`},
		{"host by a bad regex", func(r *TrafficRule) { r.MatchHost = "regex:(" }, "match_host: error parsing regexp"},
		{"query by a bad regex", func(r *TrafficRule) { r.MatchQuery = map[string]string{"q": "not:regex:("} }, "match_query.q: error parsing regexp"},
		{"parameter without a name", func(r *TrafficRule) { r.MatchQuery = map[string]string{"": "x"} }, `match_query: "" is not the name of a parameter`},
		{"twice not", func(r *TrafficRule) { r.MatchHeaders = map[string]string{"a": "not:not:b"} }, "match_headers.a: not: stands once"},

		{"rewrite of nothing", func(r *TrafficRule) { r.Rewrite = &Rewrite{} }, "rewrite: changes nothing"},
		{"prefix of what", func(r *TrafficRule) { r.Rewrite = &Rewrite{PathPrefix: "/v2"} }, "rewrite.path_prefix: needs a match_path of the form /prefix*"},
		{"prefix of a regex", func(r *TrafficRule) { r.MatchPath, r.Rewrite = "regex:/a.*", &Rewrite{PathPrefix: "/v2"} }, "rewrite.path_prefix: needs a match_path"},
		{"prefix that is no path", func(r *TrafficRule) { r.MatchPath, r.Rewrite = "/a*", &Rewrite{PathPrefix: "v2"} }, `rewrite.path_prefix: "v2" is not a path`},
		{"both", func(r *TrafficRule) { r.MatchPath, r.Rewrite = "/a*", &Rewrite{PathPrefix: "/", Path: "/"} }, "rewrite.path_prefix: give path or path_prefix"},
		{"path with a query", func(r *TrafficRule) { r.Rewrite = &Rewrite{Path: "/a?b"} }, `rewrite.path: "/a?b" is not a path`},
		{"unknown group", func(r *TrafficRule) { r.MatchPath, r.Rewrite = "regex:/(a)", &Rewrite{Path: "/$2"} }, "rewrite.path: $2 names no group of match_path"},
		{"a group that runs on", func(r *TrafficRule) { r.MatchPath, r.Rewrite = "regex:/(a)", &Rewrite{Path: "/$1_x"} }, "rewrite.path: $1_x names no group"},
		{"half a reference", func(r *TrafficRule) { r.MatchPath, r.Rewrite = "regex:/(a)", &Rewrite{Path: "/a$/b"} }, "rewrite.path: $ names no group"},
		{"groups", func(r *TrafficRule) {
			r.MatchPath, r.Rewrite = "regex:/(?P<id>a)(b)", &Rewrite{Path: "/${id}/$2/$$/${0}", Host: "b.test:80"}
		}, ""},
		{"host of what", func(r *TrafficRule) { r.Rewrite = &Rewrite{Host: "a b"} }, `rewrite.host: "a b" is not a host`},

		{"framing", func(r *TrafficRule) { r.RequestHeaders = &HeaderChanges{Set: map[string]string{"content-length": "3"}} }, "request_headers.set.content-length: content-length is for the proxies"},
		{"hop by hop", func(r *TrafficRule) { r.ResponseHeaders = &HeaderChanges{Remove: []string{"Connection"}} }, "response_headers.remove[0]: Connection is for the proxies"},
		{"pseudo", func(r *TrafficRule) { r.RequestHeaders = &HeaderChanges{Set: map[string]string{":path": "/"}} }, "request_headers.set.:path: :path is no header"},
		{"identity", func(r *TrafficRule) {
			r.RequestHeaders = &HeaderChanges{Add: map[string]string{"x-Source-Service": "admin"}}
		}, "request_headers.add.x-Source-Service: x-Source-Service is for the proxies: what they say must not be forged"},
		{"the proxy's words", func(r *TrafficRule) { r.ResponseHeaders = &HeaderChanges{Remove: []string{"weir-error"}} }, "response_headers.remove[0]: weir-error is for the proxies"},
		{"Host", func(r *TrafficRule) { r.RequestHeaders = &HeaderChanges{Set: map[string]string{"Host": "a"}} }, "request_headers.set.Host: Host is changed by rewrite.host"},
		{"line break", func(r *TrafficRule) { r.RequestHeaders = &HeaderChanges{Set: map[string]string{"a": "b\r\nc: d"}} }, "request_headers.set.a: must be text"},
		{"twice", func(r *TrafficRule) {
			r.RequestHeaders = &HeaderChanges{Set: map[string]string{"A": "b"}, Remove: []string{"a"}}
		}, "request_headers.set.A: A is changed by request_headers.remove[0] already"},
		{"no change", func(r *TrafficRule) { r.RequestHeaders = &HeaderChanges{} }, "request_headers: changes nothing"},

		{"redirect to the same", func(r *TrafficRule) { r.Redirect = &Redirect{Status: 301} }, "redirect: leads back to the same place"},
		{"redirect status", func(r *TrafficRule) { r.Redirect = &Redirect{Status: 300, Path: "/"} }, "redirect.status: 300 is not one of"},
		{"redirect scheme", func(r *TrafficRule) { r.Redirect = &Redirect{Scheme: "ftp"} }, `redirect.scheme: "ftp" is not one of http, https`},
		{"redirect and answer", func(r *TrafficRule) {
			r.Redirect, r.DirectResponse = &Redirect{Path: "/"}, &DirectResponse{Status: 200}
		}, "direct_response: a rule has a redirect or a direct_response"},
		{"redirect with a mirror", func(r *TrafficRule) { r.Redirect, r.Mirror = &Redirect{Path: "/"}, &Mirror{Service: "b"} }, "mirror: has no effect in a rule with redirect"},
		{"answer with retries", func(r *TrafficRule) { r.DirectResponse, r.RetryOn = &DirectResponse{Status: 200}, []string{"5xx"} }, "retry_on: has no effect in a rule with direct_response"},
		{"answer status", func(r *TrafficRule) { r.DirectResponse = &DirectResponse{Status: 101} }, "direct_response.status: 101 is not in 200..599"},
		{"long answer", func(r *TrafficRule) {
			r.DirectResponse = &DirectResponse{Status: 200, Body: strings.Repeat("x", 64<<10+1)}
		}, "direct_response.body: 65537 bytes are more than 65536"},
		{"body of a 204", func(r *TrafficRule) { r.DirectResponse = &DirectResponse{Status: 204, Body: "x"} }, "direct_response.body: an answer 204 has none"},

		{"mirror to nobody", func(r *TrafficRule) { r.Mirror = &Mirror{} }, "mirror.service: is missing"},
		{"mirror percent", func(r *TrafficRule) { r.Mirror = &Mirror{Service: "b", Percent: ptr(101.0)} }, "mirror.percent: 101 is not in 0..100"},
		{"no fault", func(r *TrafficRule) { r.Fault = &Fault{} }, "fault: does nothing"},
		{"fault of what", func(r *TrafficRule) { r.Fault = &Fault{Abort: &FaultAbort{}} }, "fault.abort: give status or grpc_status"},
		{"fault of both", func(r *TrafficRule) { r.Fault = &Fault{Abort: &FaultAbort{Status: 500, GRPCStatus: 1}} }, "fault.abort: give status or grpc_status"},
		{"fault gRPC status", func(r *TrafficRule) { r.Fault = &Fault{Abort: &FaultAbort{GRPCStatus: 17}} }, "fault.abort.grpc_status: 17 is not in 1..16"},
		{"fault delay", func(r *TrafficRule) { r.Fault = &Fault{Delay: &FaultDelay{Seconds: 301}} }, "fault.delay.seconds: 301 s is not in 0.001..300 s"},

		{"a try longer than all", func(r *TrafficRule) { r.Timeout, r.PerTryTimeout = 1, 2 }, "per_try_timeout: 2 s is longer than timeout, 1 s"},
		{"idle", func(r *TrafficRule) { r.IdleTimeout = -1 }, "idle_timeout: -1 s is not in"},
		{"condition", func(r *TrafficRule) { r.RetryOn = []string{"5xx", "6xx"} }, `retry_on[1]: "6xx" is not one of 5xx, gateway-error`},
		{"hedge of what", func(r *TrafficRule) { r.Hedge = &Hedge{} }, "hedge: give after or percentile"},
		{"hedge of both", func(r *TrafficRule) { r.Hedge = &Hedge{After: 1, Percentile: 95} }, "hedge: give after or percentile"},
		{"hedge percentile", func(r *TrafficRule) { r.Hedge = &Hedge{Percentile: 100} }, "hedge.percentile: 100 is not in 50..99.9"},
		{"hedge of none", func(r *TrafficRule) { r.Hedge = &Hedge{After: 1, Percent: ptr(0.0)} }, "hedge.percent: 0 is not in 0.1..100"},
		{"hedge", func(r *TrafficRule) { r.Hedge = &Hedge{Percentile: 99.9} }, ""},
		{"codes for nothing", func(r *TrafficRule) { r.RetryStatusCodes = []int{409} }, "retry_status_codes: has no effect without retriable-status-codes"},
		{"no codes", func(r *TrafficRule) { r.RetryOn = []string{"retriable-status-codes"} }, "retry_status_codes: is missing"},
		{"codes", func(r *TrafficRule) {
			r.RetryOn, r.RetryStatusCodes = []string{"retriable-status-codes"}, []int{409, 200}
		}, "retry_status_codes[1]: 200 is not in 300..599"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rule("r", c.rule)
			got := r.Validate()
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("refused: %v", got)
			case c.want != "" && (len(got) != 1 || !strings.HasPrefix(got.Error(), c.want)):
				t.Errorf("got  %v\nwant %s", got, c.want)
			}
			if len(got) == 0 {
				if _, err := NewRouter(service(r)); err != nil {
					t.Errorf("taken, but does not compile: %v", err)
				}
			}
		})
	}
}

func TestACookieIsCheckedAndHasDefaults(t *testing.T) {
	s := DefaultSettings()
	merged, err := s.Merge([]byte(`{"services":{"web":{"affinity":{"cookie":"at","ttl":60}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := merged.TrafficFor(ServiceName{"default", "web"}).Affinity; got != (Affinity{Cookie: "at", TTL: seconds(60), Path: "/"}) {
		t.Errorf("got %+v", got)
	}
	if got := merged.TrafficFor(ServiceName{"default", "other"}).Affinity; got != (Affinity{}) {
		t.Errorf("other services have %+v", got)
	}
	for patch, want := range map[string]string{
		`{}`:                           `services.web.affinity.cookie: "" is not the name of a cookie`,
		`{"cookie":"a b"}`:             `services.web.affinity.cookie: "a b" is not the name of a cookie`,
		`{"cookie":"a","ttl":0.5}`:     `services.web.affinity.ttl: 0.5 s is not in 1..`,
		`{"cookie":"a","path":"/;b"}`:  `services.web.affinity.path: "/;b" is not a path`,
		`{"cookie":"a","path":"b"}`:    `services.web.affinity.path: "b" is not a path`,
		`{"cookie":"a","secure":true}`: `services.web.affinity.secure: unknown setting`,
		`{"cookie":"a","ttl":"1h"}`:    `services.web.affinity.ttl: "1h" is not a number`,
	} {
		if _, err := s.Merge([]byte(`{"services":{"web":{"affinity":` + patch + `}}}`)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", patch, err, want)
		}
	}
}
