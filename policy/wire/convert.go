package wire

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weir-mesh/weir/policy"
)

// The type URLs of the resources on the delta discovery stream, and the name of
// the one Mesh resource.
const (
	MeshType    = "type.googleapis.com/weir.v1.Mesh"
	ServiceType = "type.googleapis.com/weir.v1.Service"
	InboundType = "type.googleapis.com/weir.v1.Inbound"
	LookupType  = "type.googleapis.com/weir.v1.Lookup"
	MeshName    = "mesh"
)

// FromName converts a service name.
func FromName(n policy.ServiceName) *Name { return &Name{Namespace: n.Namespace, Name: n.Name} }

// Policy converts back; nil gives the zero name.
func (n *Name) Policy() policy.ServiceName {
	return policy.ServiceName{Namespace: n.GetNamespace(), Name: n.GetName()}
}

// FromMesh converts the mesh's settings.
func FromMesh(m policy.Mesh) *Mesh {
	return &Mesh{
		TrustDomain: m.TrustDomain, EgressDeny: m.EgressDeny, AccessLog: m.AccessLog,
		Metrics: m.Metrics, Tracing: m.Tracing, Bundle: m.Bundle,
		MetricsPath: m.MetricsPath, MetricsInterval: durationpb.New(m.MetricsInterval),
		LogLevel: m.LogLevel, LogFormat: m.LogFormat, LogOutput: m.LogOutput,
		Revocations: fromRevocations(m.Revocations), SigningRoot: m.SigningRoot,
	}
}

// Policy converts back and checks.
func (m *Mesh) Policy() (policy.Mesh, error) {
	if m.GetTrustDomain() == "" {
		return policy.Mesh{}, fmt.Errorf("mesh: no trust domain")
	}
	revocations, err := revocationsOf(m.GetRevocations())
	if err != nil {
		return policy.Mesh{}, fmt.Errorf("mesh: %w", err)
	}
	return policy.Mesh{
		TrustDomain: m.GetTrustDomain(), EgressDeny: m.GetEgressDeny(), AccessLog: m.GetAccessLog(),
		Metrics: m.GetMetrics(), Tracing: m.GetTracing(), Bundle: m.GetBundle(),
		MetricsPath: m.GetMetricsPath(), MetricsInterval: duration(m.GetMetricsInterval()),
		LogLevel: m.GetLogLevel(), LogFormat: m.GetLogFormat(), LogOutput: m.GetLogOutput(),
		Revocations: revocations, SigningRoot: m.GetSigningRoot(),
	}, nil
}

// FromEndpoint converts an endpoint as callers see it.
func FromEndpoint(t policy.Target) *Endpoint {
	addr := t.Addr()
	e := &Endpoint{
		Id: t.ID, Ip: addr.Addr().AsSlice(), Port: uint32(addr.Port()), Protocol: t.Protocol,
		Weight: uint32(max(t.Weight, 0)), Labels: t.Labels, Healthy: t.Status != policy.Unhealthy, Meshed: t.Meshed,
		HealthCheckPath: t.HealthCheckPath,
	}
	if t.CircuitTimeout > 0 {
		e.CircuitTimeout = durationpb.New(time.Duration(t.CircuitTimeout * float64(time.Second)))
	}
	if t.Limit.Limit > 0 {
		e.RateLimit = fromRateLimit(t.Limit)
	}
	e.Circuit = fromOrder(t.Circuit)
	if t.Host != "" {
		e.Port = uint32(max(t.Port, 0))
		e.External = &External{Host: t.Host, Tls: t.TLS, ServerName: t.ServerName, Ca: t.CA}
	}
	return e
}

// Policy converts back; service names the service the endpoint is of.
func (e *Endpoint) Policy(service policy.ServiceName) policy.Target {
	t := policy.Target{Meshed: e.GetMeshed(), Endpoint: policy.Endpoint{
		ID: e.GetId(), Namespace: service.Namespace, ServiceName: service.Name,
		Port: int(e.GetPort()), Protocol: e.GetProtocol(), Weight: int(e.GetWeight()),
		Labels: e.GetLabels(), Status: policy.Healthy, HealthCheckPath: e.GetHealthCheckPath(),
		CircuitTimeout: duration(e.GetCircuitTimeout()).Seconds(), RateLimit: int(e.GetRateLimit().GetLimit()),
		External: policy.External{
			Host: e.GetExternal().GetHost(), TLS: e.GetExternal().GetTls(),
			ServerName: e.GetExternal().GetServerName(), CA: e.GetExternal().GetCa(),
		},
	}, Limit: e.GetRateLimit().policy(), Circuit: e.GetCircuit().policy()}
	if ip, ok := netip.AddrFromSlice(e.GetIp()); ok {
		t.IP = ip.String()
	}
	if !e.GetHealthy() {
		t.Status = policy.Unhealthy
	}
	return t
}

// FromService converts what callers need to know of a service.
func FromService(s *policy.Service) *Service {
	out := &Service{Name: FromName(s.Name), VirtualIpv4: s.Virtual4.AsSlice(), VirtualIpv6: s.Virtual6.AsSlice(), Traffic: fromTraffic(&s.Traffic)}
	for _, t := range s.Endpoints {
		out.Endpoints = append(out.Endpoints, FromEndpoint(t))
	}
	for i := range s.Rules {
		out.Rules = append(out.Rules, fromTrafficRule(&s.Rules[i]))
	}
	return out
}

// Policy converts back and checks; the error names what is wrong.
func (s *Service) Policy() (*policy.Service, error) {
	out := &policy.Service{Name: s.GetName().Policy(), Traffic: s.GetTraffic().policy()}
	if err := out.Name.Validate(); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	out.Virtual4, _ = netip.AddrFromSlice(s.GetVirtualIpv4())
	out.Virtual6, _ = netip.AddrFromSlice(s.GetVirtualIpv6())
	for _, e := range s.GetEndpoints() {
		t := e.Policy(out.Name)
		if p := t.Validate(); len(p) > 0 {
			return nil, fmt.Errorf("service %s: endpoint %q: %w", out.Name, e.GetId(), p)
		}
		out.Endpoints = append(out.Endpoints, t)
	}
	for _, r := range s.GetRules() {
		rule := r.policy()
		if p := rule.Validate(); len(p) > 0 {
			return nil, fmt.Errorf("service %s: traffic rule %q: %w", out.Name, r.GetId(), p)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out, nil
}

func fromTrafficRule(r *policy.TrafficRule) *TrafficRule {
	out := &TrafficRule{
		Id: r.ID, MatchHeaders: r.MatchHeaders, MatchPath: r.MatchPath, MatchMethod: r.MatchMethod,
		DestinationService: r.DestinationService, DestinationSubset: r.DestinationSubset,
		Weight: uint32(max(r.Weight, 0)), TimeoutSeconds: r.Timeout, RetryAttempts: uint32(max(r.RetryAttempts, 0)),
		CircuitBreaker: r.CircuitBreaker, MatchHost: r.MatchHost, MatchQuery: r.MatchQuery, RateLimit: fromRuleLimit(r),
	}
	out.handle(&r.Handling)
	return out
}

func (r *TrafficRule) policy() policy.TrafficRule {
	return policy.TrafficRule{
		ID: r.GetId(), MatchHeaders: r.GetMatchHeaders(), MatchPath: r.GetMatchPath(), MatchMethod: r.GetMatchMethod(),
		DestinationService: r.GetDestinationService(), DestinationSubset: r.GetDestinationSubset(),
		Weight: int(r.GetWeight()), Timeout: r.GetTimeoutSeconds(), RetryAttempts: int(r.GetRetryAttempts()),
		CircuitBreaker: r.GetCircuitBreaker(), MatchHost: r.GetMatchHost(), MatchQuery: r.GetMatchQuery(), Handling: r.handling(),
		RateLimit: r.GetRateLimit().rule(),
	}
}

func fromTraffic(t *policy.Traffic) *Traffic {
	out := &Traffic{
		Strategy: t.Strategy, HashKey: t.HashKey, Timeout: durationpb.New(t.Timeout),
		RetryAttempts: uint32(max(t.Retry.Attempts, 0)), RetryDelay: durationpb.New(t.Retry.Delay),
		Breaker: t.Breaker.Enabled, BreakerThreshold: uint32(max(t.Breaker.Threshold, 0)), BreakerTimeout: durationpb.New(t.Breaker.Timeout),
		RateLimit: fromRateLimit(t.RateLimit), MtlsMode: string(t.MTLS),
		Balancing: fromBalancing(t.Balancing), Outliers: fromOutliers(t.Outliers), Overload: fromOverload(t.Overload),
		Affinity:   fromAffinity(t.Affinity),
		RateLimits: fromRateLimits(t.RateLimits),
		PortModes:  fromPortModes(t.PortModes),
	}
	for _, n := range t.PlaintextFrom {
		out.PlaintextFrom = append(out.PlaintextFrom, FromName(n))
	}
	return out
}

func (t *Traffic) policy() policy.Traffic {
	out := policy.Traffic{
		Strategy: t.GetStrategy(), HashKey: t.GetHashKey(), Timeout: duration(t.GetTimeout()),
		Retry:     policy.Retry{Attempts: int(t.GetRetryAttempts()), Delay: duration(t.GetRetryDelay())},
		Breaker:   policy.Breaker{Enabled: t.GetBreaker(), Threshold: int(t.GetBreakerThreshold()), Timeout: duration(t.GetBreakerTimeout())},
		RateLimit: t.GetRateLimit().policy(), MTLS: policy.MTLSMode(t.GetMtlsMode()),
		Balancing: t.GetBalancing().policy(), Outliers: t.GetOutliers().policy(), Overload: t.GetOverload().policy(),
		Affinity:   t.GetAffinity().policy(),
		RateLimits: toRateLimits(t.GetRateLimits()),
		PortModes:  toPortModes(t.GetPortModes()),
	}
	for _, n := range t.GetPlaintextFrom() {
		out.PlaintextFrom = append(out.PlaintextFrom, n.Policy())
	}
	return out
}

func duration(d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.AsDuration()
}

// FromInbound converts what a proxy enforces on calls to its service.
func FromInbound(in *policy.Inbound) *Inbound {
	out := &Inbound{
		Name: FromName(in.Service), MtlsMode: string(in.MTLS), DefaultAllow: in.DefaultAllow,
		JwtSecret: in.JWTSecret, JwtIssuers: fromIssuers(in.JWT.Issuers), JwtLeewaySeconds: &in.JWT.Leeway, RateLimit: fromRateLimit(in.RateLimit), RateLimits: fromRateLimits(in.RateLimits),
		PortModes: fromPortModes(in.PortModes),
	}
	for i := range in.Routes {
		out.Routes = append(out.Routes, fromTrafficRule(&in.Routes[i]))
	}
	for i := range in.Rules {
		out.Rules = append(out.Rules, fromSecurityRule(&in.Rules[i]))
	}
	return out
}

// Policy converts back and checks; the error names what is wrong.
func (in *Inbound) Policy() (policy.Inbound, error) {
	out := policy.Inbound{
		Service: in.GetName().Policy(), MTLS: policy.MTLSMode(in.GetMtlsMode()), DefaultAllow: in.GetDefaultAllow(),
		JWTSecret: in.GetJwtSecret(), JWT: in.policyJWT(), RateLimit: in.GetRateLimit().policy(), RateLimits: toRateLimits(in.GetRateLimits()),
		PortModes: toPortModes(in.GetPortModes()),
	}
	for _, m := range in.GetRoutes() {
		rule := m.policy()
		if p := rule.Validate(); len(p) > 0 {
			return policy.Inbound{}, fmt.Errorf("inbound %s: traffic rule %q: %w", out.Service, rule.ID, p)
		}
		out.Routes = append(out.Routes, rule)
	}
	if err := checkModes(out.MTLS, out.PortModes); err != nil {
		return policy.Inbound{}, fmt.Errorf("inbound %s: %w", out.Service, err)
	}
	for _, m := range in.GetRules() {
		r := m.policy()
		if p := r.Validate(); len(p) > 0 {
			return policy.Inbound{}, fmt.Errorf("inbound %s: security rule %q: %w", out.Service, m.GetId(), p)
		}
		out.Rules = append(out.Rules, r)
	}
	return out, nil
}

// FromReport converts a proxy's report.
func FromReport(r policy.Report) *Report {
	out := &Report{ResidentBytes: r.ResidentBytes, Control: r.Control, Circuits: fromCircuits(r.Circuits), CircuitsLeftOut: uint32(max(r.CircuitsLeftOut, 0))}
	out.Flows, out.FlowsLeftOut = fromFlows(r.Flows), r.FlowsLeftOut
	if !r.CertificateExpires.IsZero() {
		out.CertificateExpires = r.CertificateExpires.Unix()
	}
	if !r.Clock.IsZero() {
		out.Clock = r.Clock.UnixMilli()
	}
	fromCertificate(out, &r)
	return out
}

// Policy converts back.
func (r *Report) Policy() policy.Report {
	out := policy.Report{ResidentBytes: r.GetResidentBytes(), Control: r.GetControl(), Circuits: circuitsOf(r.GetCircuits()), CircuitsLeftOut: int(r.GetCircuitsLeftOut())}
	if s := r.GetCertificateExpires(); s != 0 {
		out.CertificateExpires = time.Unix(s, 0)
	}
	if ms := r.GetClock(); ms != 0 {
		out.Clock = time.UnixMilli(ms)
	}
	r.certificate(&out)
	return out
}

// FromFigures converts a proxy's figures.
func FromFigures(f policy.Figures) *Figures {
	return &Figures{
		InboundRequests: f.InboundRequests, OutboundRequests: f.OutboundRequests, RequestErrors: f.RequestErrors,
		RequestDurationTotal: f.RequestDurationTotal, CircuitBreakerOpens: f.CircuitBreakerOpens,
		RequestsRouted: f.RequestsRouted, RoutingFailures: f.RoutingFailures, BackendFailures: f.BackendFailures,
	}
}

// Policy converts back.
func (f *Figures) Policy() policy.Figures {
	return policy.Figures{
		InboundRequests: f.GetInboundRequests(), OutboundRequests: f.GetOutboundRequests(), RequestErrors: f.GetRequestErrors(),
		RequestDurationTotal: f.GetRequestDurationTotal(), CircuitBreakerOpens: f.GetCircuitBreakerOpens(),
		RequestsRouted: f.GetRequestsRouted(), RoutingFailures: f.GetRoutingFailures(), BackendFailures: f.GetBackendFailures(),
	}
}
