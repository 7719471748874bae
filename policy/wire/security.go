package wire

import (
	"fmt"
	"net/netip"

	"github.com/weir-mesh/weir/policy"
)

func fromSecurityRule(r *policy.InboundRule) *SecurityRule {
	m := &SecurityRule{
		Id: r.ID, Source: FromName(r.Source()), Destination: FromName(r.Destination()),
		AllowedMethods: r.AllowedMethods, RequiredJwt: r.RequiredJWT, MtlsMode: string(r.MTLSMode),
		Paths: r.Paths, Headers: r.Headers,
	}
	if r.Does() != policy.Allow {
		m.Action = string(r.Action)
	}
	from := r.From()
	if !r.Source().IsZero() {
		from = from[1:]
	}
	for _, n := range from {
		m.Sources = append(m.Sources, FromName(n))
	}
	for _, port := range r.Ports {
		m.Ports = append(m.Ports, uint32(port))
	}
	for name, values := range r.Claims {
		if m.Claims == nil {
			m.Claims = map[string]*ClaimValues{}
		}
		m.Claims[name] = &ClaimValues{Values: values}
	}
	if m.Action != "" || len(m.Sources)+len(m.Ports)+len(m.Paths)+len(m.Headers)+len(m.Claims) > 0 {
		m.AllowedMethods, m.Methods = nil, r.AllowedMethods
	}
	for _, a := range r.Addresses {
		m.Addresses = append(m.Addresses, a.AsSlice())
	}
	return m
}

func (m *SecurityRule) policy() policy.InboundRule {
	r := policy.InboundRule{SecurityRule: policy.SecurityRule{
		ID: m.GetId(), SourceNamespace: m.GetSource().GetNamespace(), SourceService: m.GetSource().GetName(),
		DestinationNamespace: m.GetDestination().GetNamespace(), DestinationService: m.GetDestination().GetName(),
		AllowedMethods: m.GetAllowedMethods(), RequiredJWT: m.GetRequiredJwt(), MTLSMode: policy.MTLSMode(m.GetMtlsMode()),
		Action: policy.RuleAction(m.GetAction()), Paths: m.GetPaths(), Headers: m.GetHeaders(),
	}}
	if len(m.GetMethods()) > 0 {
		r.AllowedMethods = m.GetMethods()
	}
	for _, n := range m.GetSources() {
		r.Sources = append(r.Sources, n.Policy().String())
	}
	for _, port := range m.GetPorts() {
		r.Ports = append(r.Ports, int(port))
	}
	for name, values := range m.GetClaims() {
		if r.Claims == nil {
			r.Claims = map[string][]string{}
		}
		r.Claims[name] = values.GetValues()
	}
	for _, b := range m.GetAddresses() {
		if a, ok := netip.AddrFromSlice(b); ok {
			r.Addresses = append(r.Addresses, a)
		}
	}
	return r
}

func fromPortModes(modes map[uint16]policy.MTLSMode) map[uint32]string {
	if len(modes) == 0 {
		return nil
	}
	out := make(map[uint32]string, len(modes))
	for port, m := range modes {
		out[uint32(port)] = string(m)
	}
	return out
}

func toPortModes(modes map[uint32]string) map[uint16]policy.MTLSMode {
	if len(modes) == 0 {
		return nil
	}
	out := make(map[uint16]policy.MTLSMode, len(modes))
	for port, m := range modes {
		out[uint16(port)] = policy.MTLSMode(m)
	}
	return out
}

func checkModes(mode policy.MTLSMode, ports map[uint16]policy.MTLSMode) error {
	switch mode {
	case policy.Strict, policy.Permissive, policy.Disabled:
	default:
		return fmt.Errorf("mtls_mode %q is not known", mode)
	}
	for port, m := range ports {
		if err := checkModes(m, nil); err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
	}
	return nil
}
