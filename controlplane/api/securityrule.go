package api

import "github.com/weir-mesh/weir/policy"

// securityRuleView is a rule as it is listed, with the mode in force.
type securityRuleView struct {
	policy.SecurityRule
	ResourceVersion string   `json:"resource_version"`
	Inherits        []string `json:"inherits,omitempty" required:"false" doc:"fields that show the mesh's setting"`
}

func viewSecurityRule(r *Versioned[policy.SecurityRule], settings *policy.Settings) securityRuleView {
	v := securityRuleView{SecurityRule: r.Value, ResourceVersion: versionText(r.Version)}
	if v.MTLSMode == "" {
		// That of the destination, as far as it is one.
		v.MTLSMode, v.Inherits = settings.ModesFor(r.Value.Destination()).MTLS, []string{"mtls_mode"}
	}
	return v
}

type securityRuleBody struct {
	ID                   *string             `json:"id,omitempty" required:"false" doc:"left out, one is made"`
	SourceNamespace      *string             `json:"source_namespace,omitempty" required:"false" doc:"* is every one, team-* every one that begins so; may be left out, with source_service, where there are sources"`
	SourceService        *string             `json:"source_service,omitempty" required:"false" doc:"* is every one, web-* every one that begins so"`
	DestinationNamespace string              `json:"destination_namespace" doc:"* is every one, team-* every one that begins so"`
	DestinationService   string              `json:"destination_service" doc:"* is every one, web-* every one that begins so"`
	AllowedMethods       []string            `json:"allowed_methods" required:"false" doc:"the methods that the rule is about; * is every one, which is also what a rule is about that does not allow"`
	RequiredJWT          *bool               `json:"required_jwt" required:"false"`
	MTLSMode             *string             `json:"mtls_mode" required:"false" doc:"left out, the port's"`
	Action               *string             `json:"action,omitempty" required:"false" doc:"deny goes before allow; audit counts and logs, and changes nothing"`
	Sources              []string            `json:"sources,omitempty" required:"false" nullable:"true" doc:"more sources, namespace/service, each part exact, web-* or *"`
	Ports                []int               `json:"ports,omitempty" required:"false" nullable:"true" doc:"of the destination; left out, every one"`
	Paths                []string            `json:"paths,omitempty" required:"false" nullable:"true" doc:"exact, /prefix* or regex:…; one of them"`
	Headers              map[string]string   `json:"headers,omitempty" required:"false" nullable:"true" doc:"by name: the exact value, or prefix:…, suffix:…, regex:…, present:, absent:; not: before it turns it round; all of them"`
	Claims               map[string][]string `json:"jwt_claims,omitempty" required:"false" nullable:"true" doc:"by name, with dots into objects: one of the values; all of the names; asks for a token"`
}

func (b *securityRuleBody) rule() (policy.SecurityRule, policy.Problems) {
	r := policy.SecurityRule{
		DestinationNamespace: b.DestinationNamespace, DestinationService: b.DestinationService,
		Sources: b.Sources, Ports: b.Ports, Paths: b.Paths, Headers: b.Headers, Claims: b.Claims,
		AllowedMethods: policy.DefaultMethods(),
	}
	override(&r.SourceNamespace, b.SourceNamespace)
	override(&r.SourceService, b.SourceService)
	if b.Action != nil && *b.Action != string(policy.Allow) {
		r.Action = policy.RuleAction(*b.Action)
	}
	if r.Does() != policy.Allow {
		r.AllowedMethods = []string{policy.Any}
	}
	if b.AllowedMethods != nil {
		r.AllowedMethods = b.AllowedMethods
	}
	override(&r.ID, b.ID)
	override(&r.RequiredJWT, b.RequiredJWT)
	if b.MTLSMode != nil {
		r.MTLSMode = policy.MTLSMode(*b.MTLSMode)
	}
	p := r.Validate()
	if b.MTLSMode != nil && *b.MTLSMode == "" {
		p = append(p, policy.Problem{Path: "mtls_mode", Message: `"" is not one of strict, permissive, disabled`})
	}
	if b.Action != nil && *b.Action == "" {
		p = append(p, policy.Problem{Path: "action", Message: `"" is not one of allow, deny, audit`})
	}
	return r, b.missing(p)
}

// missing says of a source that is not given that it is missing, not that it is empty.
func (b *securityRuleBody) missing(p policy.Problems) policy.Problems {
	for i := range p {
		if p[i].Path == "source_namespace" && b.SourceNamespace == nil || p[i].Path == "source_service" && b.SourceService == nil {
			p[i].Message = "is missing"
		}
	}
	return p
}

func newSecurityRuleBody(r *policy.SecurityRule) securityRuleBody {
	return securityRuleBody{
		ID:              given(r.ID),
		SourceNamespace: given(r.SourceNamespace), SourceService: given(r.SourceService),
		DestinationNamespace: r.DestinationNamespace, DestinationService: r.DestinationService,
		AllowedMethods: r.AllowedMethods, RequiredJWT: &r.RequiredJWT, MTLSMode: given(string(r.MTLSMode)),
		Action: given(string(r.Action)), Sources: r.Sources, Ports: r.Ports, Paths: r.Paths, Headers: r.Headers, Claims: r.Claims,
	}
}
