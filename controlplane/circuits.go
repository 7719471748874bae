package controlplane

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// OrderCircuit implements api.Mesh.
func (p *plane) OrderCircuit(ctx context.Context, name policy.ServiceName, id, order string, ttl time.Duration) error {
	return p.store.OrderCircuit(ctx, name, id, order, ttl)
}

// Circuits implements api.Mesh: what the proxies of all control planes reported.
// Those of the others are as of a few seconds ago, and a bounded number.
func (p *plane) Circuits(name policy.ServiceName) []api.EndpointCircuits {
	svc := p.store.State().Services.Get(name)
	if svc == nil {
		return nil
	}
	at := map[string]*api.EndpointCircuits{}
	of := func(id string) *api.EndpointCircuits {
		if at[id] == nil {
			o := svc.Circuits[id]
			at[id] = &api.EndpointCircuits{Namespace: name.Namespace, ServiceName: name.Name, ID: id, Order: o.State}
			if o.State != "" {
				at[id].Until = o.Until
			}
		}
		return at[id]
	}
	for i := range svc.Endpoints {
		of(svc.Endpoints[i].ID).Registered = true
	}
	for id, o := range svc.Circuits {
		if o.State != "" {
			of(id)
		}
	}
	for _, c := range p.reported(name) {
		if e := at[c.Endpoint]; e != nil {
			e.Proxies = append(e.Proxies, api.ProxyCircuit{
				Proxy: c.Proxy, Namespace: c.Service.Namespace, ServiceName: c.Service.Name, State: c.State,
				Failures: c.Failures, Since: c.Since, Ordered: c.Forced, Outlier: c.Ejected,
			})
		}
	}
	out := make([]api.EndpointCircuits, 0, len(at))
	for _, e := range at {
		slices.SortFunc(e.Proxies, func(a, b api.ProxyCircuit) int {
			return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ServiceName, b.ServiceName), strings.Compare(a.Proxy, b.Proxy))
		})
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b api.EndpointCircuits) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// reported lists the circuits of a service that proxies have something to tell
// of, here and elsewhere.
func (p *plane) reported(name policy.ServiceName) []store.Circuit {
	out := p.reportedHere(func(c *policy.CircuitState) bool { return c.Service == name }, math.MaxInt)
	self := p.cfg.name()
	for _, m := range p.store.KnownMembers() {
		if m.Name == self {
			continue
		}
		for _, c := range m.Circuits {
			if c.Target == name {
				out = append(out, c)
			}
		}
	}
	return out
}

// reportedHere lists at most so many of those that are wanted.
func (p *plane) reportedHere(wanted func(*policy.CircuitState) bool, most int) []store.Circuit {
	var out []store.Circuit
	known := p.pub.Proxies()
	for i := range known {
		for j := range known[i].Report.Circuits {
			c := &known[i].Report.Circuits[j]
			if !wanted(c) {
				continue
			}
			if len(out) == most {
				return out
			}
			out = append(out, store.Circuit{
				Proxy: known[i].ID, Service: known[i].Service, Target: c.Service, Endpoint: c.Endpoint, State: c.State,
				Failures: c.Failures, Since: unix(c.Since), Forced: c.Forced, Ejected: c.Ejected,
			})
		}
	}
	return out
}

// maxTold bounds what a control plane tells the others of circuits: where
// hundreds are open it is not the list that matters.
const maxTold = 64

// toldCircuits are those that are not closed, as far as the bound goes.
func (p *plane) toldCircuits() []store.Circuit {
	return p.reportedHere(func(c *policy.CircuitState) bool { return c.State != "closed" || c.Ejected }, maxTold)
}
