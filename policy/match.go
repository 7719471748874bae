package policy

import (
	"cmp"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// validateMatch lists what is wrong with what a rule matches on.
func (r *TrafficRule) validateMatch(p *Problems) {
	for name, want := range r.MatchHeaders {
		path := join("match_headers", name)
		if !isToken(name) {
			p.add(path, "%q is not a header name", name)
		}
		checkPattern(p, path, want)
	}
	for name, want := range r.MatchQuery {
		path := join("match_query", name)
		if name == "" || hasControl(name) {
			p.add(path, "%q is not the name of a parameter", name)
		}
		checkPattern(p, path, want)
	}
	if r.MatchPath != "" {
		checkPath(p, "match_path", r.MatchPath)
	}
	if r.MatchHost != "" {
		checkHostPattern(p, "match_host", r.MatchHost)
	}
	if r.MatchMethod != "" {
		for _, m := range strings.Split(r.MatchMethod, ",") {
			if m = strings.TrimSpace(m); !isToken(m) {
				p.add("match_method", "%q is not a method", m)
			}
		}
	}
}

func checkPattern(p *Problems, path, want string) {
	want = strings.TrimPrefix(want, "not:")
	if strings.HasPrefix(want, "not:") {
		p.add(path, "not: stands once")
	}
	if re, ok := strings.CutPrefix(want, "regex:"); ok {
		if _, err := regexp.Compile(re); err != nil {
			p.addErr(path, err)
		}
		return
	}
	if hasControl(want) {
		p.add(path, "holds a control character")
	}
}

func checkPath(p *Problems, path, want string) {
	if strings.HasPrefix(want, "regex:") {
		checkPattern(p, path, want)
		return
	}
	if !strings.HasPrefix(want, "/") {
		p.add(path, "%q does not start with / (nor with regex:)", want)
	} else if i := strings.IndexByte(want, '*'); i >= 0 && i != len(want)-1 {
		p.add(path, "%q: a * may only stand at the end", want)
	}
}

func checkHostPattern(p *Problems, path, want string) {
	if strings.HasPrefix(want, "regex:") {
		checkPattern(p, path, want)
		return
	}
	rest := strings.TrimPrefix(want, "*")
	if rest != want && !strings.HasPrefix(rest, ".") || strings.Contains(rest, "*") {
		p.add(path, "%q: a * stands for the first labels only, as in *.example.com", want)
		return
	}
	checkHost(p, path, rest)
}

// matchKey is equal for rules with the same match.
func matchKey(r *TrafficRule) string {
	var b strings.Builder
	part := func(s string) { fmt.Fprintf(&b, "%d:%s", len(s), s) }
	methods := methodsOf(r)
	slices.Sort(methods)
	part(strings.Join(slices.Compact(methods), ","))
	part(r.MatchPath)
	part(strings.ToLower(r.MatchHost))
	for _, fields := range [][][2]string{fieldsOf(r.MatchHeaders, strings.ToLower), fieldsOf(r.MatchQuery, strings.Clone)} {
		fmt.Fprintf(&b, "%d.", len(fields))
		for _, f := range fields {
			part(f[0])
			part(f[1])
		}
	}
	return b.String()
}

// fieldsOf lists names and patterns in one order. A name may stand there twice, in
// two spellings.
func fieldsOf(wanted map[string]string, spelt func(string) string) [][2]string {
	all := make([][2]string, 0, len(wanted))
	for name, want := range wanted {
		all = append(all, [2]string{spelt(name), want})
	}
	slices.SortFunc(all, func(a, b [2]string) int { return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1])) })
	return all
}

// methodsOf lists the methods that a rule matches; none is any.
func methodsOf(r *TrafficRule) []string {
	if r.MatchMethod == "" {
		return nil
	}
	methods := strings.Split(r.MatchMethod, ",")
	for i, m := range methods {
		if methods[i] = strings.TrimSpace(m); methods[i] == Any {
			return nil
		}
	}
	return methods
}

type matcher struct {
	methods []string
	path    pattern
	host    pattern
	headers []fieldMatch
	query   []fieldMatch
}

// fieldMatch is a header or a parameter of the query, and what it is to be.
type fieldMatch struct {
	name  string
	value pattern
}

func newMatcher(r *TrafficRule) (m matcher, err error) {
	m.methods = methodsOf(r)
	if r.MatchPath != "" {
		if m.path, err = newPathPattern(r.MatchPath); err != nil {
			return m, fmt.Errorf("match_path: %w", err)
		}
	}
	if r.MatchHost != "" {
		if m.host, err = newHostPattern(r.MatchHost); err != nil {
			return m, fmt.Errorf("match_host: %w", err)
		}
	}
	if m.headers, err = newFieldMatches(r.MatchHeaders); err != nil {
		return m, fmt.Errorf("match_headers.%w", err)
	}
	if m.query, err = newFieldMatches(r.MatchQuery); err != nil {
		return m, fmt.Errorf("match_query.%w", err)
	}
	return m, nil
}

func newFieldMatches(wanted map[string]string) (all []fieldMatch, err error) {
	for name, want := range wanted {
		value, err := newPattern(want)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, fieldMatch{name, value})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	return all, nil
}

// matches tells whether a request fulfils all; path and query are the parts of
// the request's.
func (m *matcher) matches(req *Request, path, query string) bool {
	if len(m.methods) > 0 && !slices.Contains(m.methods, req.Method) {
		return false
	}
	if !m.path.matches(path) || m.host.kind != matchAny && !m.host.matchesHost(req.Host) {
		return false
	}
	for i := range m.headers {
		v, ok := req.Header(m.headers[i].name)
		if !m.headers[i].value.accepts(v, ok) {
			return false
		}
	}
	for i := range m.query {
		v, ok := parameter(query, m.query[i].name)
		if !m.query[i].value.accepts(v, ok) {
			return false
		}
	}
	return true
}

// parameter gives the first value of a query's parameter, decoded once. What is
// encoded wrongly is taken as it stands: it is for the service to refuse.
func parameter(query, name string) (value string, ok bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		key, value, _ := strings.Cut(pair, "=")
		if key == name || strings.ContainsAny(key, "%+") && decoded(key) == name {
			return decoded(value), true
		}
	}
	return "", false
}

func decoded(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	if out, err := url.QueryUnescape(s); err == nil {
		return out
	}
	return s
}

type patternKind uint8

const (
	matchAny patternKind = iota
	matchExact
	matchPrefix
	matchSuffix
	matchRegex
)

type pattern struct {
	kind patternKind
	not  bool
	text string // of a regex, what all that it matches starts with
	re   *regexp.Regexp
}

// newPattern reads the pattern of a header or parameter: exact, prefix:, suffix:,
// regex:, present: or absent:, and not: before any of them.
func newPattern(s string) (pattern, error) {
	s, not := strings.CutPrefix(s, "not:")
	p := pattern{kind: matchExact, text: s}
	var err error
	if rest, ok := strings.CutPrefix(s, "prefix:"); ok {
		p = pattern{kind: matchPrefix, text: rest}
	} else if rest, ok := strings.CutPrefix(s, "suffix:"); ok {
		p = pattern{kind: matchSuffix, text: rest}
	} else if rest, ok := strings.CutPrefix(s, "regex:"); ok {
		p, err = newRegex(rest)
	} else if s == "present:" {
		p = pattern{kind: matchAny}
	} else if s == "absent:" {
		p, not = pattern{kind: matchAny}, !not
	}
	p.not = not
	return p, err
}

// newPathPattern reads a path's pattern: exact, /prefix* or regex:.
func newPathPattern(s string) (pattern, error) {
	if rest, ok := strings.CutPrefix(s, "regex:"); ok {
		return newRegex(rest)
	}
	if rest, ok := strings.CutSuffix(s, "*"); ok {
		return pattern{kind: matchPrefix, text: rest}, nil
	}
	return pattern{kind: matchExact, text: s}, nil
}

// newHostPattern reads a host's pattern: exact, *.suffix or regex:. A port in a
// request's host counts for none of them, nor does case.
func newHostPattern(s string) (pattern, error) {
	if rest, ok := strings.CutPrefix(s, "regex:"); ok {
		return newRegex("(?i:" + rest + ")")
	}
	if rest, ok := strings.CutPrefix(s, "*"); ok {
		return pattern{kind: matchSuffix, text: strings.ToLower(rest)}, nil
	}
	return pattern{kind: matchExact, text: strings.ToLower(s)}, nil
}

// newRegex anchors at both ends: a rule names whole values, as Envoy does.
func newRegex(s string) (pattern, error) {
	free, err := regexp.Compile(s)
	if err != nil {
		return pattern{}, err
	}
	re, err := regexp.Compile(`\A(?:` + s + `)\z`)
	start, _ := free.LiteralPrefix()
	return pattern{kind: matchRegex, text: start, re: re}, err
}

// accepts tells whether a field fulfils the pattern; there says whether the
// request has it at all. One that is not there is none of what not: names.
func (p *pattern) accepts(s string, there bool) bool {
	if !there {
		return p.not
	}
	return p.matches(s) != p.not
}

func (p *pattern) matches(s string) bool {
	switch p.kind {
	case matchExact:
		return s == p.text
	case matchPrefix:
		return strings.HasPrefix(s, p.text)
	case matchSuffix:
		return strings.HasSuffix(s, p.text)
	case matchRegex:
		return strings.HasPrefix(s, p.text) && p.re.MatchString(s)
	default:
		return true
	}
}

// matchesHost compares without the port and without regard to case.
func (p *pattern) matchesHost(host string) bool {
	host = withoutPort(host)
	switch p.kind {
	case matchExact:
		return strings.EqualFold(host, p.text)
	case matchSuffix:
		at := len(host) - len(p.text)
		return at >= 0 && strings.EqualFold(host[at:], p.text)
	}
	return p.matches(host)
}
