package api

import (
	"context"
	"net/url"

	"github.com/weir-mesh/weir/policy"
)

type addTrafficRuleInput struct {
	Namespace string `path:"namespace"`
	Service   string `path:"service"`
	Body      trafficRuleBody
}

func (s *server) addTrafficRule(ctx context.Context, in *addTrafficRuleInput) (*addedOutput, error) {
	if err := badRequest("path", checkName(in.Namespace, in.Service, "service")); err != nil {
		return nil, err
	}
	rule, problems := in.Body.rule()
	if err := badRequest("body", problems); err != nil {
		return nil, err
	}
	name := policy.ServiceName{Namespace: in.Namespace, Name: in.Service}
	id, err := s.Traffic.AddTrafficRule(ctx, name, rule)
	if err != nil {
		return nil, s.answerFor("add the traffic rule", err)
	}
	out := &addedOutput{ID: id, Body: statusBody{"rule added"}}
	out.Location = BasePath + servicePath("/traffic-rules", name) + "/" + url.PathEscape(id)
	return out, nil
}

func (s *server) listTrafficRules(_ context.Context, in *servicePathInput) (*output[[]trafficRuleView], error) {
	settings := s.Settings.Settings()
	traffic := settings.TrafficFor(in.name())
	views := []trafficRuleView{}
	for _, r := range s.Traffic.TrafficRules(in.name()) {
		views = append(views, viewTrafficRule(&r, &traffic))
	}
	return &output[[]trafficRuleView]{views}, nil
}

type deleteTrafficRuleInput struct {
	Namespace string `path:"namespace"`
	Service   string `path:"service"`
	RuleID    string `path:"rule_id"`
}

func (s *server) deleteTrafficRule(ctx context.Context, in *deleteTrafficRuleInput) (*statusOutput, error) {
	name := policy.ServiceName{Namespace: in.Namespace, Name: in.Service}
	if err := s.Traffic.DeleteTrafficRule(ctx, name, in.RuleID); err != nil {
		return nil, s.answerFor("delete the traffic rule", err)
	}
	return done("rule deleted"), nil
}

type addSecurityRuleInput struct {
	Body securityRuleBody
}

func (s *server) addSecurityRule(ctx context.Context, in *addSecurityRuleInput) (*addedOutput, error) {
	rule, problems := in.Body.rule()
	if err := badRequest("body", problems); err != nil {
		return nil, err
	}
	id, err := s.Security.AddSecurityRule(ctx, rule)
	if err != nil {
		return nil, s.answerFor("add the security rule", err)
	}
	out := &addedOutput{ID: id, Body: statusBody{"security rule added"}}
	out.Location = BasePath + "/security-rules/" + url.PathEscape(id)
	return out, nil
}

func (s *server) listSecurityRules(context.Context, *nothing) (*output[[]policy.SecurityRule], error) {
	settings := s.Settings.Settings()
	rules := append([]policy.SecurityRule{}, s.Security.SecurityRules()...)
	for i := range rules {
		if rules[i].MTLSMode == "" {
			rules[i].MTLSMode = settings.MTLSMode
		}
	}
	return &output[[]policy.SecurityRule]{rules}, nil
}

type deleteSecurityRuleInput struct {
	RuleID string `path:"rule_id"`
}

func (s *server) deleteSecurityRule(ctx context.Context, in *deleteSecurityRuleInput) (*statusOutput, error) {
	if err := s.Security.DeleteSecurityRule(ctx, in.RuleID); err != nil {
		return nil, s.answerFor("delete the security rule", err)
	}
	return done("security rule deleted"), nil
}
