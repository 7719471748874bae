package policy

import (
	"slices"
	"testing"
)

func seen(from, to, method, path string, change ...func(*Flow)) FlowCount {
	f := Flow{
		Direction: FlowInbound, Source: ServiceName{"default", from}, Destination: ServiceName{"default", to},
		Method: method, Path: path, Allowed: true,
	}
	for _, c := range change {
		c(&f)
	}
	return FlowCount{Flow: f, Calls: 1}
}

func TestSuggestedRulesAllowWhatWasSeenAndNothingElse(t *testing.T) {
	denied := func(f *Flow) { f.Allowed = false }
	withToken := func(f *Flow) { f.Token = true }
	nobody := func(f *Flow) { f.Source, f.SourceClass = ServiceName{}, ClassPrivate }
	outbound := func(f *Flow) { f.Direction = FlowOutbound }
	flows := []FlowCount{
		seen("front", "users", "GET", "/a"), seen("front", "users", "GET", "/b"), seen("front", "users", "POST", "/a"),
		seen("front", "users", "DELETE", "/a", denied), seen("front", "users", "PUT", "/a", withToken),
		seen("batch", "users", "GET", "/a", denied), seen("front", "store", "", ""),
		seen("", "users", "GET", "/a", nobody), seen("front", "pay", "GET", "/", outbound),
	}
	rules, nameless := Suggest(flows)
	var all []SecurityRule
	for i := range rules {
		if p := rules[i].Rule.Validate(); len(p) > 0 {
			t.Errorf("%+v: %v", rules[i].Rule, p)
		}
		all = append(all, rules[i].Rule)
	}
	if len(all) != 3 || len(nameless) != 1 {
		t.Fatalf("%+v, %+v", all, nameless)
	}
	for _, to := range []string{"users", "store", "pay"} {
		in := Inbound{Service: ServiceName{"default", to}, MTLS: Strict}
		for _, r := range all {
			in.Rules = append(in.Rules, InboundRule{SecurityRule: r})
		}
		g, err := NewGuard(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []string{"front", "batch"} {
			for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH"} {
				at := slices.IndexFunc(flows, func(f FlowCount) bool {
					return f.Direction == FlowInbound && f.Source.Name == from && f.Destination.Name == to && (f.Method == method || f.Method == "") && f.Allowed
				})
				call := Call{Caller: Caller{Name: ServiceName{"default", from}, Verified: true}, Method: method}
				v := g.Authorize(&call)
				want := at >= 0
				if want && flows[at].Token {
					if v.Reason != TokenMissing {
						t.Errorf("%s %s %s: without a token %+v", from, method, to, v)
					}
					call.Token = func() (map[string]any, Reason) { return nil, "" }
					v = g.Authorize(&call)
				}
				if v.Allow != want {
					t.Errorf("%s %s %s: %+v", from, method, to, v)
				}
			}
		}
		if v := g.Authorize(&Call{Method: "GET"}); v.Allow {
			t.Errorf("anybody may call %s", to)
		}
	}
}

func TestChoicesAreTheRoutesWithTheirShares(t *testing.T) {
	rule := func(id, subset string, weight int) TrafficRule {
		r := DefaultTrafficRule()
		r.ID, r.DestinationSubset, r.Weight, r.MatchPath = id, subset, weight, "/a"
		return r
	}
	r, err := NewRouter(&Service{Name: ServiceName{"default", "users"}, Rules: []TrafficRule{rule("one", "v1", 75), rule("none", "v0", 0), rule("two", "v2", 25)}})
	if err != nil {
		t.Fatal(err)
	}
	got := r.Choices(&Request{Method: "GET", Path: "/a", Header: func(string) (string, bool) { return "", false }})
	if len(got) != 2 || got[0].Rule != "one" || got[0].Share != 0.75 || got[1].Subset != "v2" || got[1].Share != 0.25 {
		t.Errorf("%+v", got)
	}
	got = r.Choices(&Request{Method: "GET", Path: "/b", Header: func(string) (string, bool) { return "", false }})
	if len(got) != 1 || got[0].Rule != "" || got[0].Share != 1 {
		t.Errorf("%+v", got)
	}
}
