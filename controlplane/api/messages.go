package api

import "github.com/weir-mesh/weir/policy"

// ServiceSummary is a service as GET /services lists it.
type ServiceSummary struct {
	Namespace        string `json:"namespace"`
	ServiceName      string `json:"service_name"`
	VirtualIPv4      string `json:"virtual_ipv4" doc:"the address that the mesh's DNS gives for the service"`
	VirtualIPv6      string `json:"virtual_ipv6"`
	Endpoints        int    `json:"endpoints"`
	HealthyEndpoints int    `json:"healthy_endpoints"`
	TrafficRules     int    `json:"traffic_rules"`
}

// Service names the service.
func (s *ServiceSummary) Service() policy.ServiceName {
	return policy.ServiceName{Namespace: s.Namespace, Name: s.ServiceName}
}

// ProxyName names a connected proxy.
type ProxyName struct {
	ID          string `json:"id"`
	Namespace   string `json:"namespace"`
	ServiceName string `json:"service_name"`
}

// ProxyStatus is a connected proxy as GET /proxies lists it.
type ProxyStatus struct {
	ID          string          `json:"id"`
	Namespace   string          `json:"namespace"`
	ServiceName string          `json:"service_name"`
	Version     string          `json:"version"`
	Control     string          `json:"control,omitempty" doc:"the control plane it is attached to; what it took and counted is told in full by that one only"`
	Addresses   []string        `json:"addresses" doc:"the addresses that the proxy is beside" nullable:"false"`
	ConnectedAt float64         `json:"connected_at" doc:"Unix seconds"`
	Subscribed  int             `json:"subscribed" doc:"resources the proxy follows"`
	Resources   []ResourceState `json:"resources" nullable:"false"`

	State              string  `json:"state" enum:"current,behind,refusing,elsewhere,away" doc:"current: it has taken all it asked for; refusing: it keeps what it had, resources say why; elsewhere: it is connected to another control plane; away: it was connected here and its lease has not ended"`
	LastSeen           float64 `json:"last_seen" doc:"Unix seconds; 0 where it is away"`
	ConnectedTo        string  `json:"connected_to" doc:"the control plane's address, as the proxy was told it"`
	MemoryBytes        uint64  `json:"memory_bytes" doc:"resident; 0 where it is not known"`
	CertificateExpires float64 `json:"certificate_expires" doc:"Unix seconds; 0 where it is not known"`

	ClockSkew         *float64 `json:"clock_skew,omitempty" required:"false" doc:"seconds that the proxy's clock is ahead of the control plane's; negative is behind; absent where it is not known"`
	CertificateBegins float64  `json:"certificate_begins" doc:"Unix seconds; 0 where it is not known"`
	CertificateSerial string   `json:"certificate_serial" doc:"hexadecimal; empty where it is not known"`

	InboundRequests      uint64  `json:"inbound_requests"`
	OutboundRequests     uint64  `json:"outbound_requests"`
	RequestErrors        uint64  `json:"request_errors"`
	RequestDurationTotal float64 `json:"request_duration_total" doc:"seconds"`
	CircuitBreakerOpens  uint64  `json:"circuit_breaker_opens"`
}

// The states of a proxy.
const (
	Current   = "current"
	Behind    = "behind"
	Refusing  = "refusing"
	Elsewhere = "elsewhere"
	Away      = "away"
)

// SetFigures fills in what the proxy reported of its traffic.
func (p *ProxyStatus) SetFigures(f policy.Figures) {
	p.InboundRequests, p.OutboundRequests = f.InboundRequests, f.OutboundRequests
	p.RequestErrors, p.RequestDurationTotal = f.RequestErrors, f.RequestDurationTotal
	p.CircuitBreakerOpens = f.CircuitBreakerOpens
}

// ResourceState tells how far a proxy has followed the resources of one type.
type ResourceState struct {
	Type    string `json:"type" doc:"Mesh, Service, Inbound or Lookup"`
	Version string `json:"version" doc:"the newest that the proxy took"`
	Refused string `json:"refused" doc:"why the proxy refused the last one sent; empty when it took it"`
}

// Certificate is what POST /certificates/issue answers, all of it PEM.
type Certificate struct {
	PrivateKey    string `json:"private_key,omitempty" doc:"PKCS #8; absent when a csr was given"`
	Certificate   string `json:"certificate" doc:"leaf first"`
	CACertificate string `json:"ca_certificate"`
}

// Metrics is what GET /metrics answers.
type Metrics struct {
	Registry     RegistryMetrics     `json:"registry"`
	LoadBalancer LoadBalancerMetrics `json:"load_balancer"`
	Proxies      ProxyMetrics        `json:"proxies"`
	API          APIMetrics          `json:"api"`
	Control      *ControlMetrics     `json:"control,omitempty"`
}

// APIMetrics counts what happened to the API of this control plane.
type APIMetrics struct {
	Watches int          `json:"watches" doc:"open now"`
	Refused RefusedCalls `json:"refused"`
}

// RefusedCalls counts calls that were refused before they were looked at.
type RefusedCalls struct {
	MissingToken     uint64 `json:"missing_token"`
	WrongToken       uint64 `json:"wrong_token"`
	ProxyCertificate uint64 `json:"proxy_certificate" doc:"a workload's certificate in the place of a token"`
	OtherSite        uint64 `json:"other_site" doc:"a browser's, from another site"`
}

// RegistryMetrics counts what is registered.
type RegistryMetrics struct {
	TotalServices      int `json:"total_services"`
	HealthyEndpoints   int `json:"healthy_endpoints"`
	UnhealthyEndpoints int `json:"unhealthy_endpoints"`
	TrafficRules       int `json:"traffic_rules"`
	SecurityRules      int `json:"security_rules"`
}

// LoadBalancerMetrics sums what the connected proxies routed.
type LoadBalancerMetrics struct {
	RequestsRouted  uint64 `json:"requests_routed"`
	RoutingFailures uint64 `json:"routing_failures"`
	BackendFailures uint64 `json:"backend_failures"`
}

// ProxyMetrics sums what the connected proxies served.
type ProxyMetrics struct {
	TotalProxies          int    `json:"total_proxies"`
	TotalInboundRequests  uint64 `json:"total_inbound_requests"`
	TotalOutboundRequests uint64 `json:"total_outbound_requests"`
	TotalRequestErrors    uint64 `json:"total_request_errors"`
}

// Status is what GET /status answers.
type Status struct {
	Status   string  `json:"status"`
	Services int     `json:"services"`
	Proxies  int     `json:"proxies"`
	Uptime   float64 `json:"uptime" doc:"seconds since the control plane started"`
	Version  string  `json:"version"`

	Leader  string   `json:"leader,omitempty" doc:"the control plane that checks health; absent while none is known"`
	Members []Member `json:"members,omitempty" doc:"the control planes that share the store"`
	Trouble string   `json:"trouble,omitempty" doc:"why status is degraded: what keeps the store from being read or followed"`

	ConfigFile *ConfigFile `json:"config_file,omitempty" doc:"the mesh file; absent where there is none"`
}

// Member is a control plane as GET /status lists it.
type Member struct {
	Name    string  `json:"name"`
	Address string  `json:"address" doc:"where proxies find it"`
	Version string  `json:"version"`
	Since   float64 `json:"since" doc:"Unix seconds: when it started"`
	Proxies int     `json:"proxies" doc:"that are attached to it"`
	Leader  bool    `json:"leader"`
}

// ControlMetrics counts what this control plane itself does.
type ControlMetrics struct {
	Name         string            `json:"name" doc:"of the control plane that answers"`
	Leading      bool              `json:"leading" doc:"it is the one that checks health"`
	Members      int               `json:"members" doc:"control planes that share the store"`
	StoreAway    float64           `json:"store_away" doc:"seconds for which the store could not be followed; 0 when it is"`
	RefusedJoins map[string]uint64 `json:"refused_joins" doc:"certificates that were asked for and refused since the start, by reason" nullable:"false"`
	Certificates []Certified       `json:"certificates" doc:"when they end; of the leaves of the proxies that are attached here the one that ends first" nullable:"false"`
	Revocations  int               `json:"revocations" doc:"that hold"`
	RefusedFiles uint64            `json:"refused_files" doc:"changes of the files of --ca-cert that were refused"`
}

// ConfigFile is how the mesh file stands (weir control --config).
type ConfigFile struct {
	Path       string   `json:"path"`
	State      string   `json:"state" doc:"applied: it is in force; refused: its newest content is not valid, what was in force stays; failing: the store does not take it; waiting: another control plane applies its own file; kept: this control plane follows none, what another applied is in force"`
	Digest     string   `json:"digest" doc:"of the content in force"`
	AppliedAt  float64  `json:"applied_at" doc:"Unix seconds"`
	AppliedBy  string   `json:"applied_by" doc:"the host of the control plane that did"`
	Errors     []string `json:"errors,omitempty" nullable:"false" doc:"file:line:column: key: what is wrong"`
	Warnings   []string `json:"warnings,omitempty" nullable:"false"`
	Unresolved []string `json:"unresolved,omitempty" nullable:"false" doc:"instances whose host names lead nowhere now"`
}
