package controlplane

import (
	"net/netip"
	"strings"

	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// Mesh implements publish.Source.
func (v *view) Mesh() policy.Mesh {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := &v.state.Settings
	o := &s.Observability
	signs := ""
	if v.signingRoot != nil {
		signs = v.signingRoot()
	}
	return policy.Mesh{
		Revocations: v.state.Revoked, SigningRoot: signs,
		TrustDomain: v.trustDomain, EgressDeny: s.Egress == "deny", AccessLog: o.AccessLogging,
		Metrics: o.Metrics.Enabled, Tracing: o.Tracing.Enabled, Bundle: v.bundle(),
		MetricsPath: o.Metrics.Path, MetricsInterval: duration(o.Metrics.Interval),
		LogLevel: logLevel(o.Logging.Level), LogFormat: o.Logging.Format, LogOutput: o.Logging.Output,
	}
}

// logLevel gives a level of the settings, which are in the spelling of Python's
// logging in seed A, as zap calls it.
func logLevel(s string) string {
	s = strings.ToLower(s)
	if s == "warning" {
		return "warn"
	}
	return s
}

// Service implements publish.Source.
func (v *view) Service(name policy.ServiceName) (*policy.Service, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := v.state.Services.Get(name)
	if s == nil {
		return nil, false
	}
	out := &policy.Service{Name: name, Traffic: v.state.Settings.TrafficFor(name)}
	modes := v.callersModesLocked(name)
	out.Traffic.MTLS, out.Traffic.PortModes = modes.MTLS, modes.PortModes
	out.Rules = policy.WithWindows(s.Rules, duration(v.state.Settings.Security.RateLimiting.Window))
	out.Virtual4, out.Virtual6, _ = policy.VirtualAddrs(s.VirtualIndex)
	declared := addressesInFile(s)
	for i := range s.Endpoints {
		// An instance that its own proxy registers too is one endpoint, not two: the
		// file's, which says how it is to be treated.
		if e := &s.Endpoints[i]; e.ProxyID == "" || !declared[e.Addr()] {
			t := v.targetLocked(e)
			t.Circuit = s.Circuits[e.ID].CircuitOrder
			out.Endpoints = append(out.Endpoints, t)
		}
	}
	for i := range v.state.Security {
		r := &v.state.Security[i]
		if r.AppliesTo(name) && v.plaintextLocked(r) {
			out.Traffic.PlaintextFrom = append(out.Traffic.PlaintextFrom, r.From()...)
		}
	}
	return out, true
}

// addressesInFile are where a mesh file has a service's endpoints; nil where it has
// none.
func addressesInFile(s *store.Service) map[netip.AddrPort]bool {
	var out map[netip.AddrPort]bool
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; e.File {
			if out == nil {
				out = map[netip.AddrPort]bool{}
			}
			out[e.Addr()] = true
		}
	}
	return out
}

func (v *view) targetLocked(e *store.Endpoint) policy.Target {
	t := policy.Target{Endpoint: e.Endpoint, Meshed: e.Meshed || v.meshed[e.Addr().Addr()]}
	if e.RateLimit > 0 {
		t.Limit = policy.RateLimit{Limit: e.RateLimit, Window: duration(v.state.Settings.Security.RateLimiting.Window)}
	}
	t.LastSeen = 0 // not for proxies: it would make every check a change
	return t
}

// Inbound implements publish.Source.
func (v *view) Inbound(name policy.ServiceName) policy.Inbound {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := &v.state.Settings
	modes := v.receiversModesLocked(name)
	in := policy.Inbound{Service: name, MTLS: modes.MTLS, PortModes: modes.PortModes, DefaultAllow: s.AllowsByDefault(name.Namespace)}
	needsSecret := false
	for i := range v.state.Security {
		if r := &v.state.Security[i]; r.AppliesTo(name) {
			needsSecret = needsSecret || r.RequiredJWT || len(r.Claims) > 0
			rule := policy.InboundRule{SecurityRule: *r}
			rule.MTLSMode = v.ruleModeLocked(r, name)
			in.Rules = append(in.Rules, rule)
		}
	}
	for i := range in.Rules {
		if r := &in.Rules[i]; in.NeedsAddresses(&r.SecurityRule) {
			r.Addresses = v.sourcesLocked(&r.SecurityRule)
		}
	}
	if v.inboundLimitsLocked(&in) || needsSecret {
		in.JWTSecret, in.JWT = s.Security.JWTSecret, s.Security.JWT
	}
	return in
}
