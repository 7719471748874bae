package controlplane

import (
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

var shopfront = policy.ServiceName{Namespace: "default", Name: "front"}

func allows(id string, from, to policy.ServiceName, methods ...string) policy.SecurityRule {
	return policy.SecurityRule{
		ID: id, SourceNamespace: from.Namespace, SourceService: from.Name, DestinationNamespace: to.Namespace, DestinationService: to.Name,
		AllowedMethods: methods,
	}
}

func (s *steps) security(rules ...policy.SecurityRule) {
	s.st.Security = rules
	s.apply(store.Change{Security: true})
}

func called(method string, change ...func(*policy.Flow)) *policy.Flow {
	f := &policy.Flow{Direction: policy.FlowInbound, Source: shopfront, Destination: users, Method: method, Path: "/orders/*", Allowed: true}
	for _, c := range change {
		c(f)
	}
	return f
}

func TestAFlowIsJudgedAsTheProxiesWouldWithAChange(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80")
	s.security(allows("r", shopfront, users, "GET", "POST"))
	withToken := func(f *policy.Flow) { f.Token = true }
	nobody := func(f *policy.Flow) { f.Source, f.SourceClass = policy.ServiceName{}, policy.ClassPrivate }
	fewer, token, other := allows("r", shopfront, users, "GET"), allows("r", shopfront, users, "GET", "POST"), allows("s", shopfront, users, "GET", "POST")
	token.RequiredJWT = true
	settings := policy.DefaultSettings()
	settings.DefaultPolicy = "allow"
	put := func(r *policy.SecurityRule, id string) policy.Difference {
		d := policy.Difference{Ref: policy.Ref{Kind: policy.KindSecurityRule, ID: id}, Action: policy.Changed}
		if r != nil {
			d.After = &policy.Resource{Security: r}
		}
		return d
	}
	for _, c := range []struct {
		name   string
		flow   *policy.Flow
		change []policy.Difference
		want   string
	}{
		{"a method goes", called("POST"), []policy.Difference{put(&fewer, "r")}, "denied"},
		{"a method stays", called("GET"), []policy.Difference{put(&fewer, "r")}, ""},
		{"the rule goes", called("GET"), []policy.Difference{put(nil, "r")}, "denied"},
		{"another rule does the same", called("GET"), []policy.Difference{put(nil, "r"), put(&other, "s")}, "rule"},
		{"a token is wanted that was not shown", called("GET"), []policy.Difference{put(&token, "r")}, "token"},
		{"a token is wanted that was shown", called("GET", withToken), []policy.Difference{put(&token, "r")}, ""},
		{"what was denied stays denied", called("PUT"), []policy.Difference{put(&fewer, "r")}, ""},
		{"everybody is allowed", called("PUT", func(f *policy.Flow) { f.Source.Name = "batch" }),
			[]policy.Difference{{Ref: policy.Ref{Kind: policy.KindConfig}, After: &policy.Resource{Settings: &settings}}}, "allowed"},
		{"plain text stays out", called("GET", nobody), []policy.Difference{put(nil, "r")}, ""},
	} {
		then, _ := s.v.foresee(c.change)
		got, was, is := compareJudgements(newJudge(s.v).judge(c.flow), newJudge(then).judge(c.flow))
		if got != c.want {
			t.Errorf("%s: %q (%s, then %s), want %q", c.name, got, was, is, c.want)
		}
		if (got == "denied" || got == "token") != (&api.FlowChange{Change: got}).Breaks() {
			t.Errorf("%s: %q breaks nothing", c.name, got)
		}
	}
}

func TestARouteIsFoundAnewWithWhatItsRuleAsksFor(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80")
	canary := policy.DefaultTrafficRule()
	canary.ID, canary.MatchPath, canary.MatchHeaders, canary.DestinationSubset = "canary", "/orders/*", map[string]string{"X-Canary": "present:"}, "v2"
	svc := *s.st.Services.Get(users)
	svc.Rules, svc.RuleRevisions = []policy.TrafficRule{canary}, []int64{1}
	s.st.Services = store.ServicesOf(&svc)
	s.apply(store.Change{Services: map[policy.ServiceName]struct{}{users: {}}})

	out := func(route string) *policy.Flow {
		return called("GET", func(f *policy.Flow) { f.Direction, f.Route, f.Routed = policy.FlowOutbound, route, users })
	}
	other := canary
	other.DestinationSubset = "v3"
	then, _ := s.v.foresee([]policy.Difference{{
		Ref: policy.Ref{Kind: policy.KindTrafficRule, Namespace: "default", Service: "users", ID: "canary"}, After: &policy.Resource{Traffic: &other},
	}})
	change, was, is := compareJudgements(newJudge(s.v).judge(out("canary")), newJudge(then).judge(out("canary")))
	if change != "route" || was != "default/users[v2] by canary" || is != "default/users[v3] by canary" {
		t.Errorf("%s: %s, then %s", change, was, is)
	}
	if change, was, is := compareJudgements(newJudge(s.v).judge(out("")), newJudge(then).judge(out(""))); change != "" {
		t.Errorf("a call without the header: %s, then %s", was, is)
	}
}

// pairsOf works out one pair's line.
func pairsOf(s *steps, proxies []api.ProxyStatus, flows ...policy.FlowCount) map[string]*api.Pair {
	p := &pairs{
		view: s.v, now: time.Unix(1_000_000, 0), proxies: map[policy.ServiceName][]api.ProxyStatus{},
		all: map[pairKey]*api.Pair{}, in: map[pairKey]*talk{}, out: map[pairKey]*talk{},
	}
	for _, st := range proxies {
		name := policy.ServiceName{Namespace: st.Namespace, Name: st.ServiceName}
		p.proxies[name] = append(p.proxies[name], st)
	}
	for i := range flows {
		p.saw(&flows[i])
	}
	p.allowed()
	out := map[string]*api.Pair{}
	for key, pair := range p.all {
		p.judge(key, pair)
		out[pair.Source.String()+" "+pair.Destination.String()] = pair
	}
	return out
}

func TestWhetherAPairIsEncryptedAndWhy(t *testing.T) {
	proxyOf := func(n policy.ServiceName) api.ProxyStatus {
		return api.ProxyStatus{ID: n.Name, Namespace: n.Namespace, ServiceName: n.Name, CertificateExpires: 2_000_000}
	}
	both := []api.ProxyStatus{proxyOf(shopfront), proxyOf(users)}
	s := newSteps()
	s.service(shopfront, 1, "10.0.0.1:80")
	s.service(users, 2, "10.0.0.2:80")
	s.security(allows("r", shopfront, users, "GET"))
	line := func(proxies []api.ProxyStatus, flows ...policy.FlowCount) *api.Pair {
		t.Helper()
		p := pairsOf(s, proxies, flows...)["default/front default/users"]
		if p == nil {
			t.Fatal("a pair that a rule allows is not listed")
		}
		return p
	}
	want := func(p *api.Pair, encrypted, why string, attention bool) {
		t.Helper()
		if p.Encrypted != encrypted || !strings.Contains(strings.Join(p.Why, ";"), why) || len(p.Attention) > 0 != attention {
			t.Errorf("%+v; want %s, %q, attention: %v", p, encrypted, why, attention)
		}
	}
	want(line(both), "no", "no proxy beside endpoint 10.0.0.2:80", true)
	s.proxies(beside("f", shopfront, "10.0.0.1"), beside("u", users, "10.0.0.2"))
	want(line(both), "yes", "both have proxies", false)
	if p := line(both); p.CertEnds != 2_000_000 {
		t.Errorf("certificates end at %v", p.CertEnds)
	}
	want(line(both[1:]), "no", "no proxy beside the caller", true)
	plain := policy.FlowCount{Calls: 3, Flow: *called("GET", func(f *policy.Flow) { f.Encryption = policy.Plaintext })}
	want(line(both, plain), "yes", "both have proxies", true)
	unreached := policy.FlowCount{Calls: 3, Flow: policy.Flow{
		Direction: policy.FlowOutbound, Source: shopfront, Destination: users, Routed: users, Allowed: true, Encryption: policy.Plaintext, Why: policy.WhyUnreached}}
	want(line(both, unreached), "yes", "both have proxies", false)
	off := allows("r", shopfront, users, "GET")
	off.MTLSMode = policy.Disabled
	s.security(off)
	s.v.turned() // callers follow in a second turn
	want(line(both, plain), "no", "a security rule disables mTLS", false)

	refused := policy.FlowCount{Calls: 5, Flow: policy.Flow{
		Direction: policy.FlowInbound, SourceClass: policy.ClassPrivate, Destination: users, Encryption: policy.Plaintext, Reason: policy.MTLSRequired}}
	p := pairsOf(s, both, refused)["(private) default/users"]
	want(p, "no", "shows no certificate", true)
	if p.Denied != 5 || p.Calls != 5 {
		t.Errorf("%+v", p)
	}
}

func TestProxiesThatNeedAttention(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for want, p := range map[string]api.ProxyStatus{
		"":                             {ID: "p", Version: "1", CertificateExpires: 1_086_400},
		"refused a change of Inbound":  {ID: "p", Version: "1", Resources: []api.ResourceState{{Type: "Inbound", Refused: "no"}}},
		"is of version 0":              {ID: "p", Version: "0"},
		"ends at 1970-01-12T13:48:20Z": {ID: "p", Version: "1", CertificateExpires: 1_000_100},
	} {
		got := attendProxy(&p, "1", now, time.Hour)
		if (want == "") != (len(got) == 0) || want != "" && !strings.Contains(got[0], want) {
			t.Errorf("%q: %q", want, got)
		}
	}
}
