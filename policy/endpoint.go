package policy

import (
	"net/netip"
	"strings"
)

// Endpoint is one address at which a service answers, as registered and as
// listed by the API (seed B's ServiceEndpoint).
type Endpoint struct {
	ID              string            `json:"id"`
	ServiceName     string            `json:"service_name"`
	Namespace       string            `json:"namespace"`
	IP              string            `json:"ip"`
	Port            int               `json:"port"`
	Protocol        string            `json:"protocol"`
	HealthCheckPath string            `json:"health_check_path"`
	Weight          int               `json:"weight"`
	Labels          map[string]string `json:"labels"`
	// What this endpoint has of its own where others of its service differ: how
	// long its circuit stays open, in seconds, and how many requests it takes in
	// the mesh's window. Zero leaves the service's circuit in force, and no limit.
	CircuitTimeout float64 `json:"circuit_timeout,omitempty"`
	RateLimit      int     `json:"rate_limit,omitempty"`
	External               // in the place of IP

	Status   string  `json:"status"`
	LastSeen float64 `json:"last_seen"` // Unix seconds
}

// The two states of an endpoint.
const (
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
)

// Protocols an endpoint can declare. "http" is HTTP/1.1, read request by
// request; what is not HTTP there is refused, the app's own TLS excepted. The
// others are carried connection by connection. NormalProtocol knows more names
// for them.
var Protocols = []string{"http", "http2", "grpc", "tcp", "tls"}

// DefaultEndpoint holds what a registration may leave out.
func DefaultEndpoint() Endpoint {
	return Endpoint{Protocol: "http", HealthCheckPath: "/health", Weight: 100, Labels: map[string]string{}, Status: Healthy}
}

// Service names the service the endpoint is of.
func (e *Endpoint) Service() ServiceName { return ServiceName{e.Namespace, e.ServiceName} }

// Addr gives the endpoint's address; the zero value when it is not valid.
func (e *Endpoint) Addr() netip.AddrPort {
	ip, err := netip.ParseAddr(e.IP)
	if err != nil || e.Port < 1 || e.Port > 65535 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(e.Port))
}

// Subset is the endpoint's label "version", or else "subset".
func (e *Endpoint) Subset() string {
	if v, ok := e.Labels["version"]; ok {
		return v
	}
	return e.Labels["subset"]
}

// InSubset tells whether a rule's destination_subset picks the endpoint.
func (e *Endpoint) InSubset(subset string) bool {
	return subset == "" || e.Labels["version"] == subset || e.Labels["subset"] == subset
}

// Validate lists what is wrong with an endpoint.
func (e *Endpoint) Validate() Problems {
	var p Problems
	checkID(&p, "id", e.ID)
	p.addErr("service_name", checkLabel("service", e.ServiceName))
	p.addErr("namespace", checkLabel("namespace", e.Namespace))
	if e.Namespace == ControlPlane.Namespace {
		p.add("namespace", "%q is the control plane's own", e.Namespace)
	}
	e.External.validate(&p)
	ip, err := netip.ParseAddr(e.IP)
	switch {
	case e.Host != "":
		if e.IP != "" {
			p.add("ip", "%q stands beside the host %q: an endpoint has one of them", e.IP, e.Host)
		}
	case err != nil:
		p.add("ip", "%q is not an IP address", e.IP)
	case ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || IsVirtual(ip):
		p.add("ip", "%s cannot be an endpoint's address", e.IP)
	}
	p.intIn("port", e.Port, 1, 65535)
	p.oneOf("protocol", e.Protocol, Protocols...)
	if !strings.HasPrefix(e.HealthCheckPath, "/") || strings.ContainsAny(e.HealthCheckPath, " \t\r\n") {
		p.add("health_check_path", "%q is not a path that starts with /", e.HealthCheckPath)
	}
	p.intIn("weight", e.Weight, 0, 1_000_000)
	checkLabels(&p, "labels", e.Labels)
	if e.CircuitTimeout != 0 {
		p.secondsIn("circuit_timeout", e.CircuitTimeout, 0.001)
	}
	if e.RateLimit != 0 {
		p.intIn("rate_limit", e.RateLimit, 1, maxLimit)
	}
	if e.Status != "" {
		p.oneOf("status", e.Status, Healthy, Unhealthy)
	}
	return p
}

// checkID accepts what fits into a path segment of the API and a key of the
// store without escaping.
func checkID(p *Problems, path, id string) {
	if id == "" || len(id) > 253 {
		p.add(path, "must have 1 to 253 characters")
		return
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("/?#%\"\\", c) >= 0 {
			p.add(path, "%q holds a character that an id cannot have", id)
			return
		}
	}
}

func checkLabels(p *Problems, path string, labels map[string]string) {
	if len(labels) > 64 {
		p.add(path, "%d labels are more than 64", len(labels))
	}
	for k, v := range labels {
		if k == "" || len(k) > 253 || len(v) > 253 || hasControl(k) || hasControl(v) {
			p.add(join(path, k), "key and value must be plain text of at most 253 characters, the key not empty")
		}
	}
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
