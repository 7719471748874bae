// Package dns answers mesh names from a lookup function and forwards every other query to the upstream resolvers.
// Which names there are, and what their addresses mean, is left to the caller.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Config says where to answer, for whom and with what.
type Config struct {
	// Addrs are "IP:port"; each is served over UDP and TCP. Port 0 takes a free
	// port, the same for both.
	Addrs []string
	// Namespace is the workload's: a name of one label means a service there.
	Namespace string
	// ClusterDomain ends full names, "cluster.local" when empty.
	ClusterDomain string
	// Lookup finds a service's addresses. Either may be the zero Addr: the name
	// then exists without an address of that family. Both arguments are
	// lower-case. Each call has a goroutine of its own and counts against
	// MaxInFlight; ctx ends when Run does.
	Lookup func(ctx context.Context, namespace, name string) (v4, v6 netip.Addr, ok bool)
	// LookupHost does the same for a name that Lookup does not know, with a dot in
	// it, lower-case and without the final dot; nil knows none.
	LookupHost func(ctx context.Context, host string) (v4, v6 netip.Addr, ok bool)
	// Upstreams are asked for everything else: the first that answers is kept
	// to until it fails. Without any, such queries are answered REFUSED.
	Upstreams []netip.AddrPort
	// Dial opens connections to upstreams (network "udp" or "tcp"); nil means a
	// plain net.Dialer. Here a socket gets the mark that keeps it from being
	// redirected back.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	TTL         time.Duration    // of answers for mesh names; 5 s when 0
	Timeout     time.Duration    // for one try at one upstream; 2 s when 0
	IdleTimeout time.Duration    // for TCP clients between queries; 10 s when 0
	MaxInFlight int              // queries worked on at once, then SERVFAIL; 1024 when 0, at least 4. A quarter is kept for mesh names.
	MaxConns    int              // TCP clients at once, then they wait; 128 when 0
	Log         *zap.Logger      // nil logs nothing
	Now         func() time.Time // for deadlines; time.Now when nil
}

// Figures are counts since New, but for InFlight.
type Figures struct {
	Queries   uint64 `json:"queries"`   // messages that came in
	Mesh      uint64 `json:"mesh"`      // answered from Lookup
	Forwarded uint64 `json:"forwarded"` // answered by an upstream
	Failed    uint64 `json:"failed"`    // SERVFAIL because no upstream answered
	Refused   uint64 `json:"refused"`   // REFUSED for want of an upstream, NOTIMP for what is not a query, BADVERS
	Overload  uint64 `json:"overload"`  // SERVFAIL because of MaxInFlight
	Malformed uint64 `json:"malformed"` // dropped or answered FORMERR
	Truncated uint64 `json:"truncated"` // upstream answers cut to what the client takes over UDP
	Retries   uint64 `json:"retries"`   // tries at an upstream after the first
	InFlight  int    `json:"in_flight"` // queries being worked on
}

type counters struct {
	queries, mesh, forwarded, failed, refused, overload, malformed, truncated, retries atomic.Uint64
}

// Server answers DNS queries.
type Server struct {
	cfg   Config
	log   *zap.Logger
	pairs []pair

	inFlight chan struct{} // one for each query being worked on
	forwards chan struct{} // one for each of these that waits for an upstream
	conns    chan struct{} // one for each TCP client
	count    counters
	failing  atomic.Bool // the last query that was forwarded had no answer

	upstreams atomic.Pointer[upstreams]
	ran       atomic.Bool
}

// pair is one address.
type pair struct {
	udp *udpSocket
	tcp *net.TCPListener
}

// New checks cfg and binds every address over UDP and TCP, or none. The error
// names the address, and says so when another program has the port or when an
// upstream is the server itself.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if cfg.Lookup == nil {
		return nil, errors.New("dns: no Lookup is given")
	}
	s := &Server{
		cfg:      cfg,
		log:      cfg.Log,
		inFlight: make(chan struct{}, cfg.MaxInFlight),
		forwards: make(chan struct{}, cfg.MaxInFlight-cfg.MaxInFlight/4),
		conns:    make(chan struct{}, cfg.MaxConns),
	}
	err := s.bind()
	if err == nil {
		err = s.SetUpstreams(cfg.Upstreams)
	}
	if err != nil {
		s.closeSockets()
		return nil, err
	}
	return s, nil
}

func (c Config) withDefaults() Config {
	c.ClusterDomain = strings.Trim(strings.ToLower(or(c.ClusterDomain, "cluster.local")), ".")
	c.Namespace = strings.ToLower(c.Namespace)
	c.TTL = or(c.TTL, 5*time.Second)
	c.Timeout = or(c.Timeout, 2*time.Second)
	c.IdleTimeout = or(c.IdleTimeout, 10*time.Second)
	c.MaxInFlight = max(4, or(c.MaxInFlight, 1024))
	c.MaxConns = max(1, or(c.MaxConns, 128))
	c.Log = or(c.Log, zap.NewNop())
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Run answers until ctx ends. It blocks, and when it returns its sockets are
// closed and nothing it started is left: queries under way get no answer. It may
// be called once. The error is nil after the end of ctx; else it names the
// socket that failed.
func (s *Server) Run(ctx context.Context) error {
	if s.ran.Swap(true) {
		panic("dns: Run was called twice")
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var loops, queries sync.WaitGroup
	for _, p := range s.pairs {
		loops.Go(func() { end(s.serveUDP(ctx, p.udp, &queries)) })
		loops.Go(func() { end(s.serveTCP(ctx, p.tcp, &queries)) })
	}
	<-ctx.Done()
	s.closeSockets()
	loops.Wait()
	queries.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Close closes the sockets of a Server whose Run was never called.
func (s *Server) Close() error {
	s.closeSockets()
	return nil
}

func (s *Server) closeSockets() {
	for _, p := range s.pairs {
		_ = p.udp.conn.Close() // closed already, or nothing that could be done
		_ = p.tcp.Close()
	}
}

// Addrs are the bound addresses, in the order of Config.Addrs.
func (s *Server) Addrs() (addrs []netip.AddrPort) {
	for _, p := range s.pairs {
		addrs = append(addrs, p.udp.addr)
	}
	return addrs
}

// SetUpstreams replaces the upstream resolvers; queries under way keep theirs.
// It refuses an address of the server itself, and changes nothing then.
func (s *Server) SetUpstreams(addrs []netip.AddrPort) error {
	for _, a := range addrs {
		if !a.IsValid() || a.Port() == 0 {
			return fmt.Errorf("dns: upstream %v is not an address with a port", a)
		}
		if s.isSelf(a) {
			return fmt.Errorf("dns: upstream %v is this server itself: queries would go round for ever", a)
		}
	}
	s.upstreams.Store(newUpstreams(addrs))
	return nil
}

// isSelf tells whether a query sent to a would come back here.
func (s *Server) isSelf(a netip.AddrPort) bool {
	ip := a.Addr().Unmap().WithZone("")
	for _, own := range s.Addrs() {
		if own.Port() != a.Port() {
			continue
		}
		if own.Addr().WithZone("") == ip {
			return true
		}
		if own.Addr().IsUnspecified() && own.Addr().Is4() == ip.Is4() && isLocal(ip) {
			return true
		}
	}
	return false
}

// isLocal tells whether ip is of this machine.
func isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap().WithZone("") == ip {
			return true
		}
	}
	return false
}

// Figures returns the counts. They are not of one instant.
func (s *Server) Figures() Figures {
	return Figures{
		Queries:   s.count.queries.Load(),
		Mesh:      s.count.mesh.Load(),
		Forwarded: s.count.forwarded.Load(),
		Failed:    s.count.failed.Load(),
		Refused:   s.count.refused.Load(),
		Overload:  s.count.overload.Load(),
		Malformed: s.count.malformed.Load(),
		Truncated: s.count.truncated.Load(),
		Retries:   s.count.retries.Load(),
		InFlight:  len(s.inFlight),
	}
}
