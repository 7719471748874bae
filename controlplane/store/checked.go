package store

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// Turn is SetStatus with a record of the checks that led to it, which replaces
// the one before: who checks next, or is asked, is to know why the status is what
// it is. Both are stored, or neither. What the record says is the caller's affair;
// it is to be a few KB at most.
func (s *Store) Turn(ctx context.Context, name policy.ServiceName, id, status string, record []byte) error {
	return s.setStatus(ctx, name, id, status, clientv3.OpPut(s.keys.checked(name, id), string(record)))
}

// Checked gives the record of the last Turn of an endpoint; nil for none.
// ErrUnavailable when the cluster does not answer within ctx.
func (s *Store) Checked(ctx context.Context, name policy.ServiceName, id string) ([]byte, error) {
	if s.isClosed() {
		return nil, ErrClosed
	}
	value, _, err := s.get(ctx, s.keys.checked(name, id))
	if err != nil {
		return nil, fmt.Errorf("checks of endpoint %s of %s: %w", id, name, err)
	}
	return value, nil
}

// ForgetChecked removes the records of endpoints that are no more. They are not
// removed with them: an endpoint that a proxy brings is gone for a moment when the
// proxy comes from another control plane.
func (s *Store) ForgetChecked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, s.keys.checks(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("forget checks: %w", explain(err))
	}
	// The keys were read first: what has one and is not in a state that is as new is
	// gone. A record that is written meanwhile is not among them.
	if err := s.Sync(ctx); err != nil {
		return fmt.Errorf("forget checks: %w", err)
	}
	st := s.State()
	for _, kv := range resp.Kvs {
		parts := strings.Split(strings.TrimPrefix(string(kv.Key), s.keys.checks()), "/")
		if len(parts) == 3 {
			if _, ok := st.endpoint(policy.ServiceName{Namespace: parts[0], Name: parts[1]}, parts[2]); ok {
				continue
			}
		}
		if _, err := s.client.Delete(ctx, string(kv.Key)); err != nil {
			return fmt.Errorf("forget checks: %w", explain(err))
		}
	}
	return nil
}
