package store

import (
	"net/netip"
	"slices"

	"github.com/weir-mesh/weir/policy"
)

// State is the whole state of the mesh at one revision. It is immutable: those
// who hold one may keep it and must not write to it. Parts that did not change
// are shared between one State and the next, so pointers can be compared.
type State struct {
	// Revision is etcd's at the last change; 0 when nothing was ever stored.
	Revision int64
	Services Services
	Security []policy.SecurityRule // in order of creation
	// SecurityRevisions are etcd's at each rule's last change.
	SecurityRevisions []int64
	// Settings are those in force: what was set, and over it what a file sets.
	Settings policy.Settings
	// SettingsRevision is etcd's at the last change of either; 0 while they are the
	// defaults.
	SettingsRevision int64
	File             *File // nil when no file was applied
	Proxies          Proxies
	Revoked          []policy.Revocation // by id
	Roots            policy.Roots
}

// Service is a service that has endpoints or rules.
type Service struct {
	Name policy.ServiceName
	// VirtualIndex is that of its addresses (policy.VirtualAddrs), 1..MaxVirtual.
	// It never changes, and outlives the service.
	VirtualIndex int
	Endpoints    []Endpoint           // by id
	Rules        []policy.TrafficRule // in order of creation, which is that of evaluation
	// RuleRevisions are etcd's at each rule's last change.
	RuleRevisions []int64
	Circuits      map[string]CircuitOrder // by the endpoint's id; also of such that are no more
	Revision      int64                   // etcd's at the service's last change
}

// Endpoint is an endpoint as stored. LastSeen is as registered; Store.Endpoints
// tells what was heard since.
type Endpoint struct {
	policy.Endpoint
	Leased  bool   // it goes when its proxy is silent for the lease's time
	ProxyID string // the proxy that attached it; "" when registered otherwise
	Meshed  bool   // a proxy was seen beside it (SetMeshed)
	File    bool   // it is the mesh file's
	// Revision is etcd's at its last change, of its status too.
	Revision int64
}

// Proxy is a proxy that is attached.
type Proxy struct {
	ID        string
	Service   policy.ServiceName
	Addresses []netip.Addr // those it is beside
	Version   string
	Control   string  // the name of the control plane it is attached to
	Since     float64 // Unix seconds: when it attached there
}

// State gives the newest state this process knows. It never blocks.
func (s *Store) State() *State { return s.current.Load() }

// Endpoints gives a service's endpoints by id, with the newest LastSeen; none
// for an unknown service.
func (s *Store) Endpoints(name policy.ServiceName) []Endpoint { return s.EndpointsIn(s.State(), name) }

// EndpointsIn does the same for those that a service has in a state.
func (s *Store) EndpointsIn(st *State, name policy.ServiceName) []Endpoint {
	svc := st.Services.Get(name)
	if svc == nil {
		return nil
	}
	out := make([]Endpoint, len(svc.Endpoints))
	copy(out, svc.Endpoints)
	s.seenMu.Lock()
	defer s.seenMu.Unlock()
	for i := range out {
		out[i].LastSeen = max(out[i].LastSeen, s.seen[name][out[i].ID])
	}
	return out
}

// Seen notes when an endpoint was last heard of, in Unix seconds. It is kept in
// this process's memory only, and for an endpoint that exists.
func (s *Store) Seen(namespace, service, id string, unix float64) {
	name := policy.ServiceName{Namespace: namespace, Name: service}
	if _, ok := s.State().endpoint(name, id); !ok {
		return
	}
	s.seenMu.Lock()
	defer s.seenMu.Unlock()
	if s.seen[name] == nil {
		s.seen[name] = map[string]float64{}
	}
	s.seen[name][id] = unix
}

// With gives the state as it would be with differences, and what they touch.
// Rules that are added stand last, and nothing new has a virtual address.
func (st *State) With(differences []policy.Difference) (*State, Change) {
	out := *st
	c := Change{State: &out, Services: map[policy.ServiceName]struct{}{}}
	services := st.Services.draft()
	out.Security = slices.Clone(st.Security)
	for _, d := range differences {
		switch d.Kind {
		case policy.KindConfig:
			c.Settings = true
			out.Settings = *d.After.Settings
		case policy.KindSecurityRule:
			c.Security = true
			out.Security = replace(out.Security, valueOf(d.After).Security, func(r *policy.SecurityRule) bool { return r.ID == d.ID })
		default:
			name := d.Name()
			svc := &Service{Name: name}
			if was := services.get(serviceName(name)); was != nil {
				svc = was
			}
			if _, again := c.Services[name]; !again {
				svc = &Service{Name: name, VirtualIndex: svc.VirtualIndex, Endpoints: slices.Clone(svc.Endpoints), Rules: slices.Clone(svc.Rules), Circuits: svc.Circuits}
				services.put(svc)
				c.Services[name] = struct{}{}
			}
			svc.with(&d)
		}
	}
	for name := range c.Services {
		if svc := services.get(serviceName(name)); len(svc.Endpoints)+len(svc.Rules) == 0 {
			services.remove(serviceName(name))
		}
	}
	out.Services = Services{services.table}
	return &out, c
}

func (svc *Service) with(d *policy.Difference) {
	if d.Kind == policy.KindTrafficRule {
		svc.Rules = replace(svc.Rules, valueOf(d.After).Traffic, func(r *policy.TrafficRule) bool { return r.ID == d.ID })
		return
	}
	var e *Endpoint
	if d.After != nil {
		e = &Endpoint{Endpoint: *d.After.Endpoint}
	}
	svc.Endpoints = replace(svc.Endpoints, e, func(e *Endpoint) bool { return e.ID == d.ID })
}

func valueOf(r *policy.Resource) policy.Resource {
	if r == nil {
		return policy.Resource{}
	}
	return *r
}

// replace puts a value in the place of the one that is meant, or at the end;
// nil removes it.
func replace[T any](list []T, value *T, is func(*T) bool) []T {
	for i := range list {
		if !is(&list[i]) {
			continue
		}
		if value == nil {
			return slices.Delete(list, i, i+1)
		}
		list[i] = *value
		return list
	}
	if value != nil {
		list = append(list, *value)
	}
	return list
}

func (st *State) endpoint(name policy.ServiceName, id string) (*Endpoint, bool) {
	svc := st.Services.Get(name)
	if svc == nil {
		return nil, false
	}
	for i := range svc.Endpoints {
		if svc.Endpoints[i].ID == id {
			return &svc.Endpoints[i], true
		}
	}
	return nil, false
}
