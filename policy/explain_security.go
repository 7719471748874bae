package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// explainSecurity decides as the proxy beside the endpoint does; nil is that there
// is none, and then as it would on the port that was named.
func (e *Explanation) explainSecurity(q *Question, to *Service, target *Target, route Route, known Knowledge) error {
	if target != nil && !target.Meshed {
		e.Allowed, e.Reason = true, "not-enforced"
		e.Why = "no proxy is beside the endpoint, which lets in whom it wants"
		return nil
	}
	in := known.Inbound(to.Name)
	guard, err := NewGuard(in)
	if err != nil {
		return err
	}
	call := q.call(e, to, target, route, known)
	path, ok := e.readPath(call.Method != "" && in.LooksAtPath(), call.Path, func(target, reading string) bool {
		return guard.sameVerdict(*call, target, reading)
	})
	if call.Path = path; !ok {
		return nil
	}
	v := guard.Authorize(call)
	e.Allowed, e.Reason, e.Rule, e.Why = v.Allow, v.Reason, v.Rule, v.text(call)
	guard.Audit(call, func(rule string) { e.Audits = append(e.Audits, rule) })
	if e.Security, err = guard.Consider(call, v); err == nil {
		e.whole()
	}
	return err
}

// call is what the proxy at the endpoint sees.
func (q *Question) call(e *Explanation, to *Service, target *Target, route Route, known Knowledge) *Call {
	c := &Call{Port: q.Port, Method: q.Method, Path: e.Route.Path}
	mtls := !to.Traffic.SendsPlaintext(q.From, q.Port)
	if target != nil {
		c.Port, mtls = uint16(target.Port), e.Encryption.Kind == "mtls"
		if target.Protocol == "tcp" || target.Protocol == "tls" {
			c.Method = "" // what is declared so is not looked into
		}
	}
	c.Caller = Caller{Name: q.From, Verified: mtls}
	if addrs := known.Addresses(q.From); !mtls && len(addrs) > 0 {
		c.Addr = addrs[0]
	}
	header := maps.Clone(q.Header)
	if route.Plan != nil {
		if header == nil {
			header = map[string][]string{}
		}
		for _, change := range route.Plan.Request {
			switch name := strings.ToLower(change.Name); change.Kind {
			case RemoveHeader:
				delete(header, name)
			case SetHeader:
				header[name] = []string{change.Value}
			case AddHeader:
				header[name] = append(slices.Clone(header[name]), change.Value)
			}
		}
	}
	c.Header = func(name string, n int) (string, bool) { return field(header, name, n) }
	c.Token = func() (map[string]any, Reason) { return q.Claims, q.Token }
	return c
}

// text says a verdict in a sentence.
func (v Verdict) text(c *Call) string {
	switch v.Reason {
	case ByRule:
		return "security rule " + v.Rule + " allows it"
	case ByDefault:
		return "no security rule is about it, and default_policy is allow"
	case ByControl:
		return "the control plane may check health"
	case NoRule:
		return "no security rule is about it, and default_policy is deny"
	case Denied:
		return "security rule " + v.Rule + " denies it"
	case TokenMissing:
		return "security rule " + v.Rule + " asks for a token, and there is none"
	case TokenInvalid:
		return "security rule " + v.Rule + " asks for a token, and the one that is there does not hold"
	case MTLSRequired:
		return fmt.Sprintf("it comes without mTLS, and mtls_mode of port %d is strict", c.Port)
	}
	return fmt.Sprintf("no security rule allows it; of rule %s, the last about the caller, %s", v.Rule, missText(v.Reason, c))
}

func missText(miss Reason, c *Call) string {
	if c.opaque() {
		return "the connection is not read as HTTP, so what it asks for cannot be seen"
	}
	switch miss {
	case MethodDenied:
		return "method " + c.Method + " is not in allowed_methods"
	case PathDenied:
		return "path " + c.path() + " is none of paths"
	case HeaderDenied:
		return "headers do not match"
	case ClaimDenied:
		return "the token's claims do not match"
	}
	return ""
}

// Consider tells of each rule what it said of a call about which the verdict is
// known.
func (g *Guard) Consider(c *Call, v Verdict) ([]Considered, error) {
	mode := g.at(c.Port).mode
	var out []Considered
	for i := range g.in.Rules {
		r := &g.in.Rules[i]
		if !r.AppliesTo(g.in.Service) {
			continue
		}
		one, err := newGuardRule(&r.SecurityRule, mode)
		if err != nil {
			return nil, err
		}
		said := Considered{Rule: r.ID, Does: string(r.Does()), Decided: v.Rule != "" && r.ID == v.Rule}
		said.Why = r.passes(c, one)
		if said.Why == "" {
			said.Why = one.says(r.Does(), c, v)
		}
		out = append(out, said)
	}
	return out, nil
}

// passes tells why a rule is not about a call at all; "" is that it is.
func (r *InboundRule) passes(c *Call, compiled *guardRule) string {
	from := r.FromAnyone() && (c.Verified || compiled.mode != Strict || r.Does() != Allow)
	if c.Verified {
		from = r.IsFrom(c.Name)
	} else if compiled.mode == Disabled || r.Does() != Allow {
		from = from || slices.Contains(r.Addresses, c.Addr)
	}
	switch {
	case len(r.Ports) > 0 && !slices.Contains(r.Ports, int(c.Port)):
		return fmt.Sprintf("is not about port %d", c.Port)
	case !from && !c.Verified && r.IsFrom(c.Name):
		return "names the caller, who cannot be told without mTLS"
	case !from:
		return "is from " + strings.Join(r.sourceTexts(), ", ")
	}
	return ""
}

func (r *SecurityRule) sourceTexts() (texts []string) {
	for _, s := range r.From() {
		texts = append(texts, s.String())
	}
	return texts
}

// says tells what a rule that is about a call says of it.
func (r *guardRule) says(does RuleAction, c *Call, v Verdict) string {
	path := c.path()
	if does != Allow {
		switch {
		case !r.hits(c, path):
			return "is about the caller, but not about this: " + missText(r.misses(c, path), c)
		case does == Audit:
			return "is about it; it is counted and logged"
		case v.Rule == r.id:
			return "decided: what a rule denies no other allows"
		}
		return "denies it too, but is not the first"
	}
	miss := r.misses(c, path)
	switch {
	case miss != "" && v.Rule == r.id:
		return "decided, as the last about the caller that does not allow it: " + missText(miss, c)
	case miss != "":
		return missText(miss, c)
	case v.Rule == r.id:
		return "decided"
	case v.Reason == Denied:
		return "would allow it, but rule " + v.Rule + " denies it"
	case v.Allow && r.jwt:
		return "would allow it too, with a token; rule " + v.Rule + " asks for none, or comes before it"
	}
	return "would allow it too, but rule " + v.Rule + " comes before it"
}
