package policy

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// guardRule is a security rule made ready for decisions.
type guardRule struct {
	id      string
	at      int // place in the order of consideration
	methods []string
	any     bool // every method, or at least all four of the default
	star    bool
	jwt     bool // a token is needed
	mode    MTLSMode
	paths   []pattern // one is to fit, if there are any
	headers []fieldMatch
	claims  []claimMatch
}

type claimMatch struct {
	name   string
	values []string
}

// newGuardRule compiles a rule; mode is that of the port.
func newGuardRule(r *SecurityRule, mode MTLSMode) (*guardRule, error) {
	c := &guardRule{id: r.ID, methods: r.AllowedMethods, jwt: r.RequiredJWT || len(r.Claims) > 0, mode: r.MTLSMode}
	if c.mode == "" {
		c.mode = mode
	}
	c.star = slices.Contains(r.AllowedMethods, Any)
	c.any = true
	for _, m := range DefaultMethods() {
		c.any = c.any && c.allows(m)
	}
	for _, path := range r.Paths {
		p, err := newPathPattern(path)
		if err != nil {
			return nil, err
		}
		c.paths = append(c.paths, p)
	}
	var err error
	if c.headers, err = newFieldMatches(r.Headers); err != nil {
		return nil, err
	}
	for _, name := range sortedNames(r.Claims) {
		c.claims = append(c.claims, claimMatch{name, r.Claims[name]})
	}
	return c, nil
}

func sortedNames(m map[string][]string) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// plain tells that nothing of a request counts but its method.
func (r *guardRule) plain() bool { return len(r.paths)+len(r.headers)+len(r.claims) == 0 }

// allows tells whether a method may be used; "" is a connection that carries
// no methods we can see, which only a rule may allow that restricts none.
func (r *guardRule) allows(method string) bool {
	if r.star {
		return true
	}
	if method == "" {
		return r.any
	}
	return slices.Contains(r.methods, method)
}

// misses tells what of a call does not fit a rule that allows; "" is nothing. Of
// a header that is there several times all values are to fit. A token that is
// missing is not what does not fit: the verdict asks for it.
func (r *guardRule) misses(c *Call, path string) Reason {
	switch {
	case !r.allows(c.Method):
		return MethodDenied
	case r.plain():
		return ""
	case len(r.paths) > 0 && (c.opaque() || !r.onPath(path)):
		return PathDenied
	case len(r.headers) > 0 && (c.opaque() || !r.allHeaders(c)):
		return HeaderDenied
	case len(r.claims) == 0:
		return ""
	}
	claims, refused := c.token()
	if refused == "" && !r.hasClaims(claims) {
		return ClaimDenied
	}
	return ""
}

func (r *guardRule) fits(c *Call, path string) bool { return r.misses(c, path) == "" }

// hits tells whether a rule that denies is about a call. It errs to that side:
// a connection may carry what is denied; of a header that is there several times
// one value is enough; who shows no token that holds may have the claims.
func (r *guardRule) hits(c *Call, path string) bool {
	switch {
	case c.opaque():
		return true
	case !r.allows(c.Method):
		return false
	case len(r.paths) > 0 && !r.onPath(path), !r.anyHeaders(c):
		return false
	case len(r.claims) == 0:
		return true
	}
	claims, refused := c.token()
	return refused != "" || r.hasClaims(claims)
}

func (r *guardRule) onPath(path string) bool {
	for i := range r.paths {
		if r.paths[i].matches(path) {
			return true
		}
	}
	return false
}

func (r *guardRule) allHeaders(c *Call) bool {
	for i := range r.headers {
		h := &r.headers[i]
		v, ok := c.header(h.name, 0)
		if !h.value.accepts(v, ok) {
			return false
		}
		for n := 1; ok; n++ {
			if v, ok = c.header(h.name, n); ok && !h.value.accepts(v, true) {
				return false
			}
		}
	}
	return true
}

func (r *guardRule) anyHeaders(c *Call) bool {
	for i := range r.headers {
		if !r.headers[i].anyOf(c) {
			return false
		}
	}
	return true
}

func (h *fieldMatch) anyOf(c *Call) bool {
	v, ok := c.header(h.name, 0)
	if h.value.accepts(v, ok) {
		return true
	}
	for n := 1; ok; n++ {
		if v, ok = c.header(h.name, n); ok && h.value.accepts(v, true) {
			return true
		}
	}
	return false
}

func (c *Call) header(name string, n int) (string, bool) {
	if c.Header == nil {
		return "", false
	}
	return c.Header(name, n)
}

func (r *guardRule) hasClaims(claims map[string]any) bool {
	for i := range r.claims {
		v, ok := claimAt(claims, r.claims[i].name)
		if !ok || !r.claims[i].has(v) {
			return false
		}
	}
	return true
}

// has tells whether a claim is one of the values, or a list that contains one.
func (m *claimMatch) has(claim any) bool {
	if list, ok := claim.([]any); ok {
		return slices.ContainsFunc(list, m.has)
	}
	return slices.Contains(m.values, claimText(claim))
}

// claimAt finds a claim: by its whole name, which may hold dots itself, or by the
// names of the objects that it is in.
func claimAt(claims map[string]any, name string) (any, bool) {
	if v, ok := claims[name]; ok {
		return v, true
	}
	for i := 0; i < len(name); i++ {
		if name[i] != '.' {
			continue
		}
		if inner, ok := claims[name[:i]].(map[string]any); ok {
			if v, ok := claimAt(inner, name[i+1:]); ok {
				return v, true
			}
		}
	}
	return nil, false
}

// claimText is a claim that is no list as text: a number without an exponent.
func claimText(claim any) string {
	switch v := claim.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	b, _ := json.Marshal(claim) // what came as JSON has one
	return string(b)
}

// ruleSet finds the first rule of an order that fits a call, without a look at
// those for other paths.
type ruleSet struct {
	rules []*guardRule
	index index
	fits  func(*guardRule, *Call, string) bool
}

// build makes the index of the rules, in their order.
func (s *ruleSet) build() {
	if len(s.rules) <= few {
		s.index = index{rest: numbers(len(s.rules))}
		return
	}
	lists := map[condition][]int32{}
	for i, r := range s.rules {
		keys := map[condition]bool{}
		for j := range r.paths {
			keys[r.paths[j].condition()] = true
		}
		if len(r.paths) == 0 || keys[condition{}] {
			keys = map[condition]bool{{}: true}
		}
		for key := range keys {
			lists[key] = append(lists[key], int32(i))
		}
	}
	s.index = indexOf(lists)
}

// condition is what a path that fits can be looked up by.
func (p *pattern) condition() condition {
	switch {
	case p.kind == matchExact:
		return condition{kind: exactPath, text: p.text}
	case p.kind == matchPrefix, p.kind == matchRegex && p.text != "":
		return condition{kind: pathPrefix, text: p.text}
	}
	return condition{}
}

// first gives the first rule that fits; nil is none.
func (s *ruleSet) first(c *Call, path string) *guardRule {
	if len(s.rules) == 0 {
		return nil
	}
	x := &s.index
	best := s.in(x.rest, int32(len(s.rules)), c, path)
	if len(x.paths) > 0 {
		best = s.in(x.paths[path], best, c, path)
	}
	for at := x.before(path); at >= 0; at = x.prefixes[at].parent {
		if p := &x.prefixes[at]; strings.HasPrefix(path, p.prefix) {
			best = s.in(p.groups, best, c, path)
		}
	}
	if int(best) == len(s.rules) {
		return nil
	}
	return s.rules[best]
}

// in gives the first of a list that fits, if it comes before best.
func (s *ruleSet) in(list []int32, best int32, c *Call, path string) int32 {
	for _, i := range list {
		if i >= best {
			break
		}
		if s.fits(s.rules[i], c, path) {
			return i
		}
	}
	return best
}
