package policy

import (
	"net/netip"
	"strings"
	"time"
)

// TrafficRule says where requests of one service go that match it (seed B).
// Timeout and RetryAttempts of zero mean the mesh's setting.
type TrafficRule struct {
	ID                 string            `json:"id"`
	MatchHeaders       map[string]string `json:"match_headers"`
	MatchPath          string            `json:"match_path,omitempty"`
	MatchMethod        string            `json:"match_method,omitempty"` // one, or several with commas between
	MatchHost          string            `json:"match_host,omitempty"`
	MatchQuery         map[string]string `json:"match_query,omitempty"`
	DestinationService string            `json:"destination_service"`
	DestinationSubset  string            `json:"destination_subset,omitempty"`
	Weight             int               `json:"weight"`
	Timeout            float64           `json:"timeout"`        // seconds
	RetryAttempts      int               `json:"retry_attempts"` // tries in all
	CircuitBreaker     bool              `json:"circuit_breaker"`
	Handling
	RateLimit *ServiceLimit `json:"rate_limit,omitempty"` // of the requests that match; nil is none
}

// DefaultTrafficRule holds what a rule may leave out.
func DefaultTrafficRule() TrafficRule {
	return TrafficRule{MatchHeaders: map[string]string{}, Weight: 100, CircuitBreaker: true}
}

// Bounds of what rules and settings may ask for.
const (
	maxTimeout  = 24 * 3600.0 // s
	maxAttempts = 100
)

// Validate lists what is wrong with a rule. Zero timeout and attempts are
// taken as "not given".
func (r *TrafficRule) Validate() Problems {
	var p Problems
	r.validateMatch(&p)
	if r.DestinationService != "" {
		if _, err := ParseServiceName(r.DestinationService, "default"); err != nil {
			p.addErr("destination_service", err)
		}
	}
	if hasControl(r.DestinationSubset) || len(r.DestinationSubset) > 253 {
		p.add("destination_subset", "must be plain text of at most 253 characters")
	}
	p.intIn("weight", r.Weight, 0, 1_000_000)
	if r.Timeout != 0 {
		p.secondsIn("timeout", r.Timeout, 0.001)
	}
	if r.RetryAttempts != 0 {
		p.intIn("retry_attempts", r.RetryAttempts, 1, maxAttempts)
	}
	r.validateHandling(&p)
	return append(p, r.validateLimit()...)
}

// isToken is RFC 9110 section 5.6.2.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// Service is what callers of a service need to know of it: where it answers,
// the rules for its requests and how it is to be treated.
type Service struct {
	Name      ServiceName
	Virtual4  netip.Addr
	Virtual6  netip.Addr
	Endpoints []Target
	Rules     []TrafficRule
	Traffic   Traffic
}

// Target is an endpoint as a caller sees it.
type Target struct {
	Endpoint
	Meshed bool      // a proxy of the mesh is beside it: it takes mTLS
	Limit  RateLimit // the endpoint's RateLimit with the mesh's window; limit 0 is none
	// Circuit is what an operator wants of the circuits that callers have of it.
	Circuit CircuitOrder
}

// Traffic is how requests to a service are treated unless a rule says
// otherwise: the mesh's settings with the service's own laid over them.
type Traffic struct {
	Strategy  string
	HashKey   string // what consistent_hash hashes: see SplitHashKey
	Timeout   time.Duration
	Retry     Retry
	Breaker   Breaker
	RateLimit RateLimit
	MTLS      MTLSMode
	Balancing Balancing
	Outliers  Outliers
	Overload  Overload
	// RateLimits are more limits: a request must be within all.
	RateLimits []RateLimit
	// PortModes are the modes of the ports where they are not MTLS.
	PortModes map[uint16]MTLSMode
	// PlaintextFrom lists callers for whom a rule disables mTLS.
	PlaintextFrom []ServiceName
	Affinity      Affinity
}

// Retry says how often and after which wait a request is tried again.
type Retry struct {
	Attempts int           // tries in all; 1 is no retry
	Delay    time.Duration // × n before try n+1
}

// Breaker is the setting of the circuit of each endpoint.
type Breaker struct {
	Enabled   bool
	Threshold int
	Timeout   time.Duration
}

// SendsPlaintext tells whether a caller uses no mTLS towards a port of the service.
func (t *Traffic) SendsPlaintext(caller ServiceName, port uint16) bool {
	if t.Mode(port) == Disabled {
		return true
	}
	for _, p := range t.PlaintextFrom {
		if matchName(p, caller) {
			return true
		}
	}
	return false
}
