package store

import (
	"cmp"
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// PutEndpoint registers an endpoint, or registers it anew: all that was
// registered under its id is replaced, and it belongs to no lease. A service
// that is new gets its virtual address. An empty Status is healthy. The error is
// policy.Problems when the endpoint is not valid, and ErrOwned when the mesh file has
// one of this id.
func (s *Store) PutEndpoint(ctx context.Context, e policy.Endpoint) error {
	e.Status = cmp.Or(e.Status, policy.Healthy)
	ref := policy.Ref{Kind: policy.KindEndpoint, Namespace: e.Namespace, Service: e.ServiceName, ID: e.ID}
	return s.changeOne(ctx, policy.Edit{Ref: ref, To: &policy.Resource{Endpoint: &e}})
}

// DeleteEndpoint removes an endpoint; ErrNotFound when there is none, ErrOwned when
// it is the mesh file's.
func (s *Store) DeleteEndpoint(ctx context.Context, namespace, service, id string) error {
	return s.changeOne(ctx, policy.Edit{Ref: policy.Ref{Kind: policy.KindEndpoint, Namespace: namespace, Service: service, ID: id}})
}

func (s *Store) changeOne(ctx context.Context, e policy.Edit) error {
	_, err := s.Change(ctx, []policy.Edit{e}, false)
	return err
}

// SetStatus sets whether an endpoint is healthy (policy.Healthy or Unhealthy).
// Nothing is written when it is so already. ErrNotFound when there is no such
// endpoint: one that was removed does not come back.
func (s *Store) SetStatus(ctx context.Context, namespace, service, id, status string) error {
	return s.setStatus(ctx, policy.ServiceName{Namespace: namespace, Name: service}, id, status)
}

// setStatus does more operations with the change, if it is one.
func (s *Store) setStatus(ctx context.Context, name policy.ServiceName, id, status string, more ...clientv3.Op) error {
	what := fmt.Sprintf("status of endpoint %s of %s", id, name)
	if status != policy.Healthy && status != policy.Unhealthy {
		return fmt.Errorf("%s: %q is not %s or %s", what, status, policy.Healthy, policy.Unhealthy)
	}
	return s.alter(ctx, what, name, id, func(r *endpointRecord) { r.Status = status }, more...)
}

// SetMeshed notes that a proxy was seen beside an endpoint, which is so until
// the endpoint is removed. ErrNotFound when there is no such endpoint.
func (s *Store) SetMeshed(ctx context.Context, namespace, service, id string) error {
	name := policy.ServiceName{Namespace: namespace, Name: service}
	return s.alter(ctx, fmt.Sprintf("mark endpoint %s of %s", id, name), name, id, func(r *endpointRecord) { r.Meshed = true })
}

// alter changes an endpoint that exists, and writes nothing when it is so
// already.
func (s *Store) alter(ctx context.Context, what string, name policy.ServiceName, id string, change func(*endpointRecord), more ...clientv3.Op) error {
	return s.write(ctx, what, func(ctx context.Context) error {
		have, ok := s.storedEndpoint(name, id)
		if !ok {
			return ErrNotFound
		}
		record := endpointRecord{Endpoint: have.Endpoint.Endpoint, ProxyID: have.ProxyID, Meshed: have.Meshed, File: have.File}
		change(&record)
		if record.Status == have.Status && record.Meshed == have.Meshed {
			return nil
		}
		key := s.keys.endpoint(name, id)
		op, err := put(key, record, clientv3.WithIgnoreLease())
		if err != nil {
			return err
		}
		_, err = s.commit(ctx, []clientv3.Cmp{unchanged(key, have.Revision)}, append([]clientv3.Op{op}, more...))
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
