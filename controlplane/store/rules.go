package store

import (
	"context"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// AddTrafficRule adds a rule after those that a service has, and gives its id;
// one is made when the rule has none. ErrConflict when the id is taken. A
// service that is new gets its virtual address. The error is policy.Problems
// when the rule is not valid.
func (s *Store) AddTrafficRule(ctx context.Context, name policy.ServiceName, rule policy.TrafficRule) (id string, err error) {
	return s.putRule(ctx, policy.Edit{Ref: trafficRef(name, rule.ID), To: &policy.Resource{Traffic: &rule}, New: true})
}

// PutTrafficRule replaces the rule with the same id, at its place in the order,
// or adds it.
func (s *Store) PutTrafficRule(ctx context.Context, name policy.ServiceName, rule policy.TrafficRule) (id string, err error) {
	return s.putRule(ctx, policy.Edit{Ref: trafficRef(name, rule.ID), To: &policy.Resource{Traffic: &rule}})
}

func trafficRef(name policy.ServiceName, id string) policy.Ref {
	return policy.Ref{Kind: policy.KindTrafficRule, Namespace: name.Namespace, Service: name.Name, ID: id}
}

func (s *Store) putRule(ctx context.Context, e policy.Edit) (id string, err error) {
	out, err := s.Change(ctx, []policy.Edit{e}, false)
	if err != nil {
		return e.ID, err
	}
	return out.Differences[0].ID, nil
}

// DeleteTrafficRule removes a rule; ErrNotFound when there is none.
func (s *Store) DeleteTrafficRule(ctx context.Context, name policy.ServiceName, id string) error {
	return s.changeOne(ctx, policy.Edit{Ref: trafficRef(name, id)})
}

// AddSecurityRule adds a rule and gives its id; one is made when the rule has
// none. ErrConflict when the id is taken. The error is policy.Problems when the
// rule is not valid.
func (s *Store) AddSecurityRule(ctx context.Context, rule policy.SecurityRule) (id string, err error) {
	return s.putRule(ctx, policy.Edit{Ref: securityRef(rule.ID), To: &policy.Resource{Security: &rule}, New: true})
}

// PutSecurityRule replaces the rule with the same id, or adds it.
func (s *Store) PutSecurityRule(ctx context.Context, rule policy.SecurityRule) (id string, err error) {
	return s.putRule(ctx, policy.Edit{Ref: securityRef(rule.ID), To: &policy.Resource{Security: &rule}})
}

func securityRef(id string) policy.Ref { return policy.Ref{Kind: policy.KindSecurityRule, ID: id} }

// DeleteSecurityRule removes a rule; ErrNotFound when there is none.
func (s *Store) DeleteSecurityRule(ctx context.Context, id string) error {
	return s.changeOne(ctx, policy.Edit{Ref: securityRef(id)})
}

// validID tells whether an id fits into a key and a path without escaping.
func validID(id string) bool {
	return id != "" && len(id) <= 253 && !strings.ContainsFunc(id, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/?#%"\`, r)
	})
}
