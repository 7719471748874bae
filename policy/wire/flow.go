package wire

import "github.com/weir-mesh/weir/policy"

func fromFlows(flows []policy.FlowCount) []*Flow {
	out := make([]*Flow, len(flows))
	for i := range flows {
		f := &flows[i]
		m := &Flow{
			Outbound: f.Direction == policy.FlowOutbound, PeerClass: f.SourceClass, Port: uint32(f.Port), Protocol: f.Protocol,
			Method: f.Method, Path: f.Path, Allowed: f.Allowed, Reason: string(f.Reason), Rule: f.Rule, Token: f.Token,
			Route: f.Route, Subset: f.Subset, Encryption: f.Encryption, Why: f.Why, Calls: f.Calls, Errors: f.Errors,
		}
		peer := f.Source
		if m.Outbound {
			peer = f.Destination
			m.Routed = FromName(f.Routed)
		}
		if peer != (policy.ServiceName{}) {
			m.Peer = FromName(peer)
		}
		out[i] = m
	}
	return out
}

const (
	// maxFlows bounds the flows that are taken from one report, and maxFlowText
	// each of their texts: a proxy that is not ours may send anything.
	maxFlows    = 1000
	maxFlowText = 400
)

// PolicyFlows converts what the proxy of a service reported of flows. What is not
// well formed is left out.
func (r *Report) PolicyFlows(of policy.ServiceName) []policy.FlowCount {
	reported := r.GetFlows()
	out := make([]policy.FlowCount, 0, min(len(reported), maxFlows))
	for _, m := range reported[:min(len(reported), maxFlows)] {
		if m.fits() {
			out = append(out, m.policy(of))
		}
	}
	return out
}

func (m *Flow) fits() bool {
	for _, s := range []string{m.GetPeerClass(), m.GetProtocol(), m.GetMethod(), m.GetPath(), m.GetReason(), m.GetRule(), m.GetRoute(), m.GetSubset(), m.GetEncryption(), m.GetWhy()} {
		if len(s) > maxFlowText {
			return false
		}
	}
	for _, n := range []*Name{m.GetPeer(), m.GetRouted()} {
		if n != nil && n.Policy().Validate() != nil {
			return false
		}
	}
	return m.GetPort() <= 65535 && m.GetCalls() > 0 && m.GetErrors() <= m.GetCalls() && (!m.GetOutbound() || m.GetPeer() != nil)
}

func (m *Flow) policy(of policy.ServiceName) policy.FlowCount {
	f := policy.Flow{
		Direction: policy.FlowInbound, SourceClass: m.GetPeerClass(), Destination: of, Port: uint16(m.GetPort()), Protocol: m.GetProtocol(),
		Method: m.GetMethod(), Path: m.GetPath(), Allowed: m.GetAllowed(), Reason: policy.Reason(m.GetReason()), Rule: m.GetRule(), Token: m.GetToken(),
		Route: m.GetRoute(), Subset: m.GetSubset(), Encryption: m.GetEncryption(), Why: m.GetWhy(),
	}
	if m.GetPeer() != nil {
		f.Source = m.GetPeer().Policy()
	}
	if m.GetOutbound() {
		f.Direction, f.Source, f.Destination = policy.FlowOutbound, of, f.Source
		f.Routed = m.GetRouted().Policy()
	}
	return policy.FlowCount{Flow: f, Calls: m.GetCalls(), Errors: m.GetErrors()}
}
