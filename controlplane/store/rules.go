package store

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// AddTrafficRule adds a rule after those that a service has, and gives its id;
// one is made when the rule has none. ErrConflict when the id is taken. A
// service that is new gets its virtual address. The error is policy.Problems
// when the rule is not valid.
func (s *Store) AddTrafficRule(ctx context.Context, name policy.ServiceName, rule policy.TrafficRule) (id string, err error) {
	err = s.putTrafficRule(ctx, name, &rule, true)
	return rule.ID, err
}

// PutTrafficRule replaces the rule with the same id, at its place in the order,
// or adds it.
func (s *Store) PutTrafficRule(ctx context.Context, name policy.ServiceName, rule policy.TrafficRule) (id string, err error) {
	err = s.putTrafficRule(ctx, name, &rule, false)
	return rule.ID, err
}

func (s *Store) putTrafficRule(ctx context.Context, name policy.ServiceName, rule *policy.TrafficRule, isNew bool) error {
	if err := name.Validate(); err != nil {
		return err
	}
	if err := s.identify(&rule.ID, rule.Validate()); err != nil {
		return err
	}
	key := s.keys.rule(name, rule.ID)
	op, err := put(key, rule)
	if err != nil {
		return err
	}
	return s.write(ctx, fmt.Sprintf("traffic rule %s of %s", rule.ID, name), func(ctx context.Context) error {
		return s.ifNew(ctx, key, isNew, func(conditions []clientv3.Cmp) error {
			return s.inService(ctx, name, conditions, []clientv3.Op{op})
		})
	})
}

// DeleteTrafficRule removes a rule; ErrNotFound when there is none.
func (s *Store) DeleteTrafficRule(ctx context.Context, name policy.ServiceName, id string) error {
	return s.remove(ctx, fmt.Sprintf("remove traffic rule %s of %s", id, name), s.keys.rule(name, id))
}

// AddSecurityRule adds a rule and gives its id; one is made when the rule has
// none. ErrConflict when the id is taken. The error is policy.Problems when the
// rule is not valid.
func (s *Store) AddSecurityRule(ctx context.Context, rule policy.SecurityRule) (id string, err error) {
	err = s.putSecurityRule(ctx, &rule, true)
	return rule.ID, err
}

// PutSecurityRule replaces the rule with the same id, or adds it.
func (s *Store) PutSecurityRule(ctx context.Context, rule policy.SecurityRule) (id string, err error) {
	err = s.putSecurityRule(ctx, &rule, false)
	return rule.ID, err
}

func (s *Store) putSecurityRule(ctx context.Context, rule *policy.SecurityRule, isNew bool) error {
	if err := s.identify(&rule.ID, rule.Validate()); err != nil {
		return err
	}
	key := s.keys.security(rule.ID)
	op, err := put(key, rule)
	if err != nil {
		return err
	}
	return s.write(ctx, "security rule "+rule.ID, func(ctx context.Context) error {
		return s.ifNew(ctx, key, isNew, func(conditions []clientv3.Cmp) error {
			return s.commit(ctx, conditions, []clientv3.Op{op})
		})
	})
}

// DeleteSecurityRule removes a rule; ErrNotFound when there is none.
func (s *Store) DeleteSecurityRule(ctx context.Context, id string) error {
	return s.remove(ctx, "remove security rule "+id, s.keys.security(id))
}

// ifNew does a write, on condition that a key is absent when isNew.
func (s *Store) ifNew(ctx context.Context, key string, isNew bool, do func([]clientv3.Cmp) error) error {
	if !isNew {
		return do(nil)
	}
	err := do([]clientv3.Cmp{absent(key)})
	if err != errRace { //nolint:errorlint // never wrapped
		return err
	}
	_, revision, err := s.get(ctx, key)
	switch {
	case err != nil:
		return err
	case revision != 0:
		return ErrConflict
	}
	return errRace
}

// identify gives a rule an id if it has none and adds what is wrong with the
// id to what is wrong with the rule.
func (s *Store) identify(id *string, p policy.Problems) error {
	if *id == "" {
		*id = s.cfg.NewID()
	}
	if !validID(*id) {
		p = append(p, policy.Problem{Path: "id", Message: fmt.Sprintf("%q is not 1 to 253 plain characters that a path can hold", *id)})
	}
	return p.Err()
}

// validID tells whether an id fits into a key and a path without escaping.
func validID(id string) bool {
	return id != "" && len(id) <= 253 && !strings.ContainsFunc(id, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/?#%"\`, r)
	})
}
