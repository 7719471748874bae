package controlplane

import (
	"net/netip"

	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// knowledge is what a call is explained by: what the proxies are told, and what
// they told of their circuits.
type knowledge struct {
	*view
	circuits func(service policy.ServiceName) []store.Circuit
}

// Explain implements api.Mesh.
func (p *plane) Explain(q *policy.Question) (*policy.Explanation, error) {
	return policy.Explain(q, &knowledge{view: p.view, circuits: p.reported})
}

// Addresses implements policy.Knowledge.
func (k *knowledge) Addresses(name policy.ServiceName) []netip.Addr {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.sourcesLocked(&policy.SecurityRule{SourceNamespace: name.Namespace, SourceService: name.Name})
}

// Circuits implements policy.Knowledge. One proxy of the caller is enough.
func (k *knowledge) Circuits(caller, service policy.ServiceName) map[string]string {
	out := map[string]string{}
	for _, c := range k.circuits(service) {
		switch {
		case c.Service != caller:
		case c.Ejected:
			out[c.Endpoint] = "left out by a proxy of the caller, for doing worse than the others"
		case c.State == "open":
			out[c.Endpoint] = "its circuit is open in a proxy of the caller"
		}
	}
	return out
}
