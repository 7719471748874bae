// Package api serves the control plane's REST API and holds its client.
// It keeps no state but what watchers may still ask for, and decides no policy:
// what it needs it asks of the interfaces below, which the parent composes.
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

// Mesh is the state that the API shows and changes. An error of its methods that
// is (or wraps) policy.Problems is the request's fault and answered with 400;
// policy.ErrNotFound with 404, ErrExists and ErrOwned with 409, ErrForgotten with 410, ErrStale
// with 412, ErrTooLarge with 413. Any other means that it cannot be done now and
// is answered with 503.
type Mesh interface {
	// Snapshot gives the state as it is, with everything that Change has
	// answered for.
	Snapshot() Snapshot
	// Change makes edits, all or none, and returns when they are kept for good.
	// When dryRun is set it only tells what they would change.
	Change(ctx context.Context, edits []policy.Edit, dryRun bool) (policy.Outcome, error)
	// History lists at most limit changes before a revision (0 is all), the newest
	// first, without values.
	History(ctx context.Context, before int64, limit int) ([]policy.Revision, error)
	// Revision gives one change with its values.
	Revision(ctx context.Context, revision int64) (policy.Revision, error)
	// Between tells what differs between the states after two revisions; 0 as the
	// second is now.
	Between(ctx context.Context, from, to int64) ([]policy.Difference, error)
	// Rollback makes the state what it was after a revision, as one change.
	Rollback(ctx context.Context, revision int64, dryRun bool) (policy.Outcome, error)
	// Health tells what the health checks know of an endpoint; false when there is
	// no such endpoint.
	Health(name policy.ServiceName, id string) (EndpointHealth, bool)
	// Circuits lists a service's endpoints by id, with how the circuits of each
	// stand in the proxies that call it.
	Circuits(name policy.ServiceName) []EndpointCircuits
	// OrderCircuit has all proxies open or close their circuits of an endpoint
	// (policy.CircuitOpen, CircuitClose), for ttl or, if that is 0, until another
	// order, or begin them anew (CircuitReset).
	OrderCircuit(ctx context.Context, name policy.ServiceName, id, order string, ttl time.Duration) error
	// Explain tells what becomes of a call.
	Explain(q *policy.Question) (*policy.Explanation, error)
	// Touched lists the connected proxies that differences would be sent to.
	Touched(differences []policy.Difference) []ProxyName
}

// Snapshot is the state at one revision. It does not change.
type Snapshot interface {
	Revision() int64
	// Services lists those that have endpoints or traffic rules, by name.
	Services() []ServiceSummary
	// Service gives one of them.
	Service(name policy.ServiceName) (ServiceSummary, bool)
	// Endpoints lists a service's endpoints by id, unhealthy ones too, with Status
	// and LastSeen; none for a service that is not known.
	Endpoints(name policy.ServiceName) []EndpointState
	// TrafficRules lists a service's rules in the order of evaluation.
	TrafficRules(name policy.ServiceName) []Versioned[policy.TrafficRule]
	// SecurityRules lists all rules in the order in which they were added.
	SecurityRules() []Versioned[policy.SecurityRule]
	// Settings gives what is in force; at version 0 they are the defaults.
	Settings() Versioned[policy.Settings]
}

// Versioned is a resource with the revision of its last change.
type Versioned[T any] struct {
	Value   T
	Version int64
}

// EndpointState is an endpoint with the revision of its last change, of its
// status too, and the proxy that offers it, if one does.
type EndpointState struct {
	policy.Endpoint
	Version int64
	ProxyID string
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
	// CreateToken makes a join token, text, that holds for ttl (0 is the authority's
	// default) and for so many proxies (0 is any number).
	CreateToken(ctx context.Context, name policy.ServiceName, ttl time.Duration, uses int) (t policy.JoinToken, text string, err error)
	// Tokens lists the join tokens that have not expired, the oldest first.
	Tokens(ctx context.Context) ([]policy.JoinToken, error)
	// RevokeToken has a join token refused from now on.
	RevokeToken(ctx context.Context, id string) error
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

// Observed knows what went on between the services of the mesh.
type Observed interface {
	// Flows lists what proxies counted.
	Flows(q FlowQuery) FlowList
	// Pairs tells of each pair of services that talked since then, or may talk,
	// how it is encrypted.
	Pairs(since time.Time) PairList
	// Judge tells which flows since then would have another verdict or route with
	// differences of the state.
	Judge(differences []policy.Difference, since time.Time) WhatIf
}

// Config is what a Server is made of. Every field of an interface type but Cluster
// and Observed is needed.
type Config struct {
	Mesh      Mesh
	Authority Authority
	Proxies   Proxies
	Trust     Trust
	Cluster   Cluster  // may be nil: nobody else shares the store
	Observed  Observed // may be nil: nothing is observed

	// ConfigFile tells how the mesh file stands, nil where there is none. The func
	// may be nil.
	ConfigFile func() *ConfigFile

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

// New gives the server of everything under BasePath. It starts nothing. It
// fails when the configuration has a gap: without a token only Insecure serves.
func New(cfg Config) (*Server, error) {
	if cfg.Mesh == nil || cfg.Authority == nil || cfg.Proxies == nil || cfg.Trust == nil {
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
	s := &Server{Config: cfg, feed: newFeed(cfg.Mesh.Snapshot())}
	mux, err := s.routes()
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	s.handler = s.front(mux)
	return s, nil
}

// Server answers requests.
type Server struct {
	Config
	handler http.Handler
	feed    *feed
	refused refusals
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Changed tells those who watch that the state is another. It is called for each
// change, in order, by one goroutine, and waits for nobody.
func (s *Server) Changed(now Snapshot, t Touched) { s.feed.changed(now, t) }

// Close ends the watches, which would else hold up an orderly shutdown.
func (s *Server) Close() { s.feed.close() }
