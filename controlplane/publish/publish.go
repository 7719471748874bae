// Package publish turns the control plane's state into delta xDS resources for
// the proxies that asked for them, and keeps track of who took what. It leaves
// storing the state, telling what changed and issuing identities to others.
//
// The stream is envoy.service.discovery.v3's DeltaAggregatedResources. Its state
// machine is our own (delta.go): go-control-plane's server does not answer a
// name that is subscribed anew (discovery.proto says it must), does not tell a
// stale nonce from an ACK and compares all of a proxy's versions at each
// request. Here a change costs what it names, however much else there is.
package publish

import (
	"context"
	"errors"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// Source is the state that is published. Its methods are called from many
// goroutines at once and must show what Changed was called for before. What
// they return is not altered. Equal states should give equal slices, in order:
// another order counts as a change.
type Source interface {
	Mesh() policy.Mesh
	Service(policy.ServiceName) (*policy.Service, bool)
	// Inbound exists for every name.
	Inbound(policy.ServiceName) policy.Inbound
	// Lookup takes a virtual address or an endpoint's address with port.
	Lookup(resource string) (policy.ServiceName, bool)
}

// Config is what a Server needs.
type Config struct {
	Source Source
	// Identity gives the verified identity of a stream's peer. Its error ends the
	// stream with Unauthenticated.
	Identity func(ctx context.Context) (policy.ServiceName, error)
	// Attach takes a proxy's endpoints in. A gRPC status as its error is passed on
	// to the proxy; other errors become Unavailable.
	Attach func(ctx context.Context, hello Hello) (Lease, error)
	// Demands hears what an attached proxy wants of limits of the whole mesh, with
	// each of its reports; Shares tells what it has of them, for each answer and
	// after SharesChanged. Detached hears when an attachment ended that no other has
	// taken the place of, and whether the proxy took leave. All may be nil.
	Demands  func(p ProxyName, demands []policy.Demand)
	Shares   func(p ProxyName) []policy.Share
	Detached func(p ProxyName, left bool)
	// Flows hears what an attached proxy counted of its service's calls, and how
	// many it had no room to count, with each report that has any; may be nil.
	Flows func(p ProxyName, flows []policy.FlowCount, leftOut uint64)
	// Log may be nil.
	Log *zap.Logger
	// Now is time.Now where it is nil.
	Now func() time.Time
	// SettledAt is when the state is whole: until then no proxy is told anything of
	// a service that it knows from before. For a control plane that found no proxy in
	// the store, of which many are about to come with their endpoints: what it knows
	// of services is less than what those do who call them. The zero time is now.
	SettledAt time.Time
	// MaxNames bounds the resources one stream subscribes to, all types together;
	// 0 is 65536. A stream that wants more ends with ResourceExhausted.
	MaxNames int
}

// Change names what has changed. Nobody who did not subscribe to something
// named is woken.
type Change struct {
	// Revision is the state's version, for people: the proxies' status shows
	// which one they hold. It does not decide what is sent.
	Revision int64
	Mesh     bool
	Services []policy.ServiceName
	Inbounds []policy.ServiceName
	Lookups  []string
	// The whole of a type, for what settings of the mesh change.
	AllServices bool
	AllInbounds bool
	AllLookups  bool
}

// Server serves discovery and attachment streams. It starts no goroutine that
// outlives a stream.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	wire.UnimplementedAttachmentServer

	cfg    Config        // set by New, never changed
	closed chan struct{} // closed by Close

	mu          sync.Mutex // guards what follows; taken before a session's own
	revision    int64
	topics      [kinds]map[string]*topic
	sessions    map[proxyKey]*session
	attachments map[proxyKey]*attachment
	closing     bool
}

// ProxyName names an attached proxy.
type ProxyName struct {
	Service policy.ServiceName
	ID      string
}

func (k proxyKey) name() ProxyName { return ProxyName{k.service, k.id} }

// SharesChanged has a proxy told its shares, if it is attached. It does not wait.
func (s *Server) SharesChanged(p ProxyName) {
	s.mu.Lock()
	a := s.attachments[proxyKey{p.Service, p.ID}]
	s.mu.Unlock()
	if a == nil {
		return
	}
	select {
	case a.wake <- struct{}{}:
	default: // it is to be told already
	}
}

// proxyKey tells proxies apart. The service is part of it, so that a proxy
// cannot take the place of another service's by its id.
type proxyKey struct {
	service policy.ServiceName
	id      string
}

const defaultMaxNames = 65536

// New makes a server; it starts nothing. The error names the missing field.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Source == nil:
		return nil, errors.New("publish: Config.Source is missing")
	case cfg.Identity == nil:
		return nil, errors.New("publish: Config.Identity is missing")
	case cfg.Attach == nil:
		return nil, errors.New("publish: Config.Attach is missing")
	case cfg.MaxNames < 0:
		return nil, errors.New("publish: Config.MaxNames is negative")
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Demands == nil {
		cfg.Demands = func(ProxyName, []policy.Demand) {}
	}
	if cfg.Shares == nil {
		cfg.Shares = func(ProxyName) []policy.Share { return nil }
	}
	if cfg.Detached == nil {
		cfg.Detached = func(ProxyName, bool) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxNames == 0 {
		cfg.MaxNames = defaultMaxNames
	}
	s := &Server{
		cfg: cfg, closed: make(chan struct{}),
		sessions: map[proxyKey]*session{}, attachments: map[proxyKey]*attachment{},
	}
	for k := range s.topics {
		s.topics[k] = map[string]*topic{}
	}
	return s, nil
}

// Register adds both services to a gRPC server. Dead peers are found by that
// server's keepalive, so it should be set.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(r, s)
	wire.RegisterAttachmentServer(r, s)
}

// Changed is called after the state has changed. It reads nothing and never
// waits for a proxy: it marks what is named, then wakes who subscribed to it.
func (s *Server) Changed(c Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision = max(s.revision, c.Revision)
	woken := map[*session]struct{}{}
	touch := func(k kind, name string) {
		if t := s.topics[k][name]; t != nil {
			t.touchLocked(woken)
		}
	}
	if c.Mesh {
		touch(kindMesh, wire.MeshName)
	}
	for _, n := range c.Services {
		touch(kindService, n.String())
	}
	for _, n := range c.Inbounds {
		touch(kindInbound, n.String())
	}
	for _, n := range c.Lookups {
		touch(kindLookup, n)
	}
	for k, all := range [kinds]bool{kindService: c.AllServices, kindInbound: c.AllInbounds, kindLookup: c.AllLookups} {
		if all {
			for _, t := range s.topics[k] {
				t.touchLocked(woken)
			}
		}
	}
	for ses := range woken { // last, so that one change mostly comes in one response
		ses.awake()
	}
}

// Disconnect ends the streams of the proxies that match, with PermissionDenied:
// for identities that have been revoked. It returns how many streams it ended.
func (s *Server) Disconnect(match func(service policy.ServiceName, id string) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for key, ses := range s.sessions {
		if match(key.service, key.id) {
			ses.end(errRevoked)
			n++
		}
	}
	for key, a := range s.attachments {
		if match(key.service, key.id) {
			a.end(errRevoked)
			n++
		}
	}
	return n
}

// Close ends all streams and refuses new ones with Unavailable. The proxies'
// leases are left to expire: they are expected at another control plane, or
// here again, before that.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.closing = true
		close(s.closed)
	}
}
