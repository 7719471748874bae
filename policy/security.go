package policy

import (
	"net/netip"
)

// MTLSMode says whether connections between workloads are encrypted and
// authenticated.
type MTLSMode string

// Strict refuses plaintext, Permissive takes both, Disabled sends plaintext.
const (
	Strict     MTLSMode = "strict"
	Permissive MTLSMode = "permissive"
	Disabled   MTLSMode = "disabled"
)

// Any in a rule's source or destination stands for every name.
const Any = "*"

// SecurityRule allows a source to call a destination (seed B).
type SecurityRule struct {
	ID                   string   `json:"id"`
	SourceNamespace      string   `json:"source_namespace"`
	SourceService        string   `json:"source_service"`
	DestinationNamespace string   `json:"destination_namespace"`
	DestinationService   string   `json:"destination_service"`
	AllowedMethods       []string `json:"allowed_methods"`
	RequiredJWT          bool     `json:"required_jwt"`
	// MTLSMode is how what the rule allows must arrive; "" is the mesh's mode.
	MTLSMode MTLSMode `json:"mtls_mode"`
}

// DefaultMethods are those a rule allows that names none.
func DefaultMethods() []string { return []string{"GET", "POST", "PUT", "DELETE"} }

// Source names the callers a rule is for; parts may be Any.
func (r *SecurityRule) Source() ServiceName { return ServiceName{r.SourceNamespace, r.SourceService} }

// Destination names the services a rule is for; parts may be Any.
func (r *SecurityRule) Destination() ServiceName {
	return ServiceName{r.DestinationNamespace, r.DestinationService}
}

// AppliesTo tells whether the rule is about calls to a service.
func (r *SecurityRule) AppliesTo(destination ServiceName) bool {
	return matchName(r.Destination(), destination)
}

// Validate lists what is wrong with a rule.
func (r *SecurityRule) Validate() Problems {
	var p Problems
	for _, f := range []struct{ path, what, value string }{
		{"source_namespace", "namespace", r.SourceNamespace},
		{"source_service", "service", r.SourceService},
		{"destination_namespace", "namespace", r.DestinationNamespace},
		{"destination_service", "service", r.DestinationService},
	} {
		if f.value != Any {
			p.addErr(f.path, checkLabel(f.what, f.value))
		}
	}
	if len(r.AllowedMethods) == 0 {
		p.add("allowed_methods", "must name at least one method; to allow nothing, have no rule")
	}
	for _, m := range r.AllowedMethods {
		if m != Any && !isToken(m) {
			p.add("allowed_methods", "%q is not a method", m)
		}
	}
	if r.MTLSMode != "" {
		p.oneOf("mtls_mode", string(r.MTLSMode), string(Strict), string(Permissive), string(Disabled))
	}
	return p
}

func matchName(pattern, n ServiceName) bool {
	return (pattern.Namespace == Any || pattern.Namespace == n.Namespace) &&
		(pattern.Name == Any || pattern.Name == n.Name)
}

// Inbound is what the proxy beside a service enforces on calls to it.
type Inbound struct {
	Service      ServiceName
	Rules        []InboundRule
	MTLS         MTLSMode // the mesh's mode
	DefaultAllow bool
	JWTSecret    string // for rules with required_jwt; HS256
	RateLimit    RateLimit
}

// InboundRule is a rule as its destination needs it.
type InboundRule struct {
	SecurityRule
	// Addresses are the source's addresses, by which alone a caller can be
	// told where mTLS is disabled.
	Addresses []netip.Addr
}

// Caller is who is calling, as far as it is known.
type Caller struct {
	Name     ServiceName // from the peer's certificate
	Verified bool        // the certificate was checked: Name holds
	Addr     netip.Addr
}

// Reason is why a call is allowed or not, in one word.
type Reason string

// The reasons of a Verdict.
const (
	ByRule       Reason = "rule"
	ByDefault    Reason = "default-allow"
	ByControl    Reason = "health-check"
	NoRule       Reason = "no-rule"
	MethodDenied Reason = "method"
	MTLSRequired Reason = "mtls-required"
)

// Verdict is the decision about one call.
type Verdict struct {
	Allow      bool
	Reason     Reason
	Rule       string // id of the rule that decided
	RequireJWT bool   // allowed only with a valid token
}

// Guard holds an Inbound made ready for decisions. It is immutable.
type Guard struct {
	in       Inbound
	exact    map[ServiceName][]*guardRule
	patterns []*guardRule // those with Any in their source
	byAddr   map[netip.Addr][]*guardRule
}

type guardRule struct {
	id      string
	source  ServiceName
	methods []string
	any     bool // every method, or at least all four of the default
	star    bool
	jwt     bool
	mode    MTLSMode
}

// NewGuard compiles what a proxy enforces.
func NewGuard(in Inbound) *Guard {
	g := &Guard{in: in, exact: map[ServiceName][]*guardRule{}, byAddr: map[netip.Addr][]*guardRule{}}
	for i := range in.Rules {
		r := &in.Rules[i]
		if !r.AppliesTo(in.Service) {
			continue
		}
		c := newGuardRule(&r.SecurityRule, in.MTLS)
		if c.source.Namespace == Any || c.source.Name == Any {
			g.patterns = append(g.patterns, c)
		} else {
			g.exact[c.source] = append(g.exact[c.source], c)
		}
		if c.mode == Disabled {
			for _, a := range r.Addresses {
				g.byAddr[a] = append(g.byAddr[a], c)
			}
		}
	}
	return g
}

func newGuardRule(r *SecurityRule, mesh MTLSMode) *guardRule {
	c := &guardRule{id: r.ID, source: r.Source(), methods: r.AllowedMethods, jwt: r.RequiredJWT, mode: r.MTLSMode}
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
	v := Verdict{Reason: NoRule}
	if c.Verified {
		v.consider(g.exact[c.Name], method)
		for _, r := range g.patterns {
			if matchName(r.source, c.Name) {
				v.considerOne(r, method)
			}
		}
	} else {
		v.consider(g.byAddr[c.Addr], method)
		for _, r := range g.patterns {
			if r.mode != Strict && r.source.Namespace == Any && r.source.Name == Any {
				v.considerOne(r, method)
			}
		}
	}
	if v.Allow || v.Reason == MethodDenied {
		return v
	}
	if !c.Verified && g.in.MTLS == Strict {
		return Verdict{Reason: MTLSRequired}
	}
	if g.in.DefaultAllow {
		return Verdict{Allow: true, Reason: ByDefault}
	}
	return v
}

func (v *Verdict) consider(rules []*guardRule, method string) {
	for _, r := range rules {
		v.considerOne(r, method)
	}
}

func (v *Verdict) considerOne(r *guardRule, method string) {
	switch {
	case !r.allows(method):
		if !v.Allow {
			v.Reason, v.Rule = MethodDenied, r.id
		}
	case !v.Allow || (v.RequireJWT && !r.jwt):
		*v = Verdict{Allow: true, Reason: ByRule, Rule: r.id, RequireJWT: r.jwt}
	}
}

// TakesPlaintext tells whether any plaintext connection can be allowed, so that
// a listener may refuse the rest before it reads.
func (g *Guard) TakesPlaintext() bool {
	if g.in.MTLS != Strict {
		return true
	}
	if len(g.byAddr) > 0 {
		return true
	}
	for _, r := range g.patterns {
		if r.mode != Strict {
			return true
		}
	}
	return false
}
