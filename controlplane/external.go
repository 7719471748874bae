package controlplane

import (
	"slices"

	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// hostsLocked takes over the names of a service's endpoints outside the mesh, and
// notes the lookups that this touches. A name of two services leads to the same
// one everywhere: the first.
func (v *view) hostsLocked(old, now *store.Service, lookups map[string]struct{}) {
	before, after := hostsOf(old), hostsOf(now)
	for host := range after {
		if before[host] {
			continue
		}
		lookups[host] = struct{}{}
		owners := slices.Clone(v.byHost[host])
		i, found := slices.BinarySearchFunc(owners, now.Name, compareNames)
		if !found {
			v.byHost[host] = slices.Insert(owners, i, now.Name)
		}
	}
	for host := range before {
		if after[host] {
			continue
		}
		lookups[host] = struct{}{}
		owners := slices.DeleteFunc(slices.Clone(v.byHost[host]), func(n policy.ServiceName) bool { return n == old.Name })
		if v.byHost[host] = owners; len(owners) == 0 {
			delete(v.byHost, host)
		}
	}
}

// hostsOf gives nil for most services.
func hostsOf(s *store.Service) map[string]bool {
	var out map[string]bool
	for i := range s.Endpoints {
		if host := s.Endpoints[i].Host; host != "" {
			if out == nil {
				out = map[string]bool{}
			}
			out[host] = true
		}
	}
	return out
}
