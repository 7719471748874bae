package apitest

import (
	"net/netip"

	"github.com/weir-mesh/weir/policy"
)

// Explain implements api.Mesh. Every endpoint has a proxy beside it.
func (m *Mesh) Explain(q *policy.Question) (*policy.Explanation, error) {
	return policy.Explain(q, knowledge{m})
}

type knowledge struct{ *Mesh }

// Service implements policy.Knowledge.
func (m knowledge) Service(name policy.ServiceName) (*policy.Service, bool) {
	now := m.Snapshot()
	settings := now.Settings().Value
	svc := &policy.Service{Name: name, Traffic: settings.TrafficFor(name)}
	for _, e := range now.Endpoints(name) {
		svc.Endpoints = append(svc.Endpoints, policy.Target{Endpoint: e.Endpoint, Meshed: true})
	}
	for _, r := range now.TrafficRules(name) {
		svc.Rules = append(svc.Rules, r.Value)
	}
	return svc, len(svc.Endpoints)+len(svc.Rules) > 0
}

// Inbound implements policy.Knowledge.
func (m knowledge) Inbound(name policy.ServiceName) policy.Inbound {
	now := m.Snapshot()
	settings := now.Settings().Value
	modes := settings.ModesFor(name)
	in := policy.Inbound{Service: name, MTLS: modes.MTLS, PortModes: modes.PortModes, DefaultAllow: settings.AllowsByDefault(name.Namespace)}
	for _, r := range now.SecurityRules() {
		if r.Value.AppliesTo(name) {
			in.Rules = append(in.Rules, policy.InboundRule{SecurityRule: r.Value})
		}
	}
	return in
}

// Addresses implements policy.Knowledge.
func (m knowledge) Addresses(policy.ServiceName) []netip.Addr { return nil }

// Circuits implements policy.Knowledge.
func (m knowledge) Circuits(_, _ policy.ServiceName) map[string]string { return nil }
