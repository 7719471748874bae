// Package api serves the control plane's REST API and holds its client.
// It keeps no state and decides no policy: what it needs it asks of the
// interfaces below, which the parent package composes.
package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// BasePath is where every route of the API begins.
const BasePath = "/api/v1"

// ErrNotFound is what an implementation of the interfaces below returns, or
// wraps, for something that is not there. It is answered with 404.
var ErrNotFound = errors.New("not found")

// Registry keeps the endpoints of services. An error that is (or wraps)
// policy.Problems is the request's fault and answered with 400; any other means
// that the registry cannot do it now and is answered with 503.
type Registry interface {
	// Register adds an endpoint that is valid, or replaces the one of the same
	// service and id. It returns when the endpoint is kept for good.
	Register(ctx context.Context, e policy.Endpoint) error
	// Deregister removes an endpoint. For one that is not there it returns nil
	// or ErrNotFound, which the API answers alike.
	Deregister(ctx context.Context, name policy.ServiceName, id string) error
	// Endpoints lists a service's endpoints, unhealthy ones too, with Status
	// and LastSeen; none for a service that is not known.
	Endpoints(name policy.ServiceName) []policy.Endpoint
	// Health tells what the health checks know of an endpoint; false when there
	// is no such endpoint.
	Health(name policy.ServiceName, id string) (EndpointHealth, bool)
	// Services lists the services that have endpoints or traffic rules.
	Services() []ServiceSummary
}

// TrafficRules keeps the traffic rules of services. Errors as for Registry.
type TrafficRules interface {
	// AddTrafficRule appends a valid rule without id and returns the id that
	// it was given.
	AddTrafficRule(ctx context.Context, name policy.ServiceName, r policy.TrafficRule) (id string, err error)
	// DeleteTrafficRule removes a rule; ErrNotFound if there is none.
	DeleteTrafficRule(ctx context.Context, name policy.ServiceName, id string) error
	// TrafficRules lists a service's rules in the order of evaluation.
	TrafficRules(name policy.ServiceName) []policy.TrafficRule
}

// SecurityRules keeps the security rules of the mesh. Errors as for Registry.
type SecurityRules interface {
	// AddSecurityRule appends a valid rule without id and returns the id that
	// it was given.
	AddSecurityRule(ctx context.Context, r policy.SecurityRule) (id string, err error)
	// DeleteSecurityRule removes a rule; ErrNotFound if there is none.
	DeleteSecurityRule(ctx context.Context, id string) error
	// SecurityRules lists all rules in the order in which they were added.
	SecurityRules() []policy.SecurityRule
}

// Settings keeps the settings of the mesh. Errors as for Registry.
type Settings interface {
	// Settings gives what is in force.
	Settings() policy.Settings
	// UpdateSettings merges a patch into what is set when it is stored
	// (policy.Settings.Merge), so that two updates at once both take effect.
	UpdateSettings(ctx context.Context, patch []byte) error
}

// Authority signs certificates and makes join tokens. An error of IssueForCSR
// is taken to be the request's fault (400), of the others the authority's (503).
type Authority interface {
	// RootPEM gives the root's certificate.
	RootPEM() []byte
	// IssueForCSR signs a certificate for the key of a signing request (PEM or
	// DER) and gives the chain, leaf first.
	IssueForCSR(name policy.ServiceName, csr []byte) (chainPEM []byte, err error)
	// IssueWithKey makes a key (PKCS #8) and a certificate for it.
	IssueWithKey(name policy.ServiceName) (keyPEM, chainPEM []byte, err error)
	// NewToken makes a join token that holds for ttl; 0 is the authority's
	// default.
	NewToken(name policy.ServiceName, ttl time.Duration) (token string, expires time.Time, err error)
}

// Proxies knows the proxies that are connected.
type Proxies interface {
	// Proxies lists them, in a stable order.
	Proxies() []ProxyStatus
	// Totals sums their figures.
	Totals() policy.Figures
}

// Cluster knows the control planes that share one store.
type Cluster interface {
	// Fresh returns when what the other parts show holds every change that was
	// answered before, by whichever control plane. The error says why it may not.
	Fresh(ctx context.Context) error
	// Members lists the control planes; with an error, those that were known
	// last, and why there is nothing newer.
	Members(ctx context.Context) ([]Member, error)
	// Figures are what this control plane counted.
	Figures(ctx context.Context) ControlMetrics
}

// Config is what a handler is made of. Every field of an interface type but
// Cluster is needed.
type Config struct {
	Registry  Registry
	Traffic   TrafficRules
	Security  SecurityRules
	Settings  Settings
	Authority Authority
	Proxies   Proxies
	Cluster   Cluster // may be nil: nobody else shares the store

	// Token is the admin token that callers show as "Authorization: Bearer".
	Token string
	// Insecure asks for no token. The parent listens on loopback only then; a
	// browser's cross-site requests and foreign Host names are refused here.
	Insecure bool

	Version string           // of the control plane, for the OpenAPI document
	Started time.Time        // when the control plane started
	Now     func() time.Time // nil is time.Now
	Log     *zap.Logger      // nil is none
}

// New gives the handler for everything under BasePath. It starts nothing. It
// fails when the configuration has a gap: without a token only Insecure serves.
func New(cfg Config) (http.Handler, error) {
	if cfg.Registry == nil || cfg.Traffic == nil || cfg.Security == nil ||
		cfg.Settings == nil || cfg.Authority == nil || cfg.Proxies == nil {
		return nil, errors.New("api: a part is missing in the configuration")
	}
	if cfg.Token == "" && !cfg.Insecure {
		return nil, errors.New("api: no admin token; without one only an insecure API can be served")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &server{Config: cfg}
	mux, err := s.routes()
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	return s.front(mux), nil
}

// server answers requests. It is immutable.
type server struct {
	Config
}
