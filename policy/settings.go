package policy

import (
	"sort"
	"strings"
	"time"
)

// Settings are the mesh's settings: the groups of mesh-config.yml (seed A) and
// what holds for the mesh as a whole. Seconds are numbers.
type Settings struct {
	MTLSMode      MTLSMode                   `json:"mtls_mode"`
	DefaultPolicy string                     `json:"default_policy"` // deny or allow: what no rule decides
	Egress        string                     `json:"egress"`         // allow or deny: destinations outside the mesh
	Services      map[string]ServiceSettings `json:"services"`       // by name or namespace/name
	Namespaces    map[string]NamespaceRules  `json:"namespaces,omitempty"`
	Security      Security                   `json:"security"`
	Observability Observability              `json:"observability"`
	Resilience    Resilience                 `json:"resilience"`
	LoadBalancing LoadBalancing              `json:"load_balancing"`
}

// ServiceSettings overrides the mesh's settings for one service. Zero values
// leave the mesh's in force.
type ServiceSettings struct {
	Strategy      string         `json:"strategy,omitempty"`
	HashKey       string         `json:"hash_key,omitempty"`
	Timeout       float64        `json:"timeout,omitempty"`
	RetryAttempts int            `json:"retry_attempts,omitempty"`
	RetryDelay    *float64       `json:"retry_delay,omitempty"` // seconds; 0 is no wait, nil the mesh's
	RateLimit     *ServiceLimit  `json:"rate_limit,omitempty"`
	RateLimits    []ServiceLimit `json:"rate_limits,omitempty"` // more of them: a request must be within all
	Breaker       *CircuitValues `json:"circuit_breaker,omitempty"`

	Locality            string            `json:"locality,omitempty"`
	SlowStart           *float64          `json:"slow_start,omitempty"` // seconds
	SlowStartAggression float64           `json:"slow_start_aggression,omitempty"`
	PanicThreshold      *int              `json:"panic_threshold,omitempty"` // per cent
	HashLoadFactor      *float64          `json:"hash_load_factor,omitempty"`
	Outliers            *ServiceOutliers  `json:"outlier_detection,omitempty"`
	MaxConcurrent       *int              `json:"max_concurrent,omitempty"`
	MaxPending          *int              `json:"max_pending,omitempty"`
	MaxConnections      *int              `json:"max_connections,omitempty"`
	Affinity            *AffinitySettings `json:"affinity,omitempty"`

	MTLSMode  MTLSMode            `json:"mtls_mode,omitempty"`
	MTLSPorts map[string]MTLSMode `json:"mtls_ports,omitempty"` // by port
}

// CircuitValues sets the circuits of one service's endpoints.
type CircuitValues struct {
	Enabled          bool    `json:"enabled"`
	FailureThreshold int     `json:"failure_threshold"`
	Timeout          float64 `json:"timeout"`
}

// Security holds tokens, the gateway's certificate and CORS, rate limits and
// which paths need a token at the gateway.
type Security struct {
	JWTSecret string      `json:"jwt_secret,omitempty"`
	JWT       JWTSettings `json:"jwt"`
	SSL       struct {
		Enabled  bool   `json:"enabled"`
		CertFile string `json:"cert_file"`
		KeyFile  string `json:"key_file"`
	} `json:"ssl"`
	CORS struct {
		Enabled      bool     `json:"enabled"`
		AllowOrigins []string `json:"allow_origins"`
		AllowMethods []string `json:"allow_methods"`
		AllowHeaders []string `json:"allow_headers"`
	} `json:"cors"`
	RateLimiting struct {
		Enabled      bool    `json:"enabled"`
		DefaultLimit int     `json:"default_limit"`
		Window       float64 `json:"window"`
	} `json:"rate_limiting"`
	Authentication struct {
		Enabled        bool     `json:"enabled"`
		ProtectedPaths []string `json:"protected_paths"`
	} `json:"authentication"`
}

// Observability holds metrics, traces and logs.
type Observability struct {
	Metrics struct {
		Enabled  bool    `json:"enabled"`
		Path     string  `json:"path"`
		Interval float64 `json:"interval"`
	} `json:"metrics"`
	Tracing struct {
		Enabled    bool   `json:"enabled"`
		JaegerHost string `json:"jaeger_host"`
		JaegerPort int    `json:"jaeger_port"`
	} `json:"tracing"`
	Logging struct {
		Level  string `json:"level"`
		Format string `json:"format"`
		Output string `json:"output"`
	} `json:"logging"`
	AccessLogging bool `json:"access_logging"`
}

// Resilience holds circuits, retries and timeouts.
type Resilience struct {
	CircuitBreaker CircuitValues `json:"circuit_breaker"`
	Retry          struct {
		Enabled     bool    `json:"enabled"`
		MaxAttempts int     `json:"max_attempts"`
		Delay       float64 `json:"delay"`
	} `json:"retry"`
	Timeout struct {
		Enabled bool    `json:"enabled"`
		Default float64 `json:"default"`
	} `json:"timeout"`
	Outliers OutlierDetection `json:"outlier_detection"`
	Overload OverloadLimits   `json:"overload"`
}

// LoadBalancing holds the strategy and the health checks.
type LoadBalancing struct {
	Strategy            string  `json:"strategy"`
	Locality            string  `json:"locality"`   // prefer or ignore
	SlowStart           float64 `json:"slow_start"` // seconds; 0 is off
	SlowStartAggression float64 `json:"slow_start_aggression"`
	PanicThreshold      int     `json:"panic_threshold"`  // per cent; 0 is off
	HashLoadFactor      float64 `json:"hash_load_factor"` // 0 is no bound
	HealthCheck         struct {
		Enabled  bool    `json:"enabled"`
		Interval float64 `json:"interval"`
		Timeout  float64 `json:"timeout"`
		// Results in a row that turn an endpoint.
		UnhealthyThreshold int `json:"unhealthy_threshold"`
		HealthyThreshold   int `json:"healthy_threshold"`
	} `json:"health_check"`
}

// Strategies are the ways to choose an endpoint.
var Strategies = []string{"round_robin", "weighted", "least_conn", "random", "consistent_hash", "p2c_ewma"}

// DefaultSettings are in force where nothing is set.
func DefaultSettings() Settings {
	var s Settings
	s.MTLSMode, s.DefaultPolicy, s.Egress = Strict, "deny", "allow"
	s.Services = map[string]ServiceSettings{}
	s.Security.JWT = JWTSettings{Leeway: DefaultLeeway, Issuers: []JWTIssuer{}}
	s.Security.CORS.AllowOrigins = []string{}
	s.Security.CORS.AllowMethods = []string{}
	s.Security.CORS.AllowHeaders = []string{}
	s.Security.RateLimiting.DefaultLimit, s.Security.RateLimiting.Window = 100, 60
	s.Security.Authentication.ProtectedPaths = []string{}
	s.Observability.Metrics.Enabled, s.Observability.Metrics.Path, s.Observability.Metrics.Interval = true, "/metrics", 3
	s.Observability.Tracing.JaegerHost, s.Observability.Tracing.JaegerPort = "localhost", 4317
	s.Observability.Logging.Level, s.Observability.Logging.Format, s.Observability.Logging.Output = "INFO", "json", "stdout"
	s.Resilience.CircuitBreaker = CircuitValues{Enabled: true, FailureThreshold: 5, Timeout: 60}
	s.Resilience.Retry.Enabled, s.Resilience.Retry.MaxAttempts, s.Resilience.Retry.Delay = true, 3, 1
	s.Resilience.Timeout.Enabled, s.Resilience.Timeout.Default = true, 30
	s.Resilience.Outliers = defaultOutliers()
	s.LoadBalancing.Strategy, s.LoadBalancing.Locality = "p2c_ewma", localityPrefer
	s.LoadBalancing.SlowStartAggression, s.LoadBalancing.HashLoadFactor = 1, 1.25
	s.LoadBalancing.HealthCheck.Enabled, s.LoadBalancing.HealthCheck.Interval, s.LoadBalancing.HealthCheck.Timeout = true, 30, 5
	s.LoadBalancing.HealthCheck.UnhealthyThreshold, s.LoadBalancing.HealthCheck.HealthyThreshold = 1, 1
	return s
}

// Validate lists what is wrong with the settings.
func (s *Settings) Validate() Problems {
	var p Problems
	p.oneOf("mtls_mode", string(s.MTLSMode), string(Strict), string(Permissive), string(Disabled))
	p.oneOf("default_policy", s.DefaultPolicy, "deny", "allow")
	p.oneOf("egress", s.Egress, "allow", "deny")
	names := make([]string, 0, len(s.Services))
	for name := range s.Services {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		v := s.Services[name]
		if _, err := ParseServiceName(name, "default"); err != nil {
			p.addErr("services."+name, err)
		}
		p = append(p, v.validate().Under("services."+name)...)
		p = append(p, s.validateTogether(&v).Under("services."+name)...)
	}
	s.validateNamespaces(&p)
	s.validateSecurity(&p)
	s.validateObservability(&p)
	s.validateResilience(&p)
	p.oneOf("load_balancing.strategy", s.LoadBalancing.Strategy, Strategies...)
	s.LoadBalancing.validateBalancing(&p)
	p.secondsIn("load_balancing.health_check.interval", s.LoadBalancing.HealthCheck.Interval, 0.1)
	p.secondsIn("load_balancing.health_check.timeout", s.LoadBalancing.HealthCheck.Timeout, 0.01)
	p.intIn("load_balancing.health_check.unhealthy_threshold", s.LoadBalancing.HealthCheck.UnhealthyThreshold, 1, 100)
	p.intIn("load_balancing.health_check.healthy_threshold", s.LoadBalancing.HealthCheck.HealthyThreshold, 1, 100)
	return p
}

func (s *Settings) validateSecurity(p *Problems) {
	if s.Security.SSL.Enabled && (s.Security.SSL.CertFile == "" || s.Security.SSL.KeyFile == "") {
		p.add("security.ssl", "enabled needs cert_file and key_file")
	}
	for _, m := range s.Security.CORS.AllowMethods {
		if m != Any && !isToken(m) {
			p.add("security.cors.allow_methods", "%q is not a method", m)
		}
	}
	for _, h := range s.Security.CORS.AllowHeaders {
		if h != Any && !isToken(h) {
			p.add("security.cors.allow_headers", "%q is not a header name", h)
		}
	}
	*p = append(*p, s.Security.JWT.validate().Under("security.jwt")...)
	p.intIn("security.rate_limiting.default_limit", s.Security.RateLimiting.DefaultLimit, 1, maxLimit)
	p.secondsIn("security.rate_limiting.window", s.Security.RateLimiting.Window, 0.1)
	for _, path := range s.Security.Authentication.ProtectedPaths {
		if !strings.HasPrefix(path, "/") {
			p.add("security.authentication.protected_paths", "%q does not start with /", path)
		}
	}
}

const maxLimit = 10_000_000

func (s *Settings) validateObservability(p *Problems) {
	o := &s.Observability
	switch path := o.Metrics.Path; {
	case !strings.HasPrefix(path, "/") || strings.ContainsAny(path, " ?#{}\t\r\n"):
		p.add("observability.metrics.path", "%q is not a path that starts with /", path)
	case path == "/health" || path == "/ready" || path == "/status" || strings.HasPrefix(path, "/debug/"):
		p.add("observability.metrics.path", "%q is taken: the proxies answer there with something else", path)
	}
	p.secondsIn("observability.metrics.interval", o.Metrics.Interval, 1)
	p.intIn("observability.tracing.jaeger_port", o.Tracing.JaegerPort, 1, 65535)
	p.oneOf("observability.logging.level", strings.ToUpper(o.Logging.Level), "DEBUG", "INFO", "WARN", "WARNING", "ERROR")
	p.oneOf("observability.logging.format", o.Logging.Format, "json", "console")
	// A path set here would have every proxy write to it, with the rights that each
	// has: which file a proxy writes is for who starts it to say.
	if o.Logging.Output != "stdout" && o.Logging.Output != "stderr" {
		p.add("observability.logging.output", "%q is not stdout or stderr; a file is named by --access-log of a proxy", o.Logging.Output)
	}
}

func (s *Settings) validateResilience(p *Problems) {
	r := &s.Resilience
	*p = append(*p, r.CircuitBreaker.validate().Under("resilience.circuit_breaker")...)
	p.intIn("resilience.retry.max_attempts", r.Retry.MaxAttempts, 1, maxAttempts)
	p.secondsIn("resilience.retry.delay", r.Retry.Delay, 0)
	p.secondsIn("resilience.timeout.default", r.Timeout.Default, 0.001)
	*p = append(*p, r.Outliers.validate().Under("resilience.outlier_detection")...)
	*p = append(*p, append(r.Overload.validate(), r.Overload.validateQueue()...).Under("resilience.overload")...)
}

// validateTogether checks what a service's settings come to with the mesh's.
func (s *Settings) validateTogether(v *ServiceSettings) Problems {
	var p Problems
	if v.Outliers != nil {
		o := v.Outliers.over(s.Resilience.Outliers)
		p = o.validate().Under("outlier_detection")
	}
	l := v.overload(s.Resilience.Overload)
	p = append(p, l.validate()...)
	if v.MaxPending != nil { // what the mesh has for others may be idle here
		p = append(p, l.validateQueue()...)
	}
	return p
}

func (c *CircuitValues) validate() Problems {
	var p Problems
	p.intIn("failure_threshold", c.FailureThreshold, 1, 1_000_000)
	p.secondsIn("timeout", c.Timeout, 0.001)
	return p
}

func (v *ServiceSettings) validate() Problems {
	var p Problems
	if v.Strategy != "" {
		p.oneOf("strategy", v.Strategy, Strategies...)
	}
	v.validateBalancing(&p)
	if v.Timeout != 0 {
		p.secondsIn("timeout", v.Timeout, 0.001)
	}
	if v.RetryAttempts != 0 {
		p.intIn("retry_attempts", v.RetryAttempts, 1, maxAttempts)
	}
	if v.RetryDelay != nil {
		p.secondsIn("retry_delay", *v.RetryDelay, 0)
	}
	p = append(p, v.validateLimits()...)
	if v.Breaker != nil {
		p = append(p, v.Breaker.validate().Under("circuit_breaker")...)
	}
	if v.Affinity != nil {
		p = append(p, v.Affinity.validate().Under("affinity")...)
	}
	return append(p, v.validateModes()...)
}

func isHeaderKey(s string) bool {
	name, ok := strings.CutPrefix(s, "header:")
	return ok && isToken(name)
}

// TrafficFor gives what holds for a service: its own settings over the mesh's.
func (s *Settings) TrafficFor(name ServiceName) Traffic {
	modes := s.ModesFor(name)
	t := Traffic{Strategy: s.LoadBalancing.Strategy, MTLS: modes.MTLS, PortModes: modes.PortModes, Retry: Retry{Attempts: 1, Delay: seconds(s.Resilience.Retry.Delay)}}
	if s.Resilience.Timeout.Enabled {
		t.Timeout = seconds(s.Resilience.Timeout.Default)
	}
	if s.Resilience.Retry.Enabled {
		t.Retry.Attempts = s.Resilience.Retry.MaxAttempts
	}
	t.Breaker = s.Resilience.CircuitBreaker.breaker()
	t.Balancing, t.Outliers, t.Overload = s.LoadBalancing.balancing(), s.Resilience.Outliers.outliers(), s.Resilience.Overload.overload()
	window := seconds(s.Security.RateLimiting.Window)
	if s.Security.RateLimiting.Enabled {
		t.RateLimit = RateLimit{Limit: s.Security.RateLimiting.DefaultLimit, Window: window}
	}
	own, ok := s.ServiceSettings(name)
	if !ok {
		return t
	}
	own.overlay(&t, window)
	own.overlayBalancing(&t.Balancing)
	outliers, overload := own.Outliers.over(s.Resilience.Outliers), own.overload(s.Resilience.Overload)
	t.Outliers, t.Overload = outliers.outliers(), overload.overload()
	return t
}

// ServiceSettings finds a service's own settings, under "namespace/name" or,
// in the namespace "default", under its bare name.
func (s *Settings) ServiceSettings(name ServiceName) (ServiceSettings, bool) {
	if v, ok := s.Services[name.String()]; ok {
		return v, true
	}
	if v, ok := s.Services[name.Name+"."+name.Namespace]; ok {
		return v, true
	}
	if name.Namespace != "default" {
		return ServiceSettings{}, false
	}
	v, ok := s.Services[name.Name]
	return v, ok
}

func (v *ServiceSettings) overlay(t *Traffic, window time.Duration) {
	if v.Strategy != "" {
		t.Strategy = v.Strategy
	}
	t.HashKey, t.Affinity = v.HashKey, v.Affinity.affinity()
	if v.Timeout != 0 {
		t.Timeout = seconds(v.Timeout)
	}
	if v.RetryAttempts != 0 {
		t.Retry.Attempts = v.RetryAttempts
	}
	if v.RetryDelay != nil {
		t.Retry.Delay = seconds(*v.RetryDelay)
	}
	if v.Breaker != nil {
		t.Breaker = v.Breaker.breaker()
	}
	if v.RateLimit != nil {
		t.RateLimit = v.RateLimit.in(window)
	}
	t.RateLimits = v.limits(window)
}

func (c *CircuitValues) breaker() Breaker {
	return Breaker{Enabled: c.Enabled, Threshold: c.FailureThreshold, Timeout: seconds(c.Timeout)}
}
