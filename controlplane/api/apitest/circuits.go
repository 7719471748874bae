package apitest

import (
	"context"
	"fmt"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// order is what was ordered of an endpoint's circuits.
type order struct {
	state string
	ttl   time.Duration
}

// Circuits implements api.Mesh. Each connected proxy has done what was ordered.
func (m *Mesh) Circuits(name policy.ServiceName) []api.EndpointCircuits {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.EndpointCircuits
	for _, e := range m.last().Endpoints(name) {
		o := m.orders[policy.Ref{Kind: policy.KindEndpoint, Namespace: name.Namespace, Service: name.Name, ID: e.ID}]
		c := api.EndpointCircuits{Namespace: name.Namespace, ServiceName: name.Name, ID: e.ID, Order: o.state, Until: o.ttl.Seconds(), Registered: true}
		for _, p := range m.proxies {
			state := map[string]string{policy.CircuitOpen: "open", policy.CircuitClose: "closed"}[o.state]
			if state != "" {
				c.Proxies = append(c.Proxies, api.ProxyCircuit{Proxy: p.ID, Namespace: p.Namespace, ServiceName: p.ServiceName, State: state, Since: 60, Ordered: true})
			}
		}
		out = append(out, c)
	}
	return out
}

// OrderCircuit implements api.Mesh.
func (m *Mesh) OrderCircuit(_ context.Context, name policy.ServiceName, id, state string, ttl time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ref := policy.Ref{Kind: policy.KindEndpoint, Namespace: name.Namespace, Service: name.Name, ID: id}
	if m.broken != nil {
		return m.broken
	}
	if m.last().values[ref].Value == nil {
		return fmt.Errorf("%s: %w", ref, policy.ErrNotFound)
	}
	if state == policy.CircuitReset {
		delete(m.orders, ref)
		return nil
	}
	if m.orders == nil {
		m.orders = map[policy.Ref]order{}
	}
	m.orders[ref] = order{state, ttl}
	return nil
}
