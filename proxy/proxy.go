// Package proxy composes the sidecar: it takes an app's connections, finds the
// service each is for, applies the mesh's policy and carries the bytes. The
// order of things is written here; each mechanism has a package of its own below.
package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/dns"
	"github.com/weir-mesh/weir/proxy/feed"
	"github.com/weir-mesh/weir/proxy/flows"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/h2"
	"github.com/weir-mesh/weir/proxy/identity"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/resolve"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// AppPort is a port the app listens on, offered to the mesh as an endpoint.
type AppPort struct {
	Port     uint16
	Protocol string // one of policy.Protocols
}

// Config is everything a sidecar needs. Addresses are "host:port".
type Config struct {
	Service   policy.ServiceName
	ID        string // names this proxy; made from the service and host name when empty
	Version   string
	Control   []string // control plane addresses, tried in turn
	TokenFile string   // join token
	Joining   Joining  // what there may be in the place of a join token
	StateDir  string   // key, certificate and last known good state; "" keeps none

	AppPorts   []AppPort
	Advertise  []netip.Addr // addresses of the app; found from the interfaces when empty
	HealthPath string
	Weight     int // 0 drains: no traffic while others have weight
	Labels     map[string]string

	Outbound, Inbound, DNS []string // listen addresses
	Admin                  string
	Profiles               bool // Admin also answers with Go's profiles, under /debug/pprof/
	ResolvConf             dns.ResolvConf
	ClusterDomain          string

	ToMesh, ToApp Control // prepare sockets to others and to the app; nil does nothing
	AppSource     AppSource
	OriginalDst   func(syscall.Conn) (netip.AddrPort, error)
	// NotRedirected tells the error of OriginalDst for a connection that came to
	// the proxy itself from its other errors; nil takes every error for it.
	NotRedirected func(error) bool

	Loops         int           // event loops; 0 is one for each processor
	MaxConns      int           // connections at once in each direction; 0 is 10 000
	DrainDelay    time.Duration // between leaving the mesh and refusing connections
	DrainTimeout  time.Duration // from then until what is left is cut
	AccessLog     io.Writer     // where the access log goes when the mesh turns it on
	ConnectLimit  time.Duration // for one dial with its handshake; 0 is 5 s
	HandshakeTime time.Duration // for a peer's first bytes and handshake; 0 is 10 s
	Log           *zap.Logger
	// SetLog takes the level and the format that the mesh wants of Log, either of
	// them empty where it says nothing; nil leaves Log alone.
	SetLog func(level, format string)
	// AccessLogAs gives the writer for where the mesh wants the access log: "stdout",
	// "stderr" or another word, for which nil leaves it where it is. The func may be
	// nil.
	AccessLogAs func(output string) io.Writer
}

// Proxy is one sidecar. Make it with New, then Run it once.
type Proxy struct {
	cfg    Config
	log    *zap.Logger
	local  map[netip.Addr]bool // addresses of this host
	toMesh *dialer             // sockets that are not redirected again
	toApp  *dialer

	loops                 []*loop.Loop
	hard                  context.Context // ends when connections are cut
	meshDialer, appDialer loop.Dialer     // toMesh and toApp for the loops

	id      *identity.Identity
	server  func() *tls.Config // for calls from other workloads; made once
	feed    *feed.Feed
	names   *resolve.Resolver // of hosts outside the mesh
	metrics *telemetry.Registry
	access  *telemetry.AccessLog
	h1      *h1.Server
	h2      *h2.Server
	conns   connectionMetrics

	mesh  atomic.Pointer[policy.Mesh]
	guard atomic.Pointer[guard]
	dests atomic.Pointer[destinations]

	apps    []appPools // by loop
	mirrors []int      // by loop, each its loop's alone: copies under way
	flows   []flows.Table
	pending flows.Pending // what the loops handed over
	live    liveConns
	peers   peers
	// by loop, each its loop's alone
	underway []underway

	stirred chan struct{} // of one place: a circuit has changed
	skewed  atomic.Bool   // our clock is not the control plane's, and that was said
	issuers chan struct{} // likewise: tokens are of other issuers

	mu        sync.Mutex // guards what follows and orders changes of dests
	endpoints map[endpointKey]*endpoint
}

// New checks the configuration. It binds and starts nothing.
func New(cfg Config) (*Proxy, error) {
	cfg.setDefaults()
	if err := cfg.Service.Validate(); err != nil {
		return nil, fmt.Errorf("service %s: %w", cfg.Service, err)
	}
	local, err := localAddresses()
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Log,
		local:     local,
		toMesh:    &dialer{cfg.ToMesh},
		toApp:     &dialer{cfg.ToApp},
		metrics:   telemetry.New(telemetry.Options{}),
		endpoints: map[endpointKey]*endpoint{},
		stirred:   make(chan struct{}, 1),
		issuers:   make(chan struct{}, 1),
		h1:        h1.NewServer(h1.Config{Refusal: refuseUnread}),
		h2:        h2.NewServer(h2.Config{Refusal: refuseUnread}),
	}
	p.meshDialer, p.appDialer = p.toMesh.onLoop(), p.toApp.onLoop()
	if err := errors.Join(p.toMesh.check(), cfg.AppSource.check()); err != nil {
		return nil, err
	}
	if p.names, err = p.newNames(); err != nil {
		return nil, err
	}
	if cfg.AccessLog != nil {
		p.access = telemetry.NewAccessLog(cfg.AccessLog, 0)
		p.metrics.WatchAccessLog(p.access)
	}
	p.conns = newConnectionMetrics(p.metrics, p.metrics.Service(telemetry.Inbound, cfg.Service.Name, cfg.Service.Namespace))
	p.dests.Store(&destinations{})
	p.mesh.Store(&policy.Mesh{Metrics: true})
	nobody, err := p.newGuard(policy.Inbound{Service: cfg.Service, MTLS: policy.Strict}, nil, time.Now())
	if err != nil {
		return nil, err
	}
	p.guard.Store(nobody)
	if err := p.follow(); err != nil {
		return nil, err
	}
	p.server = sync.OnceValue(func() *tls.Config { return p.id.ServerTLS() })
	return p, nil
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.NotRedirected == nil {
		c.NotRedirected = func(error) bool { return true }
	}
	c.ConnectLimit = cmp.Or(c.ConnectLimit, 5*time.Second)
	c.HandshakeTime = cmp.Or(c.HandshakeTime, 10*time.Second)
	c.Loops = cmp.Or(c.Loops, runtime.GOMAXPROCS(0))
	c.MaxConns = cmp.Or(c.MaxConns, 10_000)
	c.HealthPath = cmp.Or(c.HealthPath, "/health")
}

// Run joins the mesh, opens the ports and carries traffic until ctx ends; then
// it leaves the mesh, drains and returns. Its error is nil after a drain.
func (p *Proxy) Run(ctx context.Context) error {
	if err := p.id.Start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ports, err := p.open()
	if err != nil {
		return err
	}
	defer ports.close()

	// Parts end in the order of the drain, so each has a context of its own.
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	p.hard = hard
	if err := p.makeLoops(); err != nil {
		return fmt.Errorf("event loops: %w", err)
	}
	turning := make(chan struct{})
	go func() { defer close(turning); p.runLoops() }()
	defer func() { p.closeLoops(); <-turning; p.closeAcross() }()

	g, failed := errgroup.WithContext(hard)
	g.Go(func() error { return named("follow the control plane", p.feed.Run(hard)) })
	g.Go(func() error { return named("keep the certificate", p.id.Run(hard)) })
	g.Go(func() error { return named("dns", ports.dns.Run(hard)) })
	g.Go(func() error { return named("admin", ports.admin.run(hard)) })
	g.Go(func() error { p.housekeep(hard); return nil })
	g.Go(func() error { p.keepSettled(hard); return nil })
	g.Go(func() error { p.keepTokens(hard); return nil })
	g.Go(func() error { p.names.Run(hard); return nil })
	if p.access != nil {
		g.Go(func() error { return named("access log", p.access.Run(hard)) })
	}
	g.Go(func() error {
		return named("outbound", ports.outbound.Run(hard, p.loops, p.serveOutbound))
	})
	g.Go(func() error {
		return named("inbound", ports.inbound.Run(hard, p.loops, p.serveInbound))
	})
	p.log.Info("running", zap.Stringer("service", p.cfg.Service), zap.Strings("outbound", p.cfg.Outbound),
		zap.Strings("inbound", p.cfg.Inbound), zap.Time("certificate_until", p.id.Expiry()))

	select {
	case <-ctx.Done():
		p.drain(ports)
	case <-failed.Done():
	}
	cut()
	return g.Wait()
}

// drain is the order of a shutdown.
func (p *Proxy) drain(ports *ports) {
	p.log.Info("draining", zap.Duration("at_most", p.cfg.DrainTimeout))
	p.feed.Leave()               // first stop being advertised,
	time.Sleep(p.cfg.DrainDelay) // then end connections between two requests,
	limit, cancel := context.WithTimeout(context.Background(), p.cfg.DrainTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var cutOut, cutIn int
	wg.Go(func() { cutIn = ports.inbound.Drain(limit) })
	wg.Go(func() { cutOut = ports.outbound.Drain(limit) })
	wg.Wait() // and at the limit cut what is left.
	p.log.Info("drained", zap.Int("cut_inbound", cutIn), zap.Int("cut_outbound", cutOut))
}

// ports are the sockets of a running proxy.
type ports struct {
	outbound, inbound *listen.Listener
	dns               *dns.Server
	admin             *admin
}

func (p *Proxy) open() (_ *ports, err error) {
	o := &ports{}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if o.outbound, err = listen.New(p.listenConfig(p.cfg.Outbound)); err != nil {
		return o, fmt.Errorf("outbound: %w", err)
	}
	if o.inbound, err = listen.New(p.listenConfig(p.cfg.Inbound)); err != nil {
		return o, fmt.Errorf("inbound: %w", err)
	}
	o.dns, err = dns.New(dns.Config{
		Addrs: p.cfg.DNS, Namespace: p.cfg.Service.Namespace, ClusterDomain: p.cfg.ClusterDomain,
		Lookup: p.lookupName, LookupHost: p.lookupHost, Upstreams: p.cfg.ResolvConf.Nameservers, Dial: p.toMesh.DialContext, Log: p.log.Named("dns"),
	})
	if err != nil {
		return o, fmt.Errorf("dns: %w", err)
	}
	if o.admin, err = p.newAdmin(o); err != nil {
		return o, fmt.Errorf("admin: %w", err)
	}
	return o, nil
}

func (p *Proxy) listenConfig(addrs []string) listen.Config {
	return listen.Config{Addrs: addrs, MaxConns: p.cfg.MaxConns, OriginalDst: p.cfg.OriginalDst, Log: p.log.Named("listen")}
}

// close closes what was opened; sockets of parts that ran are closed already.
func (o *ports) close() {
	if o.outbound != nil {
		_ = o.outbound.Close()
	}
	if o.inbound != nil {
		_ = o.inbound.Close()
	}
	if o.dns != nil {
		_ = o.dns.Close()
	}
	if o.admin != nil {
		o.admin.close()
	}
}

// housekeep refreshes slow gauges.
func (p *Proxy) housekeep(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		if c, ok := p.id.Certificate(); ok {
			p.metrics.CertificateExpiry(c.Ends)
			p.metrics.TrustExpiry(c.TrustEnds)
		}
		p.metrics.ControlConnected(p.feed.Connected())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func named(step string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", step, err)
}

// localAddresses are the addresses of this network namespace: what reaches one
// of them comes to this proxy's own app.
func localAddresses() (map[netip.Addr]bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list local addresses: %w", err)
	}
	out := map[netip.Addr]bool{}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			out[prefix.Addr().Unmap()] = true
		}
	}
	return out, nil
}
