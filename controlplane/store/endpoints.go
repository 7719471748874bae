package store

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// PutEndpoint registers an endpoint, or registers it anew: all that was
// registered under its id is replaced, and it belongs to no lease. A service
// that is new gets its virtual address. An empty Status is healthy. The error is
// policy.Problems when the endpoint is not valid.
func (s *Store) PutEndpoint(ctx context.Context, e policy.Endpoint) error {
	if e.Status == "" {
		e.Status = policy.Healthy
	}
	if err := e.Validate().Err(); err != nil {
		return err
	}
	name := e.Service()
	record := endpointRecord{Endpoint: e}
	if have, ok := s.storedEndpoint(name, e.ID); ok && have.IP == e.IP {
		record.Meshed = have.Meshed // registered again, not removed
	}
	op, err := put(s.keys.endpoint(name, e.ID), record)
	if err != nil {
		return fmt.Errorf("register endpoint %s of %s: %w", e.ID, name, err)
	}
	return s.write(ctx, fmt.Sprintf("register endpoint %s of %s", e.ID, name), func(ctx context.Context) error {
		return s.inService(ctx, name, nil, []clientv3.Op{op})
	})
}

// DeleteEndpoint removes an endpoint; ErrNotFound when there is none.
func (s *Store) DeleteEndpoint(ctx context.Context, namespace, service, id string) error {
	name := policy.ServiceName{Namespace: namespace, Name: service}
	return s.remove(ctx, fmt.Sprintf("remove endpoint %s of %s", id, name), s.keys.endpoint(name, id))
}

// remove deletes one key; ErrNotFound when it does not exist.
func (s *Store) remove(ctx context.Context, what, key string) error {
	if k, _, _ := s.keys.parse(key); k == unknownKey {
		return fmt.Errorf("%s: %w", what, ErrNotFound) // a name or id that cannot be
	}
	return s.write(ctx, what, func(ctx context.Context) error {
		err := s.transact(ctx, []clientv3.Cmp{exists(key)}, []clientv3.Op{clientv3.OpDelete(key)})
		if err == errRace { //nolint:errorlint // never wrapped
			return ErrNotFound
		}
		return err
	})
}

// SetStatus sets whether an endpoint is healthy (policy.Healthy or Unhealthy).
// Nothing is written when it is so already. ErrNotFound when there is no such
// endpoint: one that was removed does not come back.
func (s *Store) SetStatus(ctx context.Context, namespace, service, id, status string) error {
	name := policy.ServiceName{Namespace: namespace, Name: service}
	what := fmt.Sprintf("status of endpoint %s of %s", id, name)
	if status != policy.Healthy && status != policy.Unhealthy {
		return fmt.Errorf("%s: %q is not %s or %s", what, status, policy.Healthy, policy.Unhealthy)
	}
	return s.alter(ctx, what, name, id, func(r *endpointRecord) { r.Status = status })
}

// SetMeshed notes that a proxy was seen beside an endpoint, which is so until
// the endpoint is removed. ErrNotFound when there is no such endpoint.
func (s *Store) SetMeshed(ctx context.Context, namespace, service, id string) error {
	name := policy.ServiceName{Namespace: namespace, Name: service}
	return s.alter(ctx, fmt.Sprintf("mark endpoint %s of %s", id, name), name, id, func(r *endpointRecord) { r.Meshed = true })
}

// alter changes an endpoint that exists, and writes nothing when it is so
// already.
func (s *Store) alter(ctx context.Context, what string, name policy.ServiceName, id string, change func(*endpointRecord)) error {
	return s.write(ctx, what, func(ctx context.Context) error {
		have, ok := s.storedEndpoint(name, id)
		if !ok {
			return ErrNotFound
		}
		record := endpointRecord{Endpoint: have.Endpoint.Endpoint, ProxyID: have.ProxyID, Meshed: have.Meshed}
		change(&record)
		if record.Status == have.Status && record.Meshed == have.Meshed {
			return nil
		}
		key := s.keys.endpoint(name, id)
		op, err := put(key, record, clientv3.WithIgnoreLease())
		if err != nil {
			return err
		}
		err = s.commit(ctx, []clientv3.Cmp{unchanged(key, have.revision)}, []clientv3.Op{op})
		if err == errRace { //nolint:errorlint // never wrapped
			return s.catchUp(ctx, key)
		}
		return err
	})
}

func (s *Store) storedEndpoint(name policy.ServiceName, id string) (storedEndpoint, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.model.services[name]
	if svc == nil {
		return storedEndpoint{}, false
	}
	e, ok := svc.endpoints[id]
	return e, ok
}

// catchUp waits until the State is as new as a key in etcd of which we know
// only an old revision, and says errRace: look again.
func (s *Store) catchUp(ctx context.Context, key string) error {
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return explain(err)
	}
	if len(resp.Kvs) == 0 {
		return ErrNotFound
	}
	if err := s.await(ctx, resp.Kvs[0].ModRevision); err != nil {
		return err
	}
	return errRace
}
