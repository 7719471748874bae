package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/policy"
)

// Lease keeps a proxy and its endpoints in the state.
type Lease struct {
	store     *Store
	id        clientv3.LeaseID
	ttl       time.Duration
	proxy     Proxy
	endpoints []string // ids
}

// TTL is how long the lease lasts after the last KeepAlive.
func (l *Lease) TTL() time.Duration { return l.ttl }

// Attach puts a proxy and the endpoints it offers into the state for as long as
// the lease is kept alive. The endpoints are of the proxy's service. A proxy
// that attaches again under the same id replaces what it attached before; the
// old lease then holds nothing any more. The error is policy.Problems when an
// endpoint is not valid.
func (s *Store) Attach(ctx context.Context, p Proxy, endpoints []policy.Endpoint) (*Lease, error) {
	endpoints = slices.Clone(endpoints)
	if err := checkAttach(p, endpoints); err != nil {
		return nil, err
	}
	var lease *Lease
	err := s.write(ctx, fmt.Sprintf("attach proxy %s of %s", p.ID, p.Service), func(ctx context.Context) (err error) {
		if lease == nil {
			if lease, err = s.grant(ctx); err != nil {
				return err
			}
			lease.proxy = p
			for _, e := range endpoints {
				lease.endpoints = append(lease.endpoints, e.ID)
			}
		}
		return s.attach(ctx, lease, p, endpoints)
	})
	if err != nil && lease != nil {
		// It would end by itself; this is to leave nothing half done behind.
		err = errors.Join(err, lease.Close(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return nil, err
	}
	return lease, nil
}

func checkAttach(p Proxy, endpoints []policy.Endpoint) error {
	if err := p.Service.Validate(); err != nil {
		return fmt.Errorf("attach proxy %q: %w", p.ID, err)
	}
	if !validID(p.ID) {
		return fmt.Errorf("attach proxy %q of %s: its id is not 1 to 253 plain characters", p.ID, p.Service)
	}
	if len(endpoints) > maxAttached {
		return fmt.Errorf("attach proxy %s of %s: %d endpoints are more than %d", p.ID, p.Service, len(endpoints), maxAttached)
	}
	var problems policy.Problems
	for i := range endpoints {
		e := &endpoints[i]
		if e.Status == "" {
			e.Status = policy.Healthy
		}
		problems = append(problems, e.Validate().Under(fmt.Sprintf("endpoints[%d]", i))...)
		if e.Service() != p.Service {
			problems = append(problems, policy.Problem{Path: fmt.Sprintf("endpoints[%d]", i), Message: fmt.Sprintf("is of %s; the proxy is of %s", e.Service(), p.Service)})
		}
	}
	return problems.Err()
}

// maxAttached keeps the transaction below etcd's bound of 128 operations, with
// as many removed as added.
const maxAttached = 50

func (s *Store) grant(ctx context.Context) (*Lease, error) {
	if err := s.server.space(); err != nil {
		return nil, err
	}
	seconds := int64((s.cfg.LeaseTTL + time.Second - 1) / time.Second)
	resp, err := s.client.Grant(ctx, seconds)
	if err != nil {
		return nil, explain(err)
	}
	return &Lease{store: s, id: resp.ID, ttl: time.Duration(resp.TTL) * time.Second}, nil
}

func (s *Store) attach(ctx context.Context, l *Lease, p Proxy, endpoints []policy.Endpoint) error {
	key := s.keys.proxy(p.ID)
	value, revision, err := s.get(ctx, key)
	if err != nil {
		return err
	}
	record := proxyRecord{Namespace: p.Service.Namespace, Service: p.Service.Name, Addresses: p.Addresses, Version: p.Version, Control: p.Control, Since: p.Since}
	keep := map[string]bool{}
	var ops []clientv3.Op
	var note []change
	for _, e := range endpoints {
		if have, ok := s.storedEndpoint(p.Service, e.ID); ok && have.File {
			continue // what the file says of it would be lost
		}
		at := s.keys.endpoint(p.Service, e.ID)
		op, err := put(at, endpointRecord{Endpoint: e, ProxyID: p.ID}, clientv3.WithLease(l.id))
		if err != nil {
			return err
		}
		if keep[at] {
			return fmt.Errorf("endpoint id %q is given twice", e.ID)
		}
		keep[at] = true
		ops = append(ops, op)
		note = append(note, s.attached(p.Service, e.ID, &e)...)
		record.Endpoints = append(record.Endpoints, e.ID)
	}
	op, err := put(key, record, clientv3.WithLease(l.id))
	if err != nil {
		return err
	}
	ops = append(ops, op)
	before, ids := s.attachedBefore(p.ID, value)
	for _, id := range ids {
		if at := s.keys.endpoint(before, id); !keep[at] {
			ops = append(ops, clientv3.OpDelete(at))
			note = append(note, s.attached(before, id, nil)...)
		}
	}
	return s.commitAttach(ctx, p, []clientv3.Cmp{unchanged(key, revision)}, ops, note, len(endpoints) > 0)
}

func (s *Store) commitAttach(ctx context.Context, p Proxy, conditions []clientv3.Cmp, ops []clientv3.Op, note []change, offers bool) error {
	class := proxies
	if slices.ContainsFunc(note, func(c change) bool { return c.Before != nil && !c.Leased }) {
		class = operators // what one of them registered is replaced
	}
	more, err := s.noteOps(WithAuthor(ctx, policy.Author{Who: policy.ByProxy, Name: p.Service.String() + "/" + p.ID}), note, class)
	if err != nil {
		return err
	}
	var services []policy.ServiceName
	if offers { // a proxy that offers nothing makes no service
		services = append(services, p.Service)
	}
	if _, err := s.inServices(ctx, services, conditions, append(ops, more...)); err != nil {
		return err
	}
	s.noted(ctx, more)
	return nil
}

// attached notes what a proxy does to an endpoint: nothing, when it attaches
// again as it was.
func (s *Store) attached(name policy.ServiceName, id string, now *policy.Endpoint) []change {
	ref := policy.Ref{Kind: policy.KindEndpoint, Namespace: name.Namespace, Service: name.Name, ID: id}
	var before, after *policy.Resource
	have, ok := s.storedEndpoint(name, id)
	if ok {
		before = &policy.Resource{Endpoint: &have.Endpoint.Endpoint}
	}
	if now != nil {
		after = &policy.Resource{Endpoint: now}
	}
	c := change{Difference: policy.Compare(ref, before, after), Leased: have.lease != 0}
	switch {
	case c.Action == policy.Unchanged && (!ok || c.Leased):
		return nil
	case c.Action == policy.Unchanged: // but from now on it is the proxy's
		c.Action = policy.Changed
	}
	return []change{c}
}

// attachedBefore gives the ids of the endpoints of an earlier attachment that
// are still this proxy's.
func (s *Store) attachedBefore(proxyID string, value []byte) (name policy.ServiceName, ids []string) {
	var old proxyRecord
	if len(value) == 0 || json.Unmarshal(value, &old) != nil {
		return name, nil
	}
	name = policy.ServiceName{Namespace: old.Namespace, Name: old.Service}
	for _, id := range old.Endpoints {
		if e, ok := s.storedEndpoint(name, id); ok && e.ProxyID == proxyID {
			ids = append(ids, id)
		}
	}
	return name, ids
}

// KeepAlive makes the lease last another TTL. ErrNotFound when it has ended:
// the proxy is to attach again.
func (l *Lease) KeepAlive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := l.store.client.KeepAliveOnce(ctx, l.id)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("keep lease %x alive: %w", int64(l.id), ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("keep lease %x alive: %w", int64(l.id), explain(err))
	}
	return nil
}

// Prolong makes the leases of the proxies that are attached to a control plane
// last another TTL. One that starts again does so for those it had: they are on
// their way back, thousands of them take longer than a lease may have left, and
// the endpoints of each that is late would be taken from all who call it. The
// price is that what has died meanwhile is known so much later.
func (s *Store) Prolong(ctx context.Context, control string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s.mu.Lock()
	var leases []clientv3.LeaseID
	for _, p := range s.model.proxies {
		if p.Control == control {
			leases = append(leases, clientv3.LeaseID(p.lease))
		}
	}
	s.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(prolongAtOnce)
	for _, id := range leases {
		g.Go(func() error {
			if _, err := s.client.KeepAliveOnce(ctx, id); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return fmt.Errorf("prolong the leases of %s: %w", control, explain(err))
			}
			return nil
		})
	}
	return g.Wait()
}

// prolongAtOnce is how many leases are prolonged at a time: each is a stream of
// its own.
const prolongAtOnce = 16

// Close ends the lease: the proxy and its endpoints are gone when it returns,
// unless the proxy attached again since. Closing one that has ended does
// nothing.
func (l *Lease) Close(ctx context.Context) error {
	return l.store.write(ctx, fmt.Sprintf("end lease %x", int64(l.id)), func(ctx context.Context) error {
		_, err := l.store.client.Revoke(ctx, l.id)
		if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return explain(err)
		}
		// Revoking may change nothing, and then no revision is to be awaited.
		return l.store.awaitThat(ctx, func() bool { return !l.store.model.holds(int64(l.id), l.proxy, l.endpoints) })
	})
}
