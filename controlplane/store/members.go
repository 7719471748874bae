package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

// Member is one of the processes that share the store, as it tells of itself.
type Member struct {
	Name    string         `json:"name"`
	Address string         `json:"address"` // where proxies find it
	Version string         `json:"version"`
	Since   float64        `json:"since"`   // Unix seconds: when it started
	Proxies int            `json:"proxies"` // attached to it
	Figures policy.Figures `json:"figures"` // summed over those
	Refused []Refusal      `json:"refused,omitempty"`
	// Circuits are those that proxies attached to it reported not to be closed; a
	// bounded number.
	Circuits []Circuit `json:"circuits,omitempty"`
	// Demands are what its proxies want of limits of the whole mesh.
	Demands []policy.Demand `json:"demands,omitempty"`
	// Rotation is how far its proxies have followed one of the root.
	Rotation MemberRotation `json:"rotation,omitzero"`

	Leader bool `json:"-"` // it runs the task of TakePart
}

// MemberRotation tells which proxies of a member have followed a step of a rotation.
type MemberRotation struct {
	Step     string    `json:"step"`               // which step; "" is none
	Followed []string  `json:"followed,omitempty"` // ids
	Behind   []Refusal `json:"behind,omitempty"`   // a bounded number, with reasons
}

// Refusal tells that a proxy attached to a member did not take a change.
type Refusal struct {
	Proxy  string `json:"proxy"` // its id
	Type   string `json:"type"`
	Reason string `json:"reason"`
}

// Circuit is how a proxy that is attached to a member said that its circuit of an
// endpoint stands.
type Circuit struct {
	Proxy    string             `json:"proxy"` // its id
	Service  policy.ServiceName `json:"service"`
	Target   policy.ServiceName `json:"target"` // the service that is called
	Endpoint string             `json:"endpoint"`
	State    string             `json:"state"`
	Failures int                `json:"failures,omitempty"`
	Since    float64            `json:"since,omitempty"` // Unix seconds
	Forced   bool               `json:"forced,omitempty"`
	Ejected  bool               `json:"ejected,omitempty"`
}

// tellEvery is how often a member tells anew of itself. What is asked of it by
// others (GET /metrics) is as old as that; the price is one small write for each
// member in that time.
const tellEvery = 5 * time.Second

// TellNow has this process tell of itself at once: others wait for it. It does
// not wait, and does nothing where there are no others.
func (s *Store) TellNow() {
	select {
	case s.tellNow <- struct{}{}:
	default:
	}
}

// TakePart makes this process one of the store's members until ctx ends, and
// runs a task in one member at a time: in another within LeaseTTL (and what
// etcd needs to elect a leader of its own) when that one is gone or no longer
// heard. self is asked for what this process tells of itself. lead's context
// ends when this process may no longer lead, at the latest when its lease does;
// lead is then to return, and is called again when its turn comes. TakePart
// blocks; it returns nil when ctx ends, and lead's error when lead returns by
// itself. With the embedded etcd there is one process, which leads.
func (s *Store) TakePart(ctx context.Context, self func() Member, lead func(ctx context.Context) error) error {
	s.membersMu.Lock()
	s.self = self
	s.membersMu.Unlock()
	if s.server != nil {
		return lead(ctx)
	}
	return s.hold(ctx, &election{
		key: s.keys.leader(), name: func() string { return self().Name },
		beside: func(ctx context.Context, lease clientv3.LeaseID) error { return s.tell(ctx, lease, self) },
		lead: func(ctx context.Context) error {
			s.cfg.Log.Info("this control plane leads")
			defer s.cfg.Log.Info("this control plane leads no longer")
			return lead(ctx)
		},
	})
}

// tell writes what self says under the lease, now and as often as it changes.
func (s *Store) tell(ctx context.Context, lease clientv3.LeaseID, self func() Member) error {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	last := ""
	for {
		b, err := json.Marshal(self())
		if err != nil {
			return fmt.Errorf("tell of this control plane: %w", err)
		}
		if text := string(b); text != last {
			ask, cancel := context.WithTimeout(ctx, tellEvery)
			_, err = s.client.Put(ask, fmt.Sprintf("%s%x", s.keys.members(), int64(lease)), text, clientv3.WithLease(lease))
			cancel()
			if err == nil {
				last = text
			} // else the next turn tries again; the lease says whether we are there
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.tellNow:
		}
	}
}

// Members lists the store's members, by name. The error is ErrUnavailable when
// the cluster does not answer within ctx; the list is then the last one read.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	s.membersMu.Lock()
	self := s.self
	s.membersMu.Unlock()
	if s.server != nil {
		if self == nil {
			return nil, nil
		}
		m := self()
		m.Leader = true
		return []Member{m}, nil
	}
	read, err := s.readMembers(ctx)
	s.membersMu.Lock()
	defer s.membersMu.Unlock()
	if err == nil {
		s.members = read
	}
	return slices.Clone(s.members), err
}

// KnownMembers gives the list as read last, which Run does every few seconds.
func (s *Store) KnownMembers() []Member {
	s.membersMu.Lock()
	defer s.membersMu.Unlock()
	return slices.Clone(s.members)
}

func (s *Store) readMembers(ctx context.Context) ([]Member, error) {
	resp, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.keys.members(), clientv3.WithPrefix()),
		clientv3.OpGet(s.keys.leader()+"/", clientv3.WithFirstCreate()...),
	).Commit()
	if err != nil {
		return nil, fmt.Errorf("list the control planes: %w", explain(err))
	}
	leader := int64(-1)
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		leader = kv.Lease
	}
	var out []Member
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		m, err := decode[Member](kv)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", kv.Key, err)
		}
		m.Leader = kv.Lease == leader
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Since, b.Since))
	})
	return out, nil
}
