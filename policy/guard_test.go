package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// plainVerdict is what Authorize is to do, written plainly: the rules one after
// the other, first those that deny, then those that allow; of each kind those with
// patterns in their source last.
func plainVerdict(in *Inbound, c *plainCall) Verdict {
	if c.Verified && c.Name == ControlPlane && (c.Method == "GET" || c.Method == "") {
		return Verdict{Allow: true, Reason: ByControl}
	}
	v := Verdict{Reason: NoRule}
	for _, does := range []RuleAction{Deny, Allow} {
		for _, patterns := range []bool{false, true} {
			for i := range in.Rules {
				r := &in.Rules[i]
				if r.Does() != does || !plainlyAbout(in, r, c, patterns) {
					continue
				}
				if does == Deny && plainlyDenied(r, c) {
					if len(r.Claims) > 0 && c.claims == nil && c.Method != "" {
						return Verdict{Reason: TokenMissing, Rule: r.ID}
					}
					return Verdict{Reason: Denied, Rule: r.ID}
				}
				if does == Allow {
					v = considered(v, r, c)
				}
			}
		}
	}
	switch {
	case v.Reason != NoRule:
		return v
	case !c.Verified && in.Mode(c.Port) == Strict:
		return Verdict{Reason: MTLSRequired}
	case in.DefaultAllow:
		return Verdict{Allow: true, Reason: ByDefault}
	}
	return v
}

// plainCall is a call with what its funcs look at.
type plainCall struct {
	Call
	headers map[string][]string
	claims  map[string]any // nil is no token
}

func plainlyAbout(in *Inbound, r *InboundRule, c *plainCall, patterns bool) bool {
	if !r.AppliesTo(in.Service) || len(r.Ports) > 0 && !slices.Contains(r.Ports, int(c.Port)) {
		return false
	}
	m := r.MTLSMode
	if m == "" {
		m = in.Mode(c.Port)
	}
	if !c.Verified && !patterns {
		return (m == Disabled || r.Does() == Deny) && slices.Contains(r.Addresses, c.Addr)
	}
	for _, s := range r.From() {
		isPattern := strings.HasSuffix(s.Namespace, "*") || strings.HasSuffix(s.Name, "*")
		switch {
		case isPattern != patterns:
		case c.Verified && matchName(s, c.Name):
			return true
		case !c.Verified && s == (ServiceName{Any, Any}) && (m != Strict || r.Does() == Deny):
			return true
		}
	}
	return false
}

func plainlyDenied(r *InboundRule, c *plainCall) bool {
	if c.Method == "" {
		return true
	}
	if !slices.Contains(r.AllowedMethods, Any) && !slices.Contains(r.AllowedMethods, c.Method) || !plainlyOn(r.Paths, c.Path) {
		return false
	}
	for name, want := range r.Headers {
		values := c.headers[name]
		fits := slices.Contains(values, want)
		if other, not := strings.CutPrefix(want, "not:"); not {
			fits = len(values) == 0 || slices.ContainsFunc(values, func(v string) bool { return v != other })
		}
		if !fits {
			return false
		}
	}
	return len(r.Claims) == 0 || c.claims == nil || plainlyClaims(r.Claims, c.claims)
}

func plainlyOn(paths []string, target string) bool {
	path, _, _ := strings.Cut(target, "?")
	return len(paths) == 0 || slices.ContainsFunc(paths, func(p string) bool {
		prefix, ok := strings.CutSuffix(p, "*")
		return p == path || ok && strings.HasPrefix(path, prefix)
	})
}

func plainlyClaims(want map[string][]string, have map[string]any) bool {
	for name, values := range want {
		if claim, ok := have[name].(string); !ok || !slices.Contains(values, claim) {
			return false
		}
	}
	return true
}

// plainMiss is what of a call does not fit a rule that allows.
func plainMiss(r *InboundRule, c *plainCall) Reason {
	allows := slices.Contains(r.AllowedMethods, Any) || slices.Contains(r.AllowedMethods, c.Method)
	if c.Method == "" && !allows {
		allows = !slices.ContainsFunc(DefaultMethods(), func(m string) bool { return !slices.Contains(r.AllowedMethods, m) })
	}
	switch {
	case !allows:
		return MethodDenied
	case len(r.Paths) > 0 && (c.Method == "" || !plainlyOn(r.Paths, c.Path)):
		return PathDenied
	}
	for name, want := range r.Headers {
		values := c.headers[name]
		wrong := len(values) == 0 || slices.ContainsFunc(values, func(v string) bool { return v != want })
		if other, not := strings.CutPrefix(want, "not:"); not {
			wrong = slices.Contains(values, other)
		}
		if c.Method == "" || wrong {
			return HeaderDenied
		}
	}
	if len(r.Claims) > 0 && c.claims != nil && !plainlyClaims(r.Claims, c.claims) {
		return ClaimDenied
	}
	return ""
}

// considered is the verdict v after one more rule that is about the call.
func considered(v Verdict, r *InboundRule, c *plainCall) Verdict {
	asks := r.RequiredJWT || len(r.Claims) > 0
	// Where v fits but for a token, or with one, no later rule that asks for one is better.
	settled := v.Allow || v.Reason == TokenMissing
	switch miss := plainMiss(r, c); {
	case miss != "" && !settled:
		return Verdict{Reason: miss, Rule: r.ID}
	case miss != "" || v.Allow && !jwtRules[v.Rule] || settled && asks:
		return v
	case asks && c.claims == nil:
		return Verdict{Reason: TokenMissing, Rule: r.ID}
	}
	return Verdict{Allow: true, Reason: ByRule, Rule: r.ID}
}

// jwtRules are those of the case at hand that ask for a token.
var jwtRules map[string]bool

// Whatever rules are found by, they decide as if they were asked one by one.
func TestAGuardDecidesAsItsRulesDoOneByOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	seen := map[Reason]int{}
	for range 3000 {
		in := randomInbound(rnd)
		guard := guardOf(t, in)
		for range 20 {
			c := randomCall(rnd)
			got, want := guard.Authorize(&c.Call), plainVerdict(&in, c)
			if got != want {
				t.Fatalf("%+v headers %v claims %v: got %+v, want %+v, of %+v", c.Caller, c.headers, c.claims, got, want, in)
			}
			seen[want.Reason]++
			if !guard.TakesPlaintext(c.Port) && !c.Verified && got.Allow {
				t.Fatalf("a port that takes no plaintext lets %+v in: %+v", c, in)
			}
		}
	}
	for _, r := range []Reason{ByRule, ByDefault, NoRule, Denied, MethodDenied, PathDenied, HeaderDenied, ClaimDenied, TokenMissing, MTLSRequired} {
		if seen[r] < 50 {
			t.Errorf("%s came %d times: the cases are too tame", r, seen[r])
		}
	}
}

var fewAddrs = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}

func randomInbound(rnd *rand.Rand) Inbound {
	modes := []MTLSMode{Strict, Permissive, Disabled}
	in := Inbound{Service: orders, MTLS: one(rnd, modes), DefaultAllow: rnd.IntN(3) == 0}
	if rnd.IntN(3) == 0 {
		in.PortModes = map[uint16]MTLSMode{81: one(rnd, modes)}
	}
	spaces, names := []string{"default", "prod", Any, "d*"}, []string{"shop", "cart", Any, "s*", "sh*"}
	allowed := [][]string{{"GET"}, {"GET", "PUT"}, {"POST"}, {Any}, DefaultMethods(), {"GET", Any}}
	jwtRules = map[string]bool{}
	conditional, deniers := rnd.IntN(2) == 0, rnd.IntN(3)
	for i := range rnd.IntN(30) {
		r := allow(fmt.Sprint("r", i), ServiceName{one(rnd, spaces), one(rnd, names)}, methods(one(rnd, allowed)...))
		if rnd.IntN(8) < deniers {
			r.Action = Deny
		} else {
			r.MTLSMode, r.RequiredJWT = one(rnd, append(modes, "")), rnd.IntN(3) == 0
		}
		if rnd.IntN(4) == 0 {
			r.Sources = []string{one(rnd, spaces) + "/" + one(rnd, names)}
		}
		if rnd.IntN(4) == 0 {
			r.Ports = []int{one(rnd, []int{80, 81})}
		}
		if conditional {
			randomConditions(rnd, &r.SecurityRule)
		}
		r.DestinationService = one(rnd, []string{orders.Name, orders.Name, Any, "o*", "other"})
		r.Addresses = fewAddrs[:rnd.IntN(len(fewAddrs))]
		jwtRules[r.ID] = r.RequiredJWT || len(r.Claims) > 0
		in.Rules = append(in.Rules, r)
	}
	return in
}

func randomConditions(rnd *rand.Rand, r *SecurityRule) {
	if rnd.IntN(3) > 0 {
		r.Paths = []string{one(rnd, []string{"/a", "/a*", "/a/*", "/b", "/*"})}
		if rnd.IntN(3) == 0 {
			r.Paths = append(r.Paths, "/c/d")
		}
	}
	if rnd.IntN(4) == 0 {
		r.Headers = map[string]string{"X-A": one(rnd, []string{"1", "not:1"})}
	}
	if rnd.IntN(4) == 0 {
		r.Claims = map[string][]string{"role": one(rnd, [][]string{{"admin"}, {"ops", "admin"}})}
	}
}

func randomCall(rnd *rand.Rand) *plainCall {
	c := &plainCall{headers: map[string][]string{"X-A": one(rnd, [][]string{nil, {"1"}, {"2"}, {"1", "2"}, {"2", "1"}})}}
	c.Caller = Caller{
		Name:     ServiceName{one(rnd, []string{"default", "prod", "test"}), one(rnd, []string{"shop", "cart", "bank"})},
		Verified: rnd.IntN(2) == 0, Addr: one(rnd, fewAddrs),
	}
	c.Method, c.Port = one(rnd, []string{"GET", "PUT", "POST", "DELETE", "BREW", ""}), one(rnd, []uint16{80, 81, 82})
	c.Path = one(rnd, []string{"/a", "/a/b?x=1", "/ab", "/b", "/c/d", "/"})
	if rnd.IntN(3) > 0 {
		c.claims = map[string]any{"role": one(rnd, []string{"admin", "ops", "guest"})}
	}
	c.Header = func(name string, n int) (string, bool) {
		if all := c.headers[name]; n < len(all) {
			return all[n], true
		}
		return "", false
	}
	c.Token = func() (map[string]any, Reason) {
		if c.claims == nil {
			return nil, TokenMissing
		}
		return c.claims, ""
	}
	return c
}

func TestWhatCannotBeSeenIsNotAllowedAndMayBeDenied(t *testing.T) {
	onPath := func(r *SecurityRule) { r.Paths = []string{"/admin/*"} }
	connection := &Call{Caller: verified(shop)}
	for _, c := range []struct {
		name string
		rule []InboundRule
		want Verdict
	}{
		{"an allow by path is none for a connection", []InboundRule{allow("r", shop, onPath)}, Verdict{false, PathDenied, "r"}},
		{"a deny by path is one for a connection", []InboundRule{allow("r", shop), allow("d", shop, onPath, denies)}, Verdict{false, Denied, "d"}},
		{"rules of sources and ports are for connections", []InboundRule{allow("r", shop)}, Verdict{true, ByRule, "r"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := guardOf(t, Inbound{Service: orders, MTLS: Strict, Rules: c.rule}).Authorize(connection); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// A caller that leaves its proxy out, to hide who it is, is told by its address.
func TestADenyHoldsForAPlaintextCallerAtItsAddress(t *testing.T) {
	deny := allow("d", shop, denies)
	deny.Addresses = fewAddrs[:1]
	g := guardOf(t, Inbound{Service: orders, MTLS: Permissive, Rules: []InboundRule{allow("r", ServiceName{Any, Any}), deny}})
	for addr, want := range map[netip.Addr]Reason{fewAddrs[0]: Denied, fewAddrs[1]: ByRule} {
		if got := g.Authorize(&Call{Caller: Caller{Addr: addr}, Method: "GET"}); got.Reason != want {
			t.Errorf("%s: %+v, want %s", addr, got, want)
		}
	}
}

func TestAuditTellsAndChangesNothing(t *testing.T) {
	audits := func(r *SecurityRule) { r.Action = Audit }
	rules := []InboundRule{
		allow("allow", shop), allow("all", ServiceName{Any, Any}, audits), allow("two", shop, audits, func(r *SecurityRule) { r.Sources = []string{"default/*"} }),
		allow("post", shop, audits, methods("POST")), allow("port", shop, audits, func(r *SecurityRule) { r.Ports = []int{81} }),
		allow("path", shop, audits, func(r *SecurityRule) { r.Paths = []string{"/admin/*"} }),
	}
	g, without := guardOf(t, Inbound{Service: orders, MTLS: Strict, Rules: rules}), guardOf(t, Inbound{Service: orders, MTLS: Strict, Rules: rules[:1]})
	for _, c := range []struct {
		call Call
		want string
	}{
		{Call{Caller: verified(shop), Method: "GET", Path: "/x", Port: 80}, "all two"},
		{Call{Caller: verified(shop), Method: "POST", Path: "/admin/x", Port: 81}, "all two post path port"},
		{Call{Caller: verified(ServiceName{"prod", "cart"}), Method: "GET"}, "all"},
		{Call{Caller: verified(shop)}, "all two post path"},
		{Call{Caller: verified(ControlPlane), Method: "GET"}, ""},
	} {
		var found []string
		g.Audit(&c.call, func(rule string) { found = append(found, rule) })
		if got := strings.Join(found, " "); got != c.want {
			t.Errorf("%+v: %q, want %q", c.call, got, c.want)
		}
		if got, want := g.Authorize(&c.call), without.Authorize(&c.call); got != want {
			t.Errorf("%+v: %+v, without the rules %+v", c.call, got, want)
		}
	}
}

func TestClaimsAreFoundInObjectsAndLists(t *testing.T) {
	claims := map[string]any{
		"role": "admin", "age": 42.0, "big": 1e6, "staff": true, "groups": []any{"a", "b"},
		"realm_access": map[string]any{"roles": []any{"editor"}, "a.b": "c"}, "https://x.test/tenant": "t1", "null": nil,
	}
	for name, want := range map[string]string{
		"role": "admin", "age": "42", "big": "1000000", "staff": "true", "groups": "b", "realm_access.roles": "editor",
		"realm_access.a.b": "c", "https://x.test/tenant": "t1",
	} {
		r := guardRule{claims: []claimMatch{{name, []string{"other", want}}}}
		if !r.hasClaims(claims) {
			t.Errorf("%s is not found to be %s", name, want)
		}
		r.claims[0].values = []string{"other"}
		if r.hasClaims(claims) {
			t.Errorf("%s is found to be other", name)
		}
	}
	for _, name := range []string{"rolex", "role.admin", "realm_access", "realm_access.", ".role", "groups.a", "null"} {
		if r := (guardRule{claims: []claimMatch{{name, []string{"admin", "a", "", "editor"}}}}); r.hasClaims(claims) {
			t.Errorf("%s is found", name)
		}
	}
}

func TestSecurityRuleConditionsAreChecked(t *testing.T) {
	for want, change := range map[string]func(*SecurityRule){
		`action: "forbid" is not one of allow, deny, audit`:         func(r *SecurityRule) { r.Action = "forbid" },
		`sources[0]: "web" is not namespace/service`:                func(r *SecurityRule) { r.Sources = []string{"web"} },
		`sources[0]: service "we*b" may hold only`:                  func(r *SecurityRule) { r.Sources = []string{"prod/we*b"} },
		`source_service: service "-*" is not the begin of a name`:   func(r *SecurityRule) { r.SourceService = "-*" },
		`source_namespace: namespace is empty`:                      func(r *SecurityRule) { r.SourceNamespace = "" },
		`ports[1]: 70000 is not in 1..65535`:                        func(r *SecurityRule) { r.Ports = []int{80, 70000} },
		`paths[0]: "api" does not start with /`:                     func(r *SecurityRule) { r.Paths = []string{"api"} },
		`headers.X-A: error parsing regexp`:                         func(r *SecurityRule) { r.Headers = map[string]string{"X-A": "regex:("} },
		`headers.a b: "a b" is not a header name`:                   func(r *SecurityRule) { r.Headers = map[string]string{"a b": "1"} },
		`jwt_claims.role: must list 1 to`:                           func(r *SecurityRule) { r.Claims = map[string][]string{"role": {}} },
		`required_jwt: has no effect in a rule with action deny`:    func(r *SecurityRule) { r.Action, r.RequiredJWT = Deny, true },
		`mtls_mode: has no effect in a rule with action audit`:      func(r *SecurityRule) { r.Action, r.MTLSMode = Audit, Strict },
		`mtls_mode: disabled is for all that a caller sends, which`: func(r *SecurityRule) { r.MTLSMode, r.Ports = Disabled, []int{80} },
	} {
		r := allow("r", shop, change).SecurityRule
		if p := r.Validate(); len(p) != 1 || !strings.Contains(p.Error(), want) {
			t.Errorf("%q, want %q", p, want)
		}
	}
	only := allow("r", ServiceName{}, func(r *SecurityRule) { r.Sources = []string{"*/*", "prod/web-*", "prod/a"} }).SecurityRule
	if p := only.Validate(); len(p) > 0 {
		t.Error(p)
	}
}

func TestModesOfPortsServicesAndNamespaces(t *testing.T) {
	s := DefaultSettings()
	s, err := s.Merge([]byte(`{"namespaces": {"prod": {"mtls_mode": "permissive", "default_policy": "allow"}, "test": {"default_policy": "deny"}},
		"services": {"prod/db": {"mtls_mode": "disabled", "mtls_ports": {"9001": "strict"}}, "web": {"mtls_ports": {"80": "permissive"}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		service ServiceName
		port    uint16
		want    MTLSMode
	}{
		{ServiceName{"default", "any"}, 80, Strict}, {ServiceName{"prod", "any"}, 80, Permissive}, {ServiceName{"prod", "db"}, 80, Disabled},
		{ServiceName{"prod", "db"}, 9001, Strict}, {ServiceName{"default", "web"}, 80, Permissive}, {ServiceName{"default", "web"}, 81, Strict},
	} {
		if got := s.ModesFor(c.service).Mode(c.port); got != c.want {
			t.Errorf("%s port %d: %s, want %s", c.service, c.port, got, c.want)
		}
	}
	if !s.AllowsByDefault("prod") || s.AllowsByDefault("test") || s.AllowsByDefault("default") {
		t.Error("the default policy of a namespace does not count")
	}
	s, err = s.Merge([]byte(`{"namespaces": {"prod": null}}`))
	if err != nil || s.AllowsByDefault("prod") || slices.Collect(maps.Keys(s.Namespaces))[0] != "test" {
		t.Errorf("%v, left %v", err, s.Namespaces)
	}
	for patch, want := range map[string]string{
		`{"namespaces": {"prod": {"mtls_mode": "off"}}}`:           `namespaces.prod.mtls_mode: "off" is not one of`,
		`{"namespaces": {"Prod": {}}}`:                             `namespaces.Prod: namespace "Prod" may hold`,
		`{"services": {"web": {"mtls_ports": {"x": "strict"}}}}`:   `services.web.mtls_ports.x: "x" is not a port`,
		`{"services": {"web": {"mtls_ports": {"080": "strict"}}}}`: `services.web.mtls_ports.080: "080" is not a port`,
		`{"namespaces": {"prod": {"default_policy": "perhaps"}}}`:  `namespaces.prod.default_policy: "perhaps" is not one of`,
		`{"services": {"web": {"mtls_mode": "loose"}}}`:            `services.web.mtls_mode: "loose" is not one of`,
	} {
		if _, err := s.Merge([]byte(patch)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", patch, err)
		}
	}
}
