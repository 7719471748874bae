package policy

import "net/netip"

// Guard holds an Inbound made ready for decisions. It is immutable.
type Guard struct {
	in Inbound

	// The rules, by how a caller is told: its price is a look-up in each kind
	// that the rules use, however many rules there are.
	callers    map[ServiceName]*ruleList
	namespaces map[string]*ruleList // every service of a namespace
	names      map[string]*ruleList // a service of that name in every namespace
	anyone     ruleList
	addresses  map[netip.Addr]*ruleList // where mTLS is disabled
	plaintext  ruleList                 // those for anyone that take plaintext

	lenient bool // a rule with Any in its source takes plaintext
}

type guardRule struct {
	id      string
	at      int // place in the order of consideration
	methods []string
	any     bool // every method, or at least all four of the default
	star    bool
	jwt     bool
	mode    MTLSMode
}

// NewGuard compiles what a proxy enforces.
func NewGuard(in Inbound) *Guard {
	g := &Guard{
		in: in, callers: map[ServiceName]*ruleList{}, namespaces: map[string]*ruleList{},
		names: map[string]*ruleList{}, addresses: map[netip.Addr]*ruleList{},
	}
	for i := range in.Rules {
		r := &in.Rules[i]
		if !r.AppliesTo(in.Service) {
			continue
		}
		c := newGuardRule(&r.SecurityRule, in.MTLS)
		c.at = i
		if c.mode == Disabled {
			for _, a := range r.Addresses {
				listOf(g.addresses, a).add(c)
			}
		}
		g.bySource(r.Source(), c)
	}
	return g
}

// bySource files a rule under its source. Those with Any in it are considered
// after those that name the caller, or its address.
func (g *Guard) bySource(source ServiceName, c *guardRule) {
	if source.Namespace != Any && source.Name != Any {
		listOf(g.callers, source).add(c)
		return
	}
	later := *c
	later.at += len(g.in.Rules)
	g.lenient = g.lenient || c.mode != Strict
	switch {
	case source.Name != Any:
		listOf(g.names, source.Name).add(&later)
	case source.Namespace != Any:
		listOf(g.namespaces, source.Namespace).add(&later)
	default:
		g.anyone.add(&later)
		if c.mode != Strict {
			g.plaintext.add(&later)
		}
	}
}

func newGuardRule(r *SecurityRule, mesh MTLSMode) *guardRule {
	c := &guardRule{id: r.ID, methods: r.AllowedMethods, jwt: r.RequiredJWT, mode: r.MTLSMode}
	if c.mode == "" {
		c.mode = mesh
	}
	for _, m := range r.AllowedMethods {
		c.star = c.star || m == Any
	}
	c.any = true
	for _, m := range DefaultMethods() {
		c.any = c.any && c.allows(m)
	}
	return c
}

// allows tells whether a method may be used; "" is a connection that carries
// no methods we can see, which only a rule may allow that restricts none.
func (r *guardRule) allows(method string) bool {
	if r.star {
		return true
	}
	if method == "" {
		return r.any
	}
	for _, m := range r.methods {
		if m == method {
			return true
		}
	}
	return false
}

// Settings gives the Inbound the guard was made of.
func (g *Guard) Settings() *Inbound { return &g.in }

// Authorize decides about one request, or with method "" about a connection
// whose bytes are not HTTP. A rule that allows wins over one that does not;
// one without a token wins over one that needs it. No rule means deny.
func (g *Guard) Authorize(c Caller, method string) Verdict {
	if c.Verified && c.Name == ControlPlane && (method == "GET" || method == "") {
		return Verdict{Allow: true, Reason: ByControl}
	}
	var best ruling
	if c.Verified {
		best = g.callers[c.Name].rule(method)
		if len(g.namespaces) > 0 {
			best = best.or(g.namespaces[c.Name.Namespace].rule(method))
		}
		if len(g.names) > 0 {
			best = best.or(g.names[c.Name.Name].rule(method))
		}
		if g.anyone.last != nil {
			best = best.or(g.anyone.rule(method))
		}
	} else {
		best = g.addresses[c.Addr].rule(method).or(g.plaintext.rule(method))
	}
	if best.by != nil {
		return best.verdict()
	}
	if !c.Verified && g.in.MTLS == Strict {
		return Verdict{Reason: MTLSRequired}
	}
	if g.in.DefaultAllow {
		return Verdict{Allow: true, Reason: ByDefault}
	}
	return Verdict{Reason: NoRule}
}

// TakesPlaintext tells whether any plaintext connection can be allowed, so that
// a listener may refuse the rest before it reads.
func (g *Guard) TakesPlaintext() bool {
	return g.in.MTLS != Strict || len(g.addresses) > 0 || g.lenient
}
