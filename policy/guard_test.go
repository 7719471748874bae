package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// plainVerdict is what Authorize is to do, written plainly: the rules one after
// the other, those with Any in their source last.
func plainVerdict(in *Inbound, c Caller, method string) Verdict {
	if c.Verified && c.Name == ControlPlane && (method == "GET" || method == "") {
		return Verdict{Allow: true, Reason: ByControl}
	}
	v := Verdict{Reason: NoRule}
	for _, patterns := range []bool{false, true} {
		for i := range in.Rules {
			r := &in.Rules[i]
			if isPattern := r.SourceNamespace == Any || r.SourceService == Any; plainlyAbout(in, r, c, patterns, isPattern) {
				v = considered(v, r, method)
			}
		}
	}
	switch {
	case v.Reason != NoRule:
		return v
	case !c.Verified && in.MTLS == Strict:
		return Verdict{Reason: MTLSRequired}
	case in.DefaultAllow:
		return Verdict{Allow: true, Reason: ByDefault}
	}
	return v
}

func plainlyAbout(in *Inbound, r *InboundRule, c Caller, patterns, isPattern bool) bool {
	m := r.MTLSMode
	if m == "" {
		m = in.MTLS
	}
	switch {
	case !r.AppliesTo(in.Service):
		return false
	case c.Verified:
		return isPattern == patterns && matchName(r.Source(), c.Name)
	case patterns:
		return r.Source() == ServiceName{Any, Any} && m != Strict
	}
	return m == Disabled && slices.Contains(r.Addresses, c.Addr)
}

func considered(v Verdict, r *InboundRule, method string) Verdict {
	allows := slices.Contains(r.AllowedMethods, Any) || slices.Contains(r.AllowedMethods, method)
	if method == "" {
		allows = slices.Contains(r.AllowedMethods, Any)
		if !allows {
			allows = !slices.ContainsFunc(DefaultMethods(), func(m string) bool { return !slices.Contains(r.AllowedMethods, m) })
		}
	}
	switch {
	case !allows && !v.Allow:
		return Verdict{Reason: MethodDenied, Rule: r.ID}
	case allows && (!v.Allow || v.RequireJWT && !r.RequiredJWT):
		return Verdict{Allow: true, Reason: ByRule, Rule: r.ID, RequireJWT: r.RequiredJWT}
	}
	return v
}

// Whatever rules are found by, they decide as if they were asked one by one.
func TestAGuardDecidesAsItsRulesDoOneByOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}
	spaces, names := []string{"default", "prod", Any}, []string{"shop", "cart", Any}
	allowed := [][]string{{"GET"}, {"GET", "PUT"}, {"POST"}, {Any}, DefaultMethods(), {"GET", Any}}
	seen := map[Verdict]bool{}
	for range 1500 {
		in := Inbound{Service: orders, MTLS: one(rnd, []MTLSMode{Strict, Permissive, Disabled}), DefaultAllow: rnd.IntN(3) == 0}
		for i := range rnd.IntN(12) {
			r := allow(fmt.Sprint("r", i), ServiceName{one(rnd, spaces), one(rnd, names)}, methods(one(rnd, allowed)...),
				mode(one(rnd, []MTLSMode{"", Strict, Permissive, Disabled})))
			r.RequiredJWT = rnd.IntN(2) == 0
			r.DestinationService = one(rnd, []string{orders.Name, orders.Name, Any, "other"})
			r.Addresses = addrs[:rnd.IntN(len(addrs))]
			in.Rules = append(in.Rules, r)
		}
		guard := NewGuard(in)
		for range 20 {
			c := Caller{
				Name:     ServiceName{one(rnd, []string{"default", "prod", "test"}), one(rnd, []string{"shop", "cart", "bank"})},
				Verified: rnd.IntN(2) == 0, Addr: one(rnd, addrs),
			}
			method := one(rnd, []string{"GET", "PUT", "POST", "DELETE", "BREW", ""})
			got, want := guard.Authorize(c, method), plainVerdict(&in, c, method)
			if got != want {
				t.Fatalf("%+v %q: got %+v, want %+v, of %+v", c, method, got, want, in)
			}
			seen[want] = true
		}
	}
	if len(seen) < 30 {
		t.Errorf("only %d verdicts: the cases are too tame", len(seen))
	}
}
