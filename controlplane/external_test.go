package controlplane

import (
	"slices"
	"testing"

	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// outside makes a service of hosts.
func (s *steps) outside(name policy.ServiceName, hosts ...string) publish.Change {
	svc := &store.Service{Name: name, VirtualIndex: 9}
	for _, h := range hosts {
		e := policy.DefaultEndpoint()
		e.ID, e.Namespace, e.ServiceName, e.Host, e.Port = h, name.Namespace, name.Name, h, 443
		svc.Endpoints = append(svc.Endpoints, store.Endpoint{Endpoint: e})
	}
	var services []*store.Service
	for other, v := range s.st.Services.All() {
		if other != name {
			services = append(services, v)
		}
	}
	if len(hosts) > 0 {
		services = append(services, svc)
	}
	s.st.Services = store.ServicesOf(services...)
	return s.apply(store.Change{Services: map[policy.ServiceName]struct{}{name: {}}})
}

func TestAHostOutsideLeadsToItsService(t *testing.T) {
	s := newSteps()
	pay, other := policy.ServiceName{Namespace: "default", Name: "pay"}, policy.ServiceName{Namespace: "a", Name: "other"}
	if c := s.outside(pay, "api.example.com", "b.example.com"); !slices.Contains(c.Lookups, "api.example.com") || slices.Contains(c.Lookups, "invalid AddrPort") {
		t.Errorf("touched are %v", c.Lookups)
	}
	if name, ok := s.v.Lookup("api.example.com"); !ok || name != pay {
		t.Errorf("%v %v", name, ok)
	}
	svc, _ := s.v.Service(pay)
	if len(svc.Endpoints) != 2 || svc.Endpoints[0].Host != "api.example.com" || svc.Endpoints[0].Meshed {
		t.Errorf("%+v", svc.Endpoints)
	}
	if got := s.v.targets(); len(got) != 0 {
		t.Errorf("what is outside is asked for its health: %+v", got)
	}
	if got := s.v.sourcesLocked(&policy.SecurityRule{SourceNamespace: pay.Namespace, SourceService: pay.Name}); len(got) != 0 {
		t.Errorf("it is at %v", got)
	}
	s.outside(other, "api.example.com") // the first by name has it, everywhere
	if name, _ := s.v.Lookup("api.example.com"); name != other {
		t.Errorf("two have it, and it leads to %v", name)
	}
	if c := s.outside(other); !slices.Contains(c.Lookups, "api.example.com") {
		t.Errorf("touched are %v", c.Lookups)
	}
	if name, _ := s.v.Lookup("api.example.com"); name != pay {
		t.Errorf("it leads to %v", name)
	}
	if c := s.outside(pay, "b.example.com"); slices.Contains(c.Lookups, "b.example.com") || !slices.Contains(c.Lookups, "api.example.com") {
		t.Errorf("touched are %v", c.Lookups)
	}
	if _, ok := s.v.Lookup("api.example.com"); ok || len(s.v.byHost) != 1 {
		t.Errorf("left are %v", s.v.byHost)
	}
	// A look ahead leaves the view as it is.
	s.v.foresee([]policy.Difference{{Ref: policy.Ref{Kind: policy.KindEndpoint, Namespace: "default", Service: "pay", ID: "b.example.com"}, Action: policy.Removed}})
	if _, ok := s.v.Lookup("b.example.com"); !ok {
		t.Error("a look ahead took it away")
	}
}
