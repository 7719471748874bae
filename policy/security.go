package policy

import "net/netip"

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
	JWTSecret    string // for rules with required_jwt, and limits by a claim; HS256
	RateLimit    RateLimit
	RateLimits   []RateLimit // more limits that go by who calls
	// Routes are the service's traffic rules, where one of them has a limit that
	// goes by who calls; else nil.
	Routes []TrafficRule
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
