package policy

import (
	"fmt"
	"slices"
)

// Guard holds an Inbound made ready for decisions. It is immutable.
type Guard struct {
	in    Inbound
	rest  place
	ports map[uint16]*place // those with rules or a mode of their own

	audits bool
}

// place is what holds for calls to a port.
type place struct {
	mode    MTLSMode
	general *table // of the rules for every port,
	own     *table // and for this one; nil where there are none
}

// NewGuard compiles what a proxy enforces. The error names the rule.
func NewGuard(in Inbound) (*Guard, error) {
	g := &Guard{in: in, ports: map[uint16]*place{}}
	every, own := in.byPort()
	general := map[MTLSMode]*table{}
	at := func(mode MTLSMode) (t *table, err error) {
		if general[mode] == nil {
			general[mode], err = g.compile(mode, every)
		}
		return general[mode], err
	}
	var err error
	if g.rest.general, err = at(in.MTLS); err != nil {
		return nil, err
	}
	g.rest.mode = in.MTLS
	for port, rules := range own {
		p := &place{mode: in.Mode(port)}
		if p.general, err = at(p.mode); err != nil {
			return nil, err
		}
		if len(rules) > 0 {
			if p.own, err = g.compile(p.mode, rules); err != nil {
				return nil, err
			}
		}
		g.ports[port] = p
	}
	return g, nil
}

// byPort lists the places of the rules: those for every port, and by port those
// that name it. A port with a mode of its own is in it even without rules.
func (in *Inbound) byPort() (every []int, own map[uint16][]int) {
	own = map[uint16][]int{}
	for port := range in.PortModes {
		own[port] = nil
	}
	for i := range in.Rules {
		r := &in.Rules[i]
		if !r.AppliesTo(in.Service) {
			continue
		}
		if len(r.Ports) == 0 {
			every = append(every, i)
		}
		for _, port := range slices.Compact(slices.Sorted(slices.Values(r.Ports))) {
			own[uint16(port)] = append(own[uint16(port)], i)
		}
	}
	return every, own
}

// compile makes a table of some of the rules.
func (g *Guard) compile(mode MTLSMode, rules []int) (*table, error) {
	t := newTable()
	for _, i := range rules {
		r := &g.in.Rules[i]
		g.audits = g.audits || r.Does() == Audit
		if err := t.add(r, i, len(g.in.Rules), mode); err != nil {
			return nil, fmt.Errorf("security rule %q: %w", r.ID, err)
		}
	}
	t.build()
	return t, nil
}

// Settings gives the Inbound the guard was made of.
func (g *Guard) Settings() *Inbound { return &g.in }

func (g *Guard) at(port uint16) *place {
	if len(g.ports) > 0 {
		if p := g.ports[port]; p != nil {
			return p
		}
	}
	return &g.rest
}

// Authorize decides about one call. What a rule denies no other allows. A rule
// that allows wins over one that does not; one without a token wins over one that
// needs it. No rule means deny, unless the default is to allow.
func (g *Guard) Authorize(c *Call) Verdict {
	if c.checksHealth() {
		return Verdict{Allow: true, Reason: ByControl}
	}
	p, path := g.at(c.Port), c.path()
	if r := p.denial(c, path); r != nil {
		return r.denial(c)
	}
	if best := p.rule(c, path); best.by != nil {
		return best.verdict(c, path)
	}
	switch {
	case !c.Verified && p.mode == Strict:
		return Verdict{Reason: MTLSRequired}
	case g.in.DefaultAllow:
		return Verdict{Allow: true, Reason: ByDefault}
	}
	return Verdict{Reason: NoRule}
}

// checksHealth tells whether the control plane looks whether the app is well: no
// rule is about that.
func (c *Call) checksHealth() bool {
	return c.Verified && c.Name == ControlPlane && (c.Method == "GET" || c.opaque())
}

// Audits tells whether some rule audits.
func (g *Guard) Audits() bool { return g.audits }

// Audit calls note with the id of each rule of that kind that is about a call. It
// goes through all of them.
func (g *Guard) Audit(c *Call, note func(rule string)) {
	if p := g.at(c.Port); !c.checksHealth() {
		p.general.audit(c, note)
		if p.own != nil {
			p.own.audit(c, note)
		}
	}
}

func (t *table) audit(c *Call, note func(rule string)) {
	for i := range t.audits {
		if r := &t.audits[i]; r.isFrom(&c.Caller) && r.hits(c, c.path()) {
			note(r.id)
		}
	}
}

func (p *place) denial(c *Call, path string) *guardRule {
	first := p.general.denial(c, path, nil)
	if p.own != nil {
		first = p.own.denial(c, path, first)
	}
	return first
}

func (p *place) rule(c *Call, path string) ruling {
	best := p.general.rule(c, path)
	if p.own != nil {
		best = best.or(p.own.rule(c, path))
	}
	return best
}

// TakesPlaintext tells whether any plaintext connection to a port can be allowed,
// so that a listener may refuse the rest before it reads.
func (g *Guard) TakesPlaintext(port uint16) bool {
	p := g.at(port)
	return p.mode != Strict || p.general.lenient || p.own != nil && p.own.lenient
}
