package policy

import (
	"net/netip"
	"strings"
	"testing"
)

var (
	shop   = ServiceName{"default", "shop"}
	orders = ServiceName{"default", "orders"}
)

func allow(id string, from ServiceName, change ...func(*SecurityRule)) InboundRule {
	r := SecurityRule{
		ID: id, SourceNamespace: from.Namespace, SourceService: from.Name,
		DestinationNamespace: orders.Namespace, DestinationService: orders.Name, AllowedMethods: DefaultMethods(),
	}
	for _, c := range change {
		c(&r)
	}
	return InboundRule{SecurityRule: r}
}

func methods(m ...string) func(*SecurityRule) { return func(r *SecurityRule) { r.AllowedMethods = m } }
func mode(m MTLSMode) func(*SecurityRule)     { return func(r *SecurityRule) { r.MTLSMode = m } }
func token(r *SecurityRule)                   { r.RequiredJWT = true }

func denies(r *SecurityRule) { r.Action = Deny }

func guardOf(t testing.TB, in Inbound) *Guard {
	t.Helper()
	g, err := NewGuard(in)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func verified(n ServiceName) Caller { return Caller{Name: n, Verified: true} }

func plain(addr string) Caller { return Caller{Addr: netip.MustParseAddr(addr)} }

func TestAuthorize(t *testing.T) {
	anyone := ServiceName{Any, Any}
	addressed := allow("by-address", shop, mode(Disabled))
	addressed.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.7")}
	for _, c := range []struct {
		name   string
		in     Inbound
		caller Caller
		method string
		want   Verdict
	}{
		{"no rule", Inbound{MTLS: Strict}, verified(shop), "GET", Verdict{Reason: NoRule}},
		{"a rule", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop)}}, verified(shop), "GET", Verdict{true, ByRule, "r"}},
		{"a rule for another", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", orders)}}, verified(shop), "GET", Verdict{Reason: NoRule}},
		{"method not allowed", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop, methods("GET"))}}, verified(shop), "PUT", Verdict{false, MethodDenied, "r"}},
		{"every method", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop, methods(Any))}}, verified(shop), "BREW", Verdict{true, ByRule, "r"}},
		{"a second rule allows", Inbound{MTLS: Strict, Rules: []InboundRule{allow("a", shop, methods("GET")), allow("b", anyone, methods("PUT"))}}, verified(shop), "PUT", Verdict{true, ByRule, "b"}},
		{"whole namespace", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", ServiceName{"default", Any})}}, verified(shop), "GET", Verdict{true, ByRule, "r"}},
		{"other namespace", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", ServiceName{"prod", Any})}}, verified(shop), "GET", Verdict{Reason: NoRule}},
		{"token", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop, token)}}, verified(shop), "GET", Verdict{false, TokenMissing, "r"}},
		{"a rule without token wins", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop, token), allow("s", shop)}}, verified(shop), "GET", Verdict{true, ByRule, "s"}},
		{"whatever the order", Inbound{MTLS: Strict, Rules: []InboundRule{allow("s", shop), allow("r", shop, token)}}, verified(shop), "GET", Verdict{true, ByRule, "s"}},
		{"connection", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop)}}, verified(shop), "", Verdict{true, ByRule, "r"}},
		{"connection, rule restricts methods", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop, methods("GET"))}}, verified(shop), "", Verdict{false, MethodDenied, "r"}},
		{"default allow", Inbound{MTLS: Strict, DefaultAllow: true}, verified(shop), "GET", Verdict{true, ByDefault, ""}},
		{"default allow does not lift a method", Inbound{MTLS: Strict, DefaultAllow: true, Rules: []InboundRule{allow("r", shop, methods("GET"))}}, verified(shop), "PUT", Verdict{false, MethodDenied, "r"}},
		{"strict, plaintext", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", anyone)}}, plain("10.0.0.9"), "GET", Verdict{Reason: MTLSRequired}},
		{"strict beats default allow", Inbound{MTLS: Strict, DefaultAllow: true}, plain("10.0.0.9"), "GET", Verdict{Reason: MTLSRequired}},
		{"permissive, plaintext, rule for anyone", Inbound{MTLS: Permissive, Rules: []InboundRule{allow("r", anyone)}}, plain("10.0.0.9"), "GET", Verdict{true, ByRule, "r"}},
		{"permissive, plaintext, rule for a name", Inbound{MTLS: Permissive, Rules: []InboundRule{allow("r", shop)}}, plain("10.0.0.9"), "GET", Verdict{Reason: NoRule}},
		{"permissive mesh, strict rule", Inbound{MTLS: Permissive, Rules: []InboundRule{allow("r", anyone, mode(Strict))}}, plain("10.0.0.9"), "GET", Verdict{Reason: NoRule}},
		{"strict mesh, permissive rule", Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", anyone, mode(Permissive))}}, plain("10.0.0.9"), "GET", Verdict{true, ByRule, "r"}},
		{"disabled tells callers by address", Inbound{MTLS: Strict, Rules: []InboundRule{addressed}}, plain("10.0.0.7"), "GET", Verdict{true, ByRule, "by-address"}},
		{"and nobody else", Inbound{MTLS: Strict, Rules: []InboundRule{addressed}}, plain("10.0.0.8"), "GET", Verdict{Reason: MTLSRequired}},
		{"health checks pass", Inbound{MTLS: Strict}, verified(ControlPlane), "GET", Verdict{true, ByControl, ""}},
		{"but nothing else of the control plane", Inbound{MTLS: Strict}, verified(ControlPlane), "POST", Verdict{Reason: NoRule}},
		{"an unverified name counts for nothing", Inbound{MTLS: Permissive, Rules: []InboundRule{allow("r", shop)}}, Caller{Name: shop}, "GET", Verdict{Reason: NoRule}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.in.Service = orders
			if got := guardOf(t, c.in).Authorize(&Call{Caller: c.caller, Method: c.method}); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestRulesForOtherDestinationsDoNotCount(t *testing.T) {
	r := allow("r", shop)
	r.DestinationService = "users"
	if guardOf(t, Inbound{Service: orders, MTLS: Strict, Rules: []InboundRule{r}}).Authorize(&Call{Caller: verified(shop), Method: "GET"}).Allow {
		t.Error("a rule about users let a call to orders pass")
	}
}

func TestTakesPlaintext(t *testing.T) {
	for _, c := range []struct {
		in   Inbound
		want bool
	}{
		{Inbound{MTLS: Strict}, false},
		{Inbound{MTLS: Permissive}, true},
		{Inbound{MTLS: Disabled}, true},
		{Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", ServiceName{Any, Any}, mode(Permissive))}}, true},
		{Inbound{MTLS: Strict, Rules: []InboundRule{allow("r", shop, mode(Permissive))}}, false},
	} {
		c.in.Service = orders
		if got := guardOf(t, c.in).TakesPlaintext(80); got != c.want {
			t.Errorf("%+v: got %v", c.in, got)
		}
	}
}

func TestAuthorizeAllocatesNothing(t *testing.T) {
	g := guardOf(t, Inbound{Service: orders, MTLS: Strict, Rules: []InboundRule{allow("r", shop), allow("s", ServiceName{"default", Any})}})
	c := &Call{Caller: verified(shop), Method: "GET"}
	if n := testing.AllocsPerRun(100, func() { g.Authorize(c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSecurityRuleProblemsNameThePath(t *testing.T) {
	r := SecurityRule{SourceNamespace: "", SourceService: "a b", DestinationNamespace: "default", DestinationService: Any, MTLSMode: "maybe"}
	text := r.Validate().Error()
	for _, want := range []string{"source_namespace:", "source_service:", "allowed_methods:", `mtls_mode: "maybe" is not one of strict, permissive, disabled`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	if strings.Contains(text, "destination") {
		t.Errorf("destinations are fine: %q", text)
	}
}
