package controlplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// judge decides about recorded flows as the proxies of a state would.
type judge struct {
	view    *view
	guards  map[policy.ServiceName]*policy.Guard
	routers map[policy.ServiceName]*router
}

// router is a service's, with its rules by id.
type router struct {
	*policy.Router
	rules map[string]*policy.TrafficRule
}

func newJudge(v *view) *judge {
	return &judge{v, map[policy.ServiceName]*policy.Guard{}, map[policy.ServiceName]*router{}}
}

// judgement is what becomes of a flow. Inbound ones have a verdict, outbound ones
// routes.
type judgement struct {
	verdict *policy.Verdict
	routes  []policy.Choice
}

func (j *judge) judge(f *policy.Flow) judgement {
	if f.Direction == policy.FlowInbound {
		g := j.guard(f.Destination)
		if g == nil {
			return judgement{}
		}
		v := g.Authorize(j.call(f))
		return judgement{verdict: &v}
	}
	if f.Method == "" {
		return judgement{} // connections have no route
	}
	r := j.router(f.Destination)
	if r == nil {
		return judgement{}
	}
	return judgement{routes: r.Choices(r.like(f))}
}

// guard gives nil for a service whose rules are not valid.
func (j *judge) guard(name policy.ServiceName) *policy.Guard {
	g, known := j.guards[name]
	if !known {
		if compiled, err := policy.NewGuard(j.view.Inbound(name)); err == nil {
			g = compiled
		}
		j.guards[name] = g
	}
	return g
}

// call makes a call of a flow. What was folded of its path is taken for 1; headers
// and claims, which were not recorded, are those for which the rule asks that it
// went by.
func (j *judge) call(f *policy.Flow) *policy.Call {
	c := &policy.Call{Caller: j.caller(f), Port: f.Port, Method: f.Method, Path: unfold(f.Path)}
	rule := j.ruleOf(f)
	if rule == nil {
		rule = &policy.InboundRule{}
	}
	c.Header = func(name string, n int) (string, bool) { return exampleField(rule.Headers, name, n) }
	c.Token = func() (map[string]any, policy.Reason) {
		if !f.Token {
			return nil, policy.TokenMissing
		}
		claims := map[string]any{}
		for name, values := range rule.Claims {
			if len(values) > 0 {
				claims[name] = values[0]
			}
		}
		return claims, ""
	}
	return c
}

// ruleOf is the rule by which a flow was decided, nil where it is no more.
func (j *judge) ruleOf(f *policy.Flow) *policy.InboundRule {
	rules := j.guard(f.Destination).Settings().Rules
	i := slices.IndexFunc(rules, func(r policy.InboundRule) bool { return r.ID == f.Rule })
	if i < 0 {
		return nil
	}
	return &rules[i]
}

func unfold(path string) string { return strings.ReplaceAll(path, "/*", "/1") }

// exampleField is a field that fits what is wanted of it.
func exampleField(wanted map[string]string, name string, n int) (string, bool) {
	for field, pattern := range wanted {
		if n == 0 && strings.EqualFold(field, name) {
			return example(pattern)
		}
	}
	return "", false
}

// caller is who called. Of one without a certificate the proxy did not tell the
// address; where a rule for the addresses of a service let it in, it had one of
// these.
func (j *judge) caller(f *policy.Flow) policy.Caller {
	if f.SourceClass == "" {
		return policy.Caller{Name: f.Source, Verified: true}
	}
	c := policy.Caller{Addr: netip.Addr{}}
	if rule := j.ruleOf(f); rule != nil && len(rule.Addresses) > 0 {
		c.Addr = rule.Addresses[0]
	}
	return c
}

// router gives nil for a service that is not known, or whose rules are not valid.
func (j *judge) router(name policy.ServiceName) *router {
	r, known := j.routers[name]
	if known {
		return r
	}
	if svc, ok := j.view.Service(name); ok {
		if compiled, err := policy.NewRouter(svc); err == nil {
			r = &router{compiled, map[string]*policy.TrafficRule{}}
			for i := range svc.Rules {
				r.rules[svc.Rules[i].ID] = &svc.Rules[i]
			}
		}
	}
	j.routers[name] = r
	return r
}

// like makes a request of a flow. What was folded of its path is taken for 1; what
// was not recorded of it, headers, host and query, is what the rule asks for that
// it went by.
func (r *router) like(f *policy.Flow) *policy.Request {
	req := &policy.Request{Method: f.Method, Path: unfold(f.Path), Host: f.Destination.Name, Header: func(string) (string, bool) { return "", false }}
	rule := r.rules[f.Route]
	if rule == nil {
		return req
	}
	if host, ok := example(rule.MatchHost); ok && host != "" {
		req.Host = strings.Replace(host, "*", "x", 1)
	}
	separator := "?"
	for name, want := range rule.MatchQuery {
		if value, ok := example(want); ok {
			req.Path += separator + name + "=" + value
			separator = "&"
		}
	}
	req.Header = func(name string) (string, bool) { return exampleField(rule.MatchHeaders, name, 0) }
	return req
}

// example is a value that a pattern matches; not ok for what would take more than
// a look.
func example(pattern string) (string, bool) {
	kind, rest, found := strings.Cut(pattern, ":")
	if !found {
		return pattern, true
	}
	switch kind {
	case "prefix":
		return rest, true
	case "present":
		return "1", true
	case "regex", "not", "absent":
		return "", false
	}
	return pattern, true
}

// compareJudgements names how the second differs from the first; "" is not at all.
func compareJudgements(before, after judgement) (change, was, is string) {
	if before.verdict != nil && after.verdict != nil {
		b, a := before.verdict.Allow, after.verdict.Allow
		was, is = verdictText(before.verdict), verdictText(after.verdict)
		switch {
		case b && !a && (after.verdict.Reason == policy.TokenMissing || after.verdict.Reason == policy.TokenInvalid):
			return "token", was, is
		case b && !a:
			return "denied", was, is
		case !b && a:
			return "allowed", was, is
		case a && b && was != is:
			return "rule", was, is
		}
		return "", "", ""
	}
	was, is = routesText(before.routes), routesText(after.routes)
	if was == is {
		return "", "", ""
	}
	return "route", was, is
}

func verdictText(v *policy.Verdict) string {
	text := "denied: " + string(v.Reason)
	if v.Allow {
		text = "allowed: " + string(v.Reason)
	}
	if v.Rule != "" {
		text += " " + v.Rule
	}
	return text
}

func routesText(choices []policy.Choice) string {
	var parts []string
	for _, c := range choices {
		text := c.Service.String()
		if c.Subset != "" {
			text += "[" + c.Subset + "]"
		}
		if c.Rule != "" {
			text += " by " + c.Rule
		}
		if len(choices) > 1 {
			text += fmt.Sprintf(" %.4g%%", 100*c.Share)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}
