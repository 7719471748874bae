package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// RateLimit bounds requests to a service, or to one of its routes. Limit 0 is
// none. It is comparable.
type RateLimit struct {
	Limit  int
	Window time.Duration
	Key    string // what is counted apart: "" nothing, else parts joined by commas: "source", "header:NAME", "jwt:CLAIM"
	Name   string // tells the limits of a service apart; "" is DefaultLimit
	Rule   string // id of the traffic rule that it is of; "" is the service's own
	Burst  int    // 0 counts in a sliding window, more is a token bucket of this depth
	Mesh   bool   // one limit for the whole mesh, not for each proxy
}

// DefaultLimit is the name of a limit that was given none.
const DefaultLimit = "default"

// Title is the limit's name.
func (l RateLimit) Title() string {
	if l.Name == "" {
		return DefaultLimit
	}
	return l.Name
}

// CountedByReceiver tells limits that only the proxy beside the service can
// count, since they go by who is calling. The others are the callers' proxies'.
func (l RateLimit) CountedByReceiver() bool {
	for part := range strings.SplitSeq(l.Key, ",") {
		if part == "source" || strings.HasPrefix(part, "jwt:") {
			return true
		}
	}
	return false
}

// NeedsToken tells whether a claim is a part of the key.
func (l RateLimit) NeedsToken() bool {
	return strings.HasPrefix(l.Key, "jwt:") || strings.Contains(l.Key, ",jwt:")
}

// LimitRef names a limit in the mesh.
type LimitRef struct {
	Service ServiceName `json:"service"`
	Rule    string      `json:"rule,omitempty"` // "" is the service's own
	Name    string      `json:"name"`
}

// Compare orders names.
func (r LimitRef) Compare(o LimitRef) int {
	return cmp.Or(strings.Compare(r.Service.Namespace, o.Service.Namespace), strings.Compare(r.Service.Name, o.Service.Name),
		strings.Compare(r.Rule, o.Rule), strings.Compare(r.Name, o.Name))
}

// Ref names the limit as one of a service.
func (l RateLimit) Ref(service ServiceName) LimitRef {
	return LimitRef{Service: service, Rule: l.Rule, Name: l.Title()}
}

// The algorithms and scopes of a ServiceLimit.
const (
	SlidingWindow = "sliding_window"
	TokenBucket   = "token_bucket"
	ScopeProxy    = "proxy"
	ScopeMesh     = "mesh"
)

const (
	maxLimits   = 16 // of one service
	maxKeyParts = 4
	maxFill     = 24 * time.Hour // how long an empty bucket may take to fill
)

// ServiceLimit bounds the requests to one service or route; a limit of 0 lifts
// the mesh's.
type ServiceLimit struct {
	Name      string  `json:"name,omitempty"` // "" is "default", or "default-2" for the second of a list and so on
	Limit     int     `json:"limit"`
	Window    float64 `json:"window,omitempty"`    // seconds; 0 is the mesh's
	Key       string  `json:"key,omitempty"`       // "", or parts joined by commas: source, header:NAME, jwt:CLAIM
	Algorithm string  `json:"algorithm,omitempty"` // sliding_window ("") or token_bucket
	Burst     int     `json:"burst,omitempty"`     // of a token bucket: its depth; 0 is Limit
	Scope     string  `json:"scope,omitempty"`     // proxy (""): each counts for itself; mesh: all together
}

// validate lists what is wrong; lowest is the least limit that means something.
func (l *ServiceLimit) validate(lowest int) Problems {
	var p Problems
	p.intIn("limit", l.Limit, lowest, maxLimit)
	if l.Window != 0 {
		p.secondsIn("window", l.Window, 0.1)
	}
	checkKey(&p, "key", l.Key)
	if l.Name != "" {
		checkLimitName(&p, "name", l.Name)
	}
	if l.Algorithm != "" {
		p.oneOf("algorithm", l.Algorithm, SlidingWindow, TokenBucket)
	}
	if l.Scope != "" {
		p.oneOf("scope", l.Scope, ScopeProxy, ScopeMesh)
	}
	l.checkBurst(&p)
	return p
}

func (l *ServiceLimit) checkBurst(p *Problems) {
	if l.Burst != 0 {
		p.intIn("burst", l.Burst, 1, maxLimit)
		if l.Algorithm != TokenBucket {
			p.add("burst", "is of a token_bucket; a %s has none", SlidingWindow)
		}
	}
	if l.Algorithm != TokenBucket || l.Limit < 1 || l.Window == 0 {
		return // without a window of its own the mesh's settings decide
	}
	switch each := seconds(l.Window) / time.Duration(l.Limit); {
	case each < time.Microsecond:
		p.add("limit", "%d in %v s is more than the million tokens a second that a bucket can count", l.Limit, l.Window)
	case float64(l.Burst)*float64(each) > float64(maxFill):
		p.add("burst", "%d at %d in %v s takes more than %v to fill", l.Burst, l.Limit, l.Window, maxFill)
	}
}

// checkKey accepts source, header:NAME, jwt:CLAIM and lists of them.
func checkKey(p *Problems, path, key string) {
	if key == "" {
		return
	}
	parts := strings.Split(key, ",")
	if len(parts) > maxKeyParts {
		p.add(path, "%d parts are more than %d", len(parts), maxKeyParts)
	}
	for i, part := range parts {
		if part != "source" && !isHeaderKey(part) && !isClaimKey(part) {
			p.add(path, "%q is not source, header:NAME or jwt:CLAIM", part)
		} else if slices.Contains(parts[:i], part) {
			p.add(path, "%q is there twice", part)
		}
	}
}

// isClaimKey takes a claim's name as one writes it (RFC 7519 section 4.3 gives
// URIs as names, too), without the comma that joins keys.
func isClaimKey(s string) bool {
	claim, ok := strings.CutPrefix(s, "jwt:")
	return ok && claim != "" && len(claim) <= 253 && !strings.ContainsFunc(claim, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ',' })
}

// checkLimitName accepts what fits into the RateLimit fields without escaping.
func checkLimitName(p *Problems, path, name string) {
	if len(name) > 63 || !isToken(name) {
		p.add(path, "%q is not 1 to 63 letters, digits, hyphens and the like", name)
	}
}

// validateLimits checks a service's limits together: their names tell them apart.
func (v *ServiceSettings) validateLimits() Problems {
	var p Problems
	if v.RateLimit != nil {
		p = append(p, v.RateLimit.validate(0).Under("rate_limit")...)
	}
	if len(v.RateLimits) > maxLimits {
		p.add("rate_limits", "%d are more than %d", len(v.RateLimits), maxLimits)
	}
	seen := map[string]bool{}
	if v.RateLimit != nil {
		seen[v.RateLimit.in(0).Title()] = true
	}
	for i, l := range v.limits(0) {
		path := fmt.Sprintf("rate_limits[%d]", i)
		p = append(p, v.RateLimits[i].validate(1).Under(path)...)
		if seen[l.Title()] {
			p.add(path+".name", "%q is the name of another limit of the service", l.Title())
		}
		seen[l.Title()] = true
	}
	return p
}

// in gives the limit with the mesh's window where it has none of its own.
func (l *ServiceLimit) in(window time.Duration) RateLimit {
	if l.Window != 0 {
		window = seconds(l.Window)
	}
	out := RateLimit{Limit: l.Limit, Window: window, Key: l.Key, Name: l.Name, Mesh: l.Scope == ScopeMesh}
	if l.Algorithm == TokenBucket {
		out.Burst = l.Burst
		if out.Burst == 0 {
			out.Burst = l.Limit
		}
	}
	return out
}

// limits gives the service's list of limits, with names where there are none.
func (v *ServiceSettings) limits(window time.Duration) []RateLimit {
	var out []RateLimit
	first := 1
	if v.RateLimit != nil {
		first = 2
	}
	for i := range v.RateLimits {
		l := v.RateLimits[i].in(window)
		if n := first + i; l.Name == "" && n > 1 {
			l.Name = fmt.Sprintf("%s-%d", DefaultLimit, n)
		}
		out = append(out, l)
	}
	return out
}

// Limits are all that hold for a service as a whole.
func (t *Traffic) Limits() []RateLimit {
	if t.RateLimit.Limit == 0 {
		return t.RateLimits
	}
	return append([]RateLimit{t.RateLimit}, t.RateLimits...)
}

// Limit is what a rule bounds its requests to; Limit 0 is none. window is the
// mesh's, for a rule that has none of its own.
func (r *TrafficRule) Limit(window time.Duration) RateLimit {
	if r.RateLimit == nil {
		return RateLimit{}
	}
	l := r.RateLimit.in(window)
	l.Rule = r.ID
	if l.Name == "" {
		l.Name = r.ID
	}
	return l
}

func (r *TrafficRule) validateLimit() Problems {
	if r.RateLimit == nil {
		return nil
	}
	p := r.RateLimit.validate(1)
	if r.DestinationService != "" && r.RateLimit.in(0).CountedByReceiver() {
		p.add("key", "%q is counted by the proxies of the service itself, past which a rule with a destination_service leads; give that service the limit", r.RateLimit.Key)
	}
	return p.Under("rate_limit")
}

// WithWindows gives rules whose limits have a window each: the mesh's for those
// without one. Rules that need none are given as they are.
func WithWindows(rules []TrafficRule, window time.Duration) []TrafficRule {
	lacks := func(r TrafficRule) bool { return r.RateLimit != nil && r.RateLimit.Window == 0 }
	if !slices.ContainsFunc(rules, lacks) {
		return rules
	}
	out := slices.Clone(rules)
	for i := range out {
		if lacks(out[i]) {
			l := *out[i].RateLimit
			l.Window = window.Seconds()
			out[i].RateLimit = &l
		}
	}
	return out
}

// LimitsByReceiver tells whether a rule's limit is counted by the receiving
// proxies, which need the rules for it.
func LimitsByReceiver(rules []TrafficRule) bool {
	return slices.ContainsFunc(rules, func(r TrafficRule) bool { return r.Limit(0).CountedByReceiver() })
}

// Limits are all that the proxy beside a service counts for the service as a
// whole.
func (in *Inbound) Limits() []RateLimit {
	if in.RateLimit.Limit == 0 {
		return in.RateLimits
	}
	return append([]RateLimit{in.RateLimit}, in.RateLimits...)
}
