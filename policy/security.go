package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
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

// RuleAction is what a security rule does with the calls that it is about.
type RuleAction string

// Deny goes before Allow; what an Audit rule finds is told and changes nothing.
const (
	Allow RuleAction = "allow"
	Deny  RuleAction = "deny"
	Audit RuleAction = "audit"
)

// SecurityRule says who may call a destination (seed B). Parts of names are
// exact, a prefix ("web-*") or Any.
type SecurityRule struct {
	ID                   string   `json:"id"`
	SourceNamespace      string   `json:"source_namespace"` // this and SourceService may be empty where there are Sources
	SourceService        string   `json:"source_service"`
	DestinationNamespace string   `json:"destination_namespace"`
	DestinationService   string   `json:"destination_service"`
	AllowedMethods       []string `json:"allowed_methods"` // the methods that the rule is about, whatever it does
	RequiredJWT          bool     `json:"required_jwt"`
	// MTLSMode is how what the rule allows must arrive; "" is the mode of the port.
	MTLSMode MTLSMode `json:"mtls_mode"`

	Action  RuleAction          `json:"action,omitempty"`     // "" is Allow
	Sources []string            `json:"sources,omitempty"`    // more of them, as namespace/service
	Ports   []int               `json:"ports,omitempty"`      // of the destination; none is every one
	Paths   []string            `json:"paths,omitempty"`      // exact, /prefix* or regex:…; none is every one
	Headers map[string]string   `json:"headers,omitempty"`    // by name, as a traffic rule has them; all are to fit
	Claims  map[string][]string `json:"jwt_claims,omitempty"` // by name, dots lead into objects: one of the values
}

// DefaultMethods are those a rule allows that names none.
func DefaultMethods() []string { return []string{"GET", "POST", "PUT", "DELETE"} }

// Source names the callers that the rule names first; zero where it has only
// Sources.
func (r *SecurityRule) Source() ServiceName { return ServiceName{r.SourceNamespace, r.SourceService} }

// Destination names the services a rule is for; parts may be patterns.
func (r *SecurityRule) Destination() ServiceName {
	return ServiceName{r.DestinationNamespace, r.DestinationService}
}

// From lists all the callers that the rule is for; parts may be patterns.
func (r *SecurityRule) From() []ServiceName {
	var all []ServiceName
	if !r.Source().IsZero() {
		all = append(all, r.Source())
	}
	for _, s := range r.Sources {
		namespace, name, _ := strings.Cut(s, "/")
		all = append(all, ServiceName{namespace, name})
	}
	return all
}

// Does is what the rule does with calls, Allow unless it says otherwise.
func (r *SecurityRule) Does() RuleAction {
	if r.Action == "" {
		return Allow
	}
	return r.Action
}

// AppliesTo tells whether the rule is about calls to a service.
func (r *SecurityRule) AppliesTo(destination ServiceName) bool {
	return matchName(r.Destination(), destination)
}

// Bounds of what one rule may list.
const (
	maxSources    = 100
	maxRulePorts  = 32
	maxPaths      = 100
	maxConditions = 20 // headers, and claims
)

// AppliesFrom tells whether the rule is about calls of a service.
func (r *SecurityRule) AppliesFrom(source ServiceName) bool {
	return slices.ContainsFunc(r.From(), func(pattern ServiceName) bool { return matchName(pattern, source) })
}

// Validate lists what is wrong with a rule.
func (r *SecurityRule) Validate() Problems {
	var p Problems
	r.validateNames(&p)
	if r.Action != "" {
		p.oneOf("action", string(r.Action), string(Allow), string(Deny), string(Audit))
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
	r.validateConditions(&p)
	r.validateTogether(&p)
	return p
}

func (r *SecurityRule) validateNames(p *Problems) {
	type field struct{ path, what, value string }
	fields := []field{{"destination_namespace", "namespace", r.DestinationNamespace}, {"destination_service", "service", r.DestinationService}}
	if len(r.Sources) == 0 || !r.Source().IsZero() {
		fields = append([]field{{"source_namespace", "namespace", r.SourceNamespace}, {"source_service", "service", r.SourceService}}, fields...)
	}
	for _, f := range fields {
		p.addErr(f.path, checkLabelPattern(f.what, f.value))
	}
	if len(r.Sources) > maxSources {
		p.add("sources", "%d are more than %d; several rules may allow the same", len(r.Sources), maxSources)
	}
	for i, s := range r.Sources {
		path := fmt.Sprintf("sources[%d]", i)
		namespace, name, ok := strings.Cut(s, "/")
		if !ok {
			p.add(path, "%q is not namespace/service, as in prod/web, prod/web-* or prod/*", s)
			continue
		}
		p.addErr(path, checkLabelPattern("namespace", namespace))
		p.addErr(path, checkLabelPattern("service", name))
	}
}

func (r *SecurityRule) validateConditions(p *Problems) {
	if len(r.Ports) > maxRulePorts {
		p.add("ports", "%d are more than %d; several rules may allow the same", len(r.Ports), maxRulePorts)
	}
	for i, port := range r.Ports {
		p.intIn(fmt.Sprintf("ports[%d]", i), port, 1, 65535)
	}
	if len(r.Paths) > maxPaths {
		p.add("paths", "%d are more than %d; several rules may allow the same", len(r.Paths), maxPaths)
	}
	for i, path := range r.Paths {
		checkPath(p, fmt.Sprintf("paths[%d]", i), path)
	}
	if n := len(r.Headers); n > maxConditions {
		p.add("headers", "%d are more than %d", n, maxConditions)
	}
	for name, want := range r.Headers {
		path := join("headers", name)
		if !isToken(name) {
			p.add(path, "%q is not a header name", name)
		}
		if slices.ContainsFunc(ofProxies, func(own string) bool { return strings.EqualFold(own, name) }) {
			p.add(path, "what a caller writes there is not believed; name it in source_namespace, source_service or sources")
		}
		checkPattern(p, path, want)
	}
	if n := len(r.Claims); n > maxConditions {
		p.add("jwt_claims", "%d are more than %d", n, maxConditions)
	}
	for name, values := range r.Claims {
		path := join("jwt_claims", name)
		if name == "" || hasControl(name) {
			p.add(path, "%q is not the name of a claim", name)
		}
		if n := len(values); n < 1 || n > maxPaths {
			p.add(path, "must list 1 to %d values", maxPaths)
		}
	}
}

// ofProxies are the fields that only proxies write, when the rules have decided.
var ofProxies = []string{"X-Source-Service", "X-Source-Namespace", "X-Target-Service", "X-Target-Namespace"}

// validateTogether refuses what has no effect, or another than it seems to have.
func (r *SecurityRule) validateTogether(p *Problems) {
	if r.Does() != Allow {
		if r.RequiredJWT {
			p.add("required_jwt", "has no effect in a rule with action %s: it is about what the rule allows", r.Action)
		}
		if r.MTLSMode != "" {
			p.add("mtls_mode", "has no effect in a rule with action %s: it is about what the rule allows", r.Action)
		}
	}
	if r.MTLSMode == Disabled && len(r.Ports)+len(r.Paths)+len(r.Headers)+len(r.Claims) > 0 {
		p.add("mtls_mode", "disabled is for all that a caller sends, which is chosen before the request: not with ports, paths, headers or jwt_claims; "+
			"for a port there is the setting services.<name>.mtls_ports")
	}
}

// checkLabelPattern checks a part of a name in a rule: exact, a prefix or Any.
func checkLabelPattern(what, s string) error {
	if s == Any {
		return nil
	}
	prefix, ok := strings.CutSuffix(s, Any)
	if !ok {
		return checkLabel(what, s)
	}
	// Whatever may follow: "web-*" is a prefix, though "web-" is no name.
	if err := checkLabel(what, prefix+"0"); err != nil {
		return fmt.Errorf("%s %q is not the begin of a name with a * behind it", what, s)
	}
	return nil
}

func matchName(pattern, n ServiceName) bool {
	return matchPart(pattern.Namespace, n.Namespace) && matchPart(pattern.Name, n.Name)
}

func matchPart(pattern, s string) bool {
	if prefix, ok := strings.CutSuffix(pattern, Any); ok {
		return strings.HasPrefix(s, prefix)
	}
	return pattern == s
}

// IsFrom tells whether the rule is about calls of a service.
func (r *SecurityRule) IsFrom(caller ServiceName) bool {
	return slices.ContainsFunc(r.From(), func(pattern ServiceName) bool { return matchName(pattern, caller) })
}

// FromAnyone tells whether the rule is about callers without a name, too.
func (r *SecurityRule) FromAnyone() bool {
	return slices.Contains(r.From(), ServiceName{Any, Any})
}

// Inbound is what the proxy beside a service enforces on calls to it.
type Inbound struct {
	Service      ServiceName
	Rules        []InboundRule
	MTLS         MTLSMode            // of the service's ports,
	PortModes    map[uint16]MTLSMode // but for these
	DefaultAllow bool
	JWTSecret    string      // for rules with required_jwt, and limits by a claim; HS256
	JWT          JWTSettings // likewise
	RateLimit    RateLimit
	RateLimits   []RateLimit // more limits that go by who calls
	// Routes are the service's traffic rules, where one of them has a limit that
	// goes by who calls; else nil.
	Routes []TrafficRule
}

// InboundRule is a rule as its destination needs it.
type InboundRule struct {
	SecurityRule
	// Addresses are the sources' addresses, by which alone a caller without a
	// certificate can be told.
	Addresses []netip.Addr
}
