package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// table is rules by how a caller is told: the price of a call is a look-up for
// each shape of names that the rules use, however many rules there are.
type table struct {
	callers   map[ServiceName]*ruleList // named whole, as most are
	lists     map[sourceKey]*ruleList   // by patterns
	shapes    []shape                   // of these
	addresses map[netip.Addr]*ruleList  // of callers without a certificate
	plaintext ruleList                  // of every such caller
	audits    []auditRule
	denies    bool // some rule does
	lenient   bool // some rule lets plaintext in
}

// shape says how much of each part of a name a pattern gives: the length of the
// prefix, 0 being Any, or whole.
type shape struct{ namespace, name int }

const whole = -1

type sourceKey struct {
	shape
	namespace, name string
}

type auditRule struct {
	*guardRule
	from      []ServiceName
	addresses []netip.Addr
}

// keyOf files a pattern.
func keyOf(pattern ServiceName) sourceKey {
	var k sourceKey
	k.namespace, k.shape.namespace = partOf(pattern.Namespace)
	k.name, k.shape.name = partOf(pattern.Name)
	return k
}

func partOf(pattern string) (text string, length int) {
	if prefix, ok := strings.CutSuffix(pattern, Any); ok {
		return prefix, len(prefix)
	}
	return pattern, whole
}

// of finds what a name is filed under in a shape.
func (s shape) of(n ServiceName) (sourceKey, bool) {
	if s.namespace > len(n.Namespace) || s.name > len(n.Name) {
		return sourceKey{}, false
	}
	k := sourceKey{shape: s, namespace: n.Namespace, name: n.Name}
	if s.namespace != whole {
		k.namespace = k.namespace[:s.namespace]
	}
	if s.name != whole {
		k.name = k.name[:s.name]
	}
	return k, true
}

func newTable() *table {
	return &table{callers: map[ServiceName]*ruleList{}, lists: map[sourceKey]*ruleList{}, addresses: map[netip.Addr]*ruleList{}}
}

// add takes the next rule of how many; mode is that of the port.
func (t *table) add(r *InboundRule, at, of int, mode MTLSMode) error {
	c, err := newGuardRule(&r.SecurityRule, mode)
	if err != nil {
		return err
	}
	c.at = at
	if r.Does() == Audit {
		t.audits = append(t.audits, auditRule{c, r.From(), r.Addresses})
		return nil
	}
	t.denies = t.denies || r.Does() == Deny
	if c.mode == Disabled || r.Does() == Deny {
		t.lenient = t.lenient || r.Does() == Allow && len(r.Addresses) > 0
		for _, a := range r.Addresses {
			listOf(t.addresses, a).add(c, r.Does())
		}
	}
	// Rules with patterns are considered after those that name the caller, or its
	// address.
	later := *c
	later.at += of
	for _, source := range r.From() {
		key := keyOf(source)
		if key.shape == (shape{whole, whole}) {
			listOf(t.callers, source).add(c, r.Does())
			continue
		}
		listOf(t.lists, key).add(&later, r.Does())
		t.lenient = t.lenient || c.mode != Strict && r.Does() == Allow
		if source == (ServiceName{Any, Any}) && (c.mode != Strict || r.Does() == Deny) {
			t.plaintext.add(&later, r.Does())
		}
	}
	return nil
}

func listOf[K comparable](lists map[K]*ruleList, key K) *ruleList {
	l := lists[key]
	if l == nil {
		l = &ruleList{}
		lists[key] = l
	}
	return l
}

func (l *ruleList) add(r *guardRule, does RuleAction) {
	switch {
	case does == Deny:
		l.denies.rules = append(l.denies.rules, r)
	case r.plain():
		l.plain.add(r)
	default:
		l.asks.rules = append(l.asks.rules, r)
		l.last = r
	}
}

// build makes the table ready, after the last rule.
func (t *table) build() {
	for _, l := range t.callers {
		l.build()
	}
	for key, l := range t.lists {
		l.build()
		if !slices.Contains(t.shapes, key.shape) {
			t.shapes = append(t.shapes, key.shape)
		}
	}
	slices.SortFunc(t.shapes, func(a, b shape) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	for _, l := range t.addresses {
		l.build()
	}
	t.plaintext.build()
}

func (l *ruleList) build() {
	l.asks.fits, l.denies.fits = (*guardRule).fits, (*guardRule).hits
	slices.SortStableFunc(l.asks.rules, func(a, b *guardRule) int {
		switch {
		case a.jwt == b.jwt:
			return 0
		case b.jwt:
			return -1
		}
		return 1
	})
	l.asks.build()
	l.denies.build()
}

// about calls f with each list of rules about a caller.
func (t *table) about(c *Caller, f func(*ruleList)) {
	if !c.Verified {
		if l := t.addresses[c.Addr]; l != nil {
			f(l)
		}
		f(&t.plaintext)
		return
	}
	if l := t.callers[c.Name]; l != nil {
		f(l)
	}
	for _, s := range t.shapes {
		if key, ok := s.of(c.Name); ok {
			if l := t.lists[key]; l != nil {
				f(l)
			}
		}
	}
}

// denial gives the first rule that denies a call, or first if that comes before.
func (t *table) denial(c *Call, path string, first *guardRule) *guardRule {
	if !t.denies {
		return first
	}
	t.about(&c.Caller, func(l *ruleList) {
		if r := l.denies.first(c, path); r != nil && (first == nil || r.at < first.at) {
			first = r
		}
	})
	return first
}

// rule decides about a call, as far as rules allow.
func (t *table) rule(c *Call, path string) (best ruling) {
	t.about(&c.Caller, func(l *ruleList) { best = best.or(l.rule(c, path)) })
	return best
}

// isFrom tells whether the rule is about a caller.
func (r *auditRule) isFrom(c *Caller) bool {
	if !c.Verified && slices.Contains(r.addresses, c.Addr) {
		return true
	}
	for _, source := range r.from {
		if source == (ServiceName{Any, Any}) || c.Verified && matchName(source, c.Name) {
			return true
		}
	}
	return false
}
