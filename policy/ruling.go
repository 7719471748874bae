package policy

// A ruling is what rules that allow say about a call; the zero value is nothing.
type ruling struct {
	by    *guardRule
	allow bool
}

func (r ruling) verdict(c *Call, path string) Verdict {
	if !r.allow {
		return Verdict{Reason: r.by.misses(c, path), Rule: r.by.id}
	}
	if r.by.jwt {
		if _, refused := c.token(); refused != "" {
			return Verdict{Reason: refused, Rule: r.by.id}
		}
	}
	return Verdict{Allow: true, Reason: ByRule, Rule: r.by.id}
}

// denial is the verdict of a rule that denies.
func (r *guardRule) denial(c *Call) Verdict {
	if len(r.claims) > 0 && !c.opaque() {
		if _, refused := c.token(); refused != "" { // a token may help
			return Verdict{Reason: refused, Rule: r.id}
		}
	}
	return Verdict{Reason: Denied, Rule: r.id}
}

// or gives the ruling that stands of two: one that allows, without a token if
// there is one, the first of its kind; else the last that denies.
func (r ruling) or(s ruling) ruling {
	if r.by == nil || s.by != nil && s.beats(r) {
		return s
	}
	return r
}

func (r ruling) beats(s ruling) bool {
	switch {
	case r.allow != s.allow:
		return r.allow
	case !r.allow:
		return r.by.at > s.by.at
	case r.by.jwt != s.by.jwt:
		return s.by.jwt
	}
	return r.by.at < s.by.at
}

// ruleList is the rules about one source, in order.
type ruleList struct {
	plain  plainList
	last   *guardRule // with conditions: what none of them allows it denies
	asks   ruleSet    // those that allow with conditions, those without a token first
	denies ruleSet
}

// plainList is the rules that look at nothing but the method. It keeps of them what
// can decide: its price does not grow with their number.
type plainList struct {
	last   *guardRule            // denies what none allows
	star   *guardRule            // decides where every method is allowed
	opaque *guardRule            // decides about connections without methods
	named  map[string]*guardRule // decides about a method; made for the second rule
}

// add takes the next rule.
func (l *plainList) add(r *guardRule) {
	if l.last != nil && l.named == nil {
		l.named = map[string]*guardRule{}
		l.name(l.last)
	}
	if l.named != nil {
		l.name(r)
	}
	if r.star {
		l.star = preferred(l.star, r)
	}
	if r.any {
		l.opaque = preferred(l.opaque, r)
	}
	l.last = r
}

func (l *plainList) name(r *guardRule) {
	for _, m := range r.methods {
		l.named[m] = preferred(l.named[m], r)
	}
}

// preferred gives the one that decides of two rules that allow, the second
// being the later.
func preferred(first, second *guardRule) *guardRule {
	if first == nil || first.jwt && !second.jwt {
		return second
	}
	return first
}

// rule decides about a method.
func (l *plainList) rule(method string) ruling {
	switch {
	case l.last == nil:
		return ruling{}
	case l.named == nil:
		return ruling{l.last, l.last.allows(method)}
	}
	best := ruling{by: l.last}
	if method == "" {
		return best.or(allowed(l.opaque))
	}
	return best.or(allowed(l.star)).or(allowed(l.named[method]))
}

func allowed(r *guardRule) ruling { return ruling{r, r != nil} }

// rule decides about a call, as far as rules allow.
func (l *ruleList) rule(c *Call, path string) ruling {
	best := l.plain.rule(c.Method)
	if l.last == nil {
		return best
	}
	return best.or(ruling{by: l.last}).or(allowed(l.asks.first(c, path)))
}
