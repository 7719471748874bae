package api

import (
	"context"
	"net/url"

	"github.com/weir-mesh/weir/policy"
)

type addTrafficRuleInput struct {
	ServicePath
	DryRunParam
	Body trafficRuleBody
}

func (s *Server) addTrafficRule(ctx context.Context, in *addTrafficRuleInput) (*writeOutput, error) {
	if err := badRequest("path", checkName(in.Namespace, in.Service, "service")); err != nil {
		return nil, err
	}
	rule, problems := in.Body.rule()
	ref := policy.Ref{Kind: policy.KindTrafficRule, Namespace: in.Namespace, Service: in.Service, ID: rule.ID}
	if err := badRequest("body", append(problems, checkGivenID(in.Body.ID)...)); err != nil {
		return nil, err
	}
	out, err := s.change(ctx, "add the traffic rule", policy.Edit{Ref: ref, To: &policy.Resource{Traffic: &rule}, New: true}, in.DryRun, "rule added")
	if out != nil && out.ID != "" {
		out.Location = BasePath + servicePath("/traffic-rules", in.name()) + "/" + url.PathEscape(out.ID)
	}
	return out, err
}

// checkGivenID checks an id that may be left out.
func checkGivenID(id *string) policy.Problems {
	if id == nil {
		return nil
	}
	return policy.Ref{Kind: policy.KindSecurityRule, ID: *id}.Validate()
}

func (s *Server) listTrafficRules(_ context.Context, in *listOfServiceInput) (*output[[]trafficRuleView], error) {
	return &output[[]trafficRuleView]{viewTrafficRules(s.Mesh.Snapshot(), in.name())}, nil
}

func viewTrafficRules(now Snapshot, name policy.ServiceName) []trafficRuleView {
	settings := now.Settings()
	traffic := settings.Value.TrafficFor(name)
	list := now.TrafficRules(name)
	views := make([]trafficRuleView, len(list))
	for i := range list {
		views[i] = viewTrafficRule(&list[i], &traffic)
	}
	return views
}

type TrafficRulePath struct {
	Namespace string `path:"namespace"`
	Service   string `path:"service"`
	RuleID    string `path:"rule_id"`
}

func (in *TrafficRulePath) ref() policy.Ref {
	return policy.Ref{Kind: policy.KindTrafficRule, Namespace: in.Namespace, Service: in.Service, ID: in.RuleID}
}

type getTrafficRuleInput struct {
	TrafficRulePath
	ReadParam
}

func (s *Server) getTrafficRule(_ context.Context, in *getTrafficRuleInput) (*found[trafficRuleView], error) {
	now := s.Mesh.Snapshot()
	rule := findTrafficRule(now, in.ref().Name(), in.RuleID)
	if rule == nil {
		return nil, noSuch(in.ref())
	}
	settings := now.Settings()
	traffic := settings.Value.TrafficFor(in.ref().Name())
	tag := etag(rule.Version)
	if inherits(&rule.Value) != nil {
		tag = etag(rule.Version, settings.Version)
	}
	return answer(&in.ReadParam, tag, viewTrafficRule(rule, &traffic)), nil
}

type putTrafficRuleInput struct {
	TrafficRulePath
	WriteParam
	Body trafficRuleBody
}

func (s *Server) putTrafficRule(ctx context.Context, in *putTrafficRuleInput) (*writeOutput, error) {
	if err := badRequest("path", checkName(in.Namespace, in.Service, "service")); err != nil {
		return nil, err
	}
	rule, problems := in.Body.rule()
	if err := badRequest("body", append(problems, otherID(in.Body.ID, in.RuleID)...)); err != nil {
		return nil, err
	}
	if err := badRequest("path", in.ref().Validate()); err != nil {
		return nil, err
	}
	return s.conditional(ctx, "store the traffic rule", policy.Edit{Ref: in.ref(), To: &policy.Resource{Traffic: &rule}}, &in.WriteParam, "rule stored")
}

// otherID refuses a body that names another resource than the path.
func otherID(given *string, id string) policy.Problems {
	if given == nil || *given == id {
		return nil
	}
	return policy.Problems{{Path: "id", Message: show(*given) + " is not " + show(id) + ", which the path names"}}
}

type deleteTrafficRuleInput struct {
	TrafficRulePath
	WriteParam
}

func (s *Server) deleteTrafficRule(ctx context.Context, in *deleteTrafficRuleInput) (*writeOutput, error) {
	return s.conditional(ctx, "delete the traffic rule", policy.Edit{Ref: in.ref()}, &in.WriteParam, "rule deleted")
}

type addSecurityRuleInput struct {
	DryRunParam
	Body securityRuleBody
}

func (s *Server) addSecurityRule(ctx context.Context, in *addSecurityRuleInput) (*writeOutput, error) {
	rule, problems := in.Body.rule()
	if err := badRequest("body", append(problems, checkGivenID(in.Body.ID)...)); err != nil {
		return nil, err
	}
	ref := policy.Ref{Kind: policy.KindSecurityRule, ID: rule.ID}
	out, err := s.change(ctx, "add the security rule", policy.Edit{Ref: ref, To: &policy.Resource{Security: &rule}, New: true}, in.DryRun, "security rule added")
	if out != nil && out.ID != "" {
		out.Location = BasePath + "/security-rules/" + url.PathEscape(out.ID)
	}
	return out, err
}

func (s *Server) listSecurityRules(context.Context, *WatchParam) (*output[[]securityRuleView], error) {
	return &output[[]securityRuleView]{viewSecurityRules(s.Mesh.Snapshot())}, nil
}

func viewSecurityRules(now Snapshot) []securityRuleView {
	settings := now.Settings()
	list := now.SecurityRules()
	views := make([]securityRuleView, len(list))
	for i := range list {
		views[i] = viewSecurityRule(&list[i], &settings.Value)
	}
	return views
}

type SecurityRulePath struct {
	RuleID string `path:"rule_id"`
}

func (in *SecurityRulePath) ref() policy.Ref {
	return policy.Ref{Kind: policy.KindSecurityRule, ID: in.RuleID}
}

type getSecurityRuleInput struct {
	SecurityRulePath
	ReadParam
}

func (s *Server) getSecurityRule(_ context.Context, in *getSecurityRuleInput) (*found[securityRuleView], error) {
	now := s.Mesh.Snapshot()
	rule := findSecurityRule(now, in.RuleID)
	if rule == nil {
		return nil, noSuch(in.ref())
	}
	settings := now.Settings()
	tag := etag(rule.Version)
	if rule.Value.MTLSMode == "" {
		tag = etag(rule.Version, settings.Version)
	}
	return answer(&in.ReadParam, tag, viewSecurityRule(rule, &settings.Value)), nil
}

type putSecurityRuleInput struct {
	SecurityRulePath
	WriteParam
	Body securityRuleBody
}

func (s *Server) putSecurityRule(ctx context.Context, in *putSecurityRuleInput) (*writeOutput, error) {
	rule, problems := in.Body.rule()
	if err := badRequest("body", append(problems, otherID(in.Body.ID, in.RuleID)...)); err != nil {
		return nil, err
	}
	if err := badRequest("path", in.ref().Validate()); err != nil {
		return nil, err
	}
	return s.conditional(ctx, "store the security rule", policy.Edit{Ref: in.ref(), To: &policy.Resource{Security: &rule}}, &in.WriteParam, "security rule stored")
}

type deleteSecurityRuleInput struct {
	SecurityRulePath
	WriteParam
}

func (s *Server) deleteSecurityRule(ctx context.Context, in *deleteSecurityRuleInput) (*writeOutput, error) {
	return s.conditional(ctx, "delete the security rule", policy.Edit{Ref: in.ref()}, &in.WriteParam, "security rule deleted")
}
