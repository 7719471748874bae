package api

import "github.com/weir-mesh/weir/policy"

// Optional fields are pointers: what is left out, or null, takes its default,
// and an explicit 0 stays a 0.

type endpointBody struct {
	ID              string            `json:"id" doc:"unique within the service" example:"user-service-1"`
	ServiceName     string            `json:"service_name" example:"user-service"`
	Namespace       string            `json:"namespace" example:"default"`
	IP              *string           `json:"ip,omitempty" required:"false" doc:"left out where there is a host" example:"10.0.1.10"`
	Port            int               `json:"port" example:"8001"`
	Protocol        *string           `json:"protocol" required:"false"`
	HealthCheckPath *string           `json:"health_check_path" required:"false"`
	Weight          *int              `json:"weight" required:"false"`
	Labels          map[string]string `json:"labels" required:"false" nullable:"true" doc:"\"version\" (or \"subset\") is what destination_subset picks by"`
	Host            *string           `json:"host,omitempty" required:"false" doc:"in the place of ip: a name outside the mesh, which the callers' proxies look up" example:"api.example.com"`
	TLS             *string           `json:"tls,omitempty" required:"false" doc:"originate: the callers' proxies speak TLS to it"`
	ServerName      *string           `json:"server_name,omitempty" required:"false" doc:"in its certificate; left out, host"`
	CA              *string           `json:"ca,omitempty" required:"false" doc:"PEM, whom to trust; left out, the system's roots of the proxies"`
}

func (b *endpointBody) endpoint() policy.Endpoint {
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.Port = b.ID, b.ServiceName, b.Namespace, b.Port
	override(&e.IP, b.IP)
	e.External = external(b.Host, b.TLS, b.ServerName, b.CA)
	override(&e.Protocol, b.Protocol)
	e.Protocol = policy.NormalProtocol(e.Protocol)
	override(&e.HealthCheckPath, b.HealthCheckPath)
	override(&e.Weight, b.Weight)
	if b.Labels != nil {
		e.Labels = b.Labels
	}
	return e
}

func newEndpointBody(e *policy.Endpoint) endpointBody {
	return endpointBody{
		ID: e.ID, ServiceName: e.ServiceName, Namespace: e.Namespace, IP: given(e.IP), Port: e.Port,
		Host: given(e.Host), TLS: given(e.TLS), ServerName: given(e.ServerName), CA: given(e.CA),
		Protocol: given(e.Protocol), HealthCheckPath: given(e.HealthCheckPath), Weight: &e.Weight, Labels: e.Labels,
	}
}

// endpointPutBody is a registration whose path names the endpoint.
type endpointPutBody struct {
	ID              *string           `json:"id" required:"false" doc:"as in the path"`
	ServiceName     *string           `json:"service_name" required:"false" doc:"as in the path"`
	Namespace       *string           `json:"namespace" required:"false" doc:"as in the path"`
	IP              *string           `json:"ip,omitempty" required:"false" doc:"left out where there is a host" example:"10.0.1.10"`
	Port            int               `json:"port" example:"8001"`
	Protocol        *string           `json:"protocol" required:"false"`
	HealthCheckPath *string           `json:"health_check_path" required:"false"`
	Weight          *int              `json:"weight" required:"false"`
	Labels          map[string]string `json:"labels" required:"false" nullable:"true"`
	Host            *string           `json:"host,omitempty" required:"false" doc:"in the place of ip: a name outside the mesh, which the callers' proxies look up" example:"api.example.com"`
	TLS             *string           `json:"tls,omitempty" required:"false" doc:"originate: the callers' proxies speak TLS to it"`
	ServerName      *string           `json:"server_name,omitempty" required:"false" doc:"in its certificate; left out, host"`
	CA              *string           `json:"ca,omitempty" required:"false" doc:"PEM, whom to trust; left out, the system's roots of the proxies"`
}

func (b *endpointPutBody) endpoint(ref policy.Ref) (policy.Endpoint, policy.Problems) {
	whole := endpointBody{
		ID: ref.ID, ServiceName: ref.Service, Namespace: ref.Namespace, IP: b.IP, Port: b.Port,
		Protocol: b.Protocol, HealthCheckPath: b.HealthCheckPath, Weight: b.Weight, Labels: b.Labels,
		Host: b.Host, TLS: b.TLS, ServerName: b.ServerName, CA: b.CA,
	}
	p := otherID(b.ID, ref.ID)
	p = append(p, otherID(b.ServiceName, ref.Service).At("service_name")...)
	p = append(p, otherID(b.Namespace, ref.Namespace).At("namespace")...)
	e := whole.endpoint()
	e.Status = "" // it stays as it is
	return e, p
}

// endpointView is an endpoint as it is listed.
type endpointView struct {
	policy.Endpoint
	ResourceVersion string `json:"resource_version"`
	ProxyID         string `json:"proxy_id,omitempty" required:"false" doc:"the proxy that offers it, for as long as it runs"`
}

func viewEndpoint(e *EndpointState) endpointView {
	v := endpointView{Endpoint: e.Endpoint, ResourceVersion: versionText(e.Version), ProxyID: e.ProxyID}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	return v
}

type trafficRuleBody struct {
	ID                 *string           `json:"id,omitempty" required:"false" doc:"left out, one is made"`
	MatchHeaders       map[string]string `json:"match_headers" required:"false" nullable:"true" doc:"by name: the exact value, or prefix:…, suffix:…, regex:…, present:; not: before it turns it round"`
	MatchPath          *string           `json:"match_path" required:"false" doc:"exact, /prefix* or regex:…"`
	MatchMethod        *string           `json:"match_method" required:"false" doc:"one, or several with commas between"`
	MatchHost          *string           `json:"match_host" required:"false" doc:"exact, *.suffix or regex:…, without a port"`
	MatchQuery         map[string]string `json:"match_query" required:"false" nullable:"true" doc:"by name of a parameter: as match_headers"`
	DestinationService *string           `json:"destination_service" required:"false" doc:"name or namespace/name; empty is the service itself"`
	DestinationSubset  *string           `json:"destination_subset" required:"false"`
	Weight             *int              `json:"weight" required:"false" doc:"share among rules with the same match"`
	Timeout            *float64          `json:"timeout" required:"false" doc:"seconds; left out, the mesh's setting"`
	RetryAttempts      *int              `json:"retry_attempts" required:"false" doc:"tries in all, 1 is no retry; left out, the mesh's setting"`
	CircuitBreaker     *bool             `json:"circuit_breaker" required:"false"`
	policy.Handling
	RateLimit *rateLimitBody `json:"rate_limit,omitempty" required:"false" doc:"of the requests that match"`
}

func (b *trafficRuleBody) rule() (policy.TrafficRule, policy.Problems) {
	r := policy.DefaultTrafficRule()
	if b.MatchHeaders != nil {
		r.MatchHeaders = b.MatchHeaders
	}
	override(&r.ID, b.ID)
	override(&r.MatchPath, b.MatchPath)
	override(&r.MatchMethod, b.MatchMethod)
	override(&r.MatchHost, b.MatchHost)
	r.MatchQuery, r.Handling = b.MatchQuery, b.Handling
	override(&r.DestinationService, b.DestinationService)
	override(&r.DestinationSubset, b.DestinationSubset)
	override(&r.Weight, b.Weight)
	override(&r.Timeout, b.Timeout)
	override(&r.RetryAttempts, b.RetryAttempts)
	override(&r.CircuitBreaker, b.CircuitBreaker)
	r.RateLimit = b.RateLimit.limit()
	p := r.Validate()
	// A rule keeps 0 for "the mesh's setting", which the body says by silence.
	if b.Timeout != nil && *b.Timeout == 0 {
		p = append(p, policy.Problem{Path: "timeout", Message: "0 s is no timeout; leave it out for the mesh's setting"})
	}
	if b.RetryAttempts != nil && *b.RetryAttempts == 0 {
		p = append(p, policy.Problem{Path: "retry_attempts", Message: "0 is no number of tries; 1 is no retry, left out is the mesh's setting"})
	}
	return r, p
}

func newTrafficRuleBody(r *policy.TrafficRule) trafficRuleBody {
	return trafficRuleBody{
		ID: given(r.ID), MatchHeaders: r.MatchHeaders, MatchPath: given(r.MatchPath), MatchMethod: given(r.MatchMethod),
		DestinationService: given(r.DestinationService), DestinationSubset: given(r.DestinationSubset),
		Weight: &r.Weight, Timeout: given(r.Timeout), RetryAttempts: given(r.RetryAttempts), CircuitBreaker: &r.CircuitBreaker,
		MatchHost: given(r.MatchHost), MatchQuery: r.MatchQuery, Handling: r.Handling,
		RateLimit: newRateLimitBody(r.RateLimit),
	}
}

type issueBody struct {
	ServiceName string  `json:"service_name"`
	Namespace   string  `json:"namespace"`
	CSR         *string `json:"csr,omitempty" required:"false" nullable:"true" doc:"a certificate signing request, PEM; with it no private key is made"`
}

type tokenBody struct {
	ServiceName string   `json:"service_name"`
	Namespace   string   `json:"namespace"`
	TTL         *float64 `json:"ttl,omitempty" required:"false" nullable:"true" doc:"seconds; left out, 24 hours"`
	Uses        *int     `json:"uses,omitempty" required:"false" nullable:"true" doc:"proxies that may join with it; left out, any number"`
}

// trafficRuleView is a rule as it is listed: with null for what does not match
// on anything, as seed B's clients expect, and the settings in force.
type trafficRuleView struct {
	ID                 string            `json:"id"`
	MatchHeaders       map[string]string `json:"match_headers"`
	MatchPath          *string           `json:"match_path"`
	MatchMethod        *string           `json:"match_method"`
	DestinationService string            `json:"destination_service"`
	DestinationSubset  *string           `json:"destination_subset"`
	Weight             int               `json:"weight"`
	Timeout            float64           `json:"timeout" doc:"seconds"`
	RetryAttempts      int               `json:"retry_attempts"`
	CircuitBreaker     bool              `json:"circuit_breaker"`
	MatchHost          string            `json:"match_host,omitempty" required:"false"`
	MatchQuery         map[string]string `json:"match_query,omitempty" required:"false"`
	policy.Handling
	RateLimit       *rateLimitBody `json:"rate_limit,omitempty" required:"false"`
	ResourceVersion string         `json:"resource_version"`
	Inherits        []string       `json:"inherits,omitempty" required:"false" doc:"fields that show the mesh's settings"`
}

// inherits names the fields in which a rule leaves the mesh's settings in force.
func inherits(r *policy.TrafficRule) []string {
	var out []string
	if r.Timeout == 0 {
		out = append(out, "timeout")
	}
	if r.RetryAttempts == 0 {
		out = append(out, "retry_attempts")
	}
	return out
}

func viewTrafficRule(versioned *Versioned[policy.TrafficRule], t *policy.Traffic) trafficRuleView {
	r := &versioned.Value
	v := trafficRuleView{
		ResourceVersion: versionText(versioned.Version), Inherits: inherits(r),
		ID: r.ID, MatchHeaders: r.MatchHeaders, MatchPath: given(r.MatchPath), MatchMethod: given(r.MatchMethod),
		DestinationService: r.DestinationService, DestinationSubset: given(r.DestinationSubset),
		Weight: r.Weight, Timeout: r.Timeout, RetryAttempts: r.RetryAttempts, CircuitBreaker: r.CircuitBreaker,
		MatchHost: r.MatchHost, MatchQuery: r.MatchQuery, Handling: r.Handling,
		RateLimit: newRateLimitBody(r.RateLimit),
	}
	if v.MatchHeaders == nil {
		v.MatchHeaders = map[string]string{}
	}
	if v.Timeout == 0 {
		v.Timeout = t.Timeout.Seconds()
	}
	if v.RetryAttempts == 0 {
		v.RetryAttempts = t.Retry.Attempts
	}
	return v
}

func override[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// given is nil for the zero value.
func given[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
