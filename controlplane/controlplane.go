// Package controlplane composes the control plane: the store, the certificate
// authority, the publication to proxies, health checks and the REST API. What
// each does is in the package of its name below; here they meet.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/ca"
	"github.com/weir-mesh/weir/controlplane/flows"
	"github.com/weir-mesh/weir/controlplane/health"
	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// Config is everything a control plane needs.
type Config struct {
	DataDir     string   // the embedded store and admin.token
	ConfigFile  string   // the mesh file to follow; empty is none
	HTTPAddr    string   // REST API
	GRPCAddr    string   // proxies
	Store       []string // etcd URLs; empty is the embedded store
	StorePrefix string   // of every key in it; "" is /weir/
	// Files in PEM by which an etcd cluster is spoken to, read anew for each
	// connection, and one with USER:PASSWORD; "" for none.
	StoreCAFile, StoreCertFile, StoreKeyFile, StoreUserFile string
	// Name tells this control plane from others on the same store; "" is the
	// machine's name.
	Name        string
	TrustDomain string
	InsecureAPI bool          // no admin token; loopback only
	LeafTTL     time.Duration // of workload certificates; 0 is 24 h
	// Files of a certificate authority of one's own, PEM; "" is the mesh's own root.
	CACertFile, CAKeyFile, CAChainFile string
	// KeyEncryptionFile holds the keys by which secrets are encrypted in the store;
	// "" is in the clear.
	KeyEncryptionFile string
	// CertificateAlarm is the part of a certificate's lifetime below which it needs
	// attention; 0 is a third.
	CertificateAlarm float64
	Hosts            []string // names and addresses in the control plane's own certificate
	Joining          Joining
	Version          string
	Log              *zap.Logger
	// Ready is called once both ports answer, with their addresses.
	Ready func(http, grpc net.Addr)
	// Notify hears what a service manager may be told (sd_notify(3)); may be nil.
	Notify func(state string)
}

func (c *Config) notify(state string) {
	if c.Notify != nil {
		c.Notify(state)
	}
}

// Run serves until ctx ends. When it returns, nothing that it started is left.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	secure, err := needsTLS(cfg.HTTPAddr)
	if err != nil {
		return err
	}
	if secure && cfg.InsecureAPI {
		return fmt.Errorf("--insecure-api on %s: an API without a token is served on loopback only; use 127.0.0.1 or leave --insecure-api out", cfg.HTTPAddr)
	}
	// Before the store, which may be waited for: what is wrong here is told at once.
	file, err := newConfigFile(cfg.ConfigFile, cfg.name(), cfg.Log.Named("config"))
	if err != nil {
		return err
	}
	account, endReviews, err := cfg.Joining.kubernetes()
	if err != nil {
		return err
	}
	defer endReviews()
	spire, err := newSPIRERoots(cfg.Joining.SPIREBundleFile, cfg.TrustDomain, cfg.Log.Named("spire"))
	if err != nil {
		return err
	}
	token, err := adminToken(cfg.DataDir)
	if err != nil {
		return err
	}
	st, err := openStore(ctx, &cfg)
	if err != nil {
		return ended("start", err)
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if len(cfg.Store) > 0 {
		if token, err = sharedToken(ctx, st, cfg.DataDir, token, cfg.Log); err != nil {
			return err
		}
	}
	authority, err := newAuthority(ctx, &cfg, st, ca.Config{Account: account, Others: spire.now, IDs: policy.IDTemplate(cfg.Joining.SPIFFETemplate)})
	if err != nil {
		return err
	}
	if err := file.use(ctx, st, len(cfg.Store) == 0); err != nil {
		return err
	}
	p := &plane{cfg: cfg, file: file, spire: spire, token: token, secure: secure, started: time.Now(), store: st, ca: authority, log: cfg.Log, unmarked: make(chan struct{}, 1), turns: make(chan struct{}, 1)}
	return p.run(ctx)
}

// hosts are the names of the certificate: those asked for, and what the ports
// are bound to where that is one address.
func (c *Config) hosts() []string {
	out := slices.Clone(c.Hosts)
	for _, addr := range []string{c.HTTPAddr, c.GRPCAddr} {
		host, _, err := net.SplitHostPort(addr)
		ip, perr := netip.ParseAddr(host)
		if err == nil && host != "" && (perr != nil || !ip.IsUnspecified()) && !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	return out
}

// plane is a running control plane.
type plane struct {
	cfg     Config
	token   string
	secure  bool // the API is served over TLS
	started time.Time
	log     *zap.Logger

	file   *configFile
	spire  *spireRoots
	store  *store.Store
	ca     *ca.Authority
	view   *view
	pub    *publish.Server
	health *health.Checker
	shares *shareOut
	flows  *flows.Log
	api    *api.Server

	streams streams

	grpcAddr net.Addr // set before anything runs
	leading  atomic.Bool
	unmarked chan struct{} // of one place: endpoints or proxies have changed
	turns    chan struct{} // of one place: mTLS modes have changed
}

func (p *plane) run(ctx context.Context) error {
	p.view = newView(p.store.State(), p.ca.TrustDomain(), p.ca.Bundle)
	p.view.signingRoot = p.ca.SigningRoot
	if err := p.compose(ctx); err != nil {
		return err
	}
	if err := p.serveAPI(); err != nil {
		return err
	}
	web, err := p.listenHTTP()
	if err != nil {
		return err
	}
	defer web.close()
	grpcLn, err := net.Listen("tcp", p.cfg.GRPCAddr)
	if err != nil {
		return fmt.Errorf("--grpc-addr: %w", err)
	}
	defer func() { _ = grpcLn.Close() }()
	p.grpcAddr = grpcLn.Addr()

	watch := p.store.Watch()
	defer watch.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ended("store", p.store.Run(ctx)) })
	g.Go(func() error { return p.follow(ctx, watch) })
	g.Go(func() error { return ended("health checks", p.takePart(ctx)) })
	g.Go(func() error { p.awaitProxies(ctx); return nil })
	g.Go(func() error { p.changeModes(ctx); return nil })
	g.Go(func() error { return ended("certificate authority", p.ca.Run(ctx, p.bundleChanged)) })
	g.Go(func() error { p.watchExpiry(ctx); return nil })
	g.Go(func() error { return p.spire.run(ctx, func() { p.bundleChanged(nil) }) })
	g.Go(func() error { return ended("mesh file", p.file.run(ctx)) })
	g.Go(func() error { return ended("limits of the mesh", p.shares.run(ctx)) })
	g.Go(func() error { return ended("proxies' port", p.serveGRPC(ctx, grpcLn)) })
	g.Go(func() error { return ended("API", web.serve(ctx)) })
	p.log.Info("control plane is running", zap.Stringer("api", web.ln.Addr()), zap.Bool("https", p.secure),
		zap.Stringer("proxies", grpcLn.Addr()), zap.String("trust_domain", p.ca.TrustDomain()))
	p.cfg.notify("READY=1\nSTATUS=serving")
	if p.cfg.Ready != nil {
		p.cfg.Ready(web.ln.Addr(), grpcLn.Addr())
	}
	return g.Wait()
}

func (p *plane) compose(ctx context.Context) error {
	var err error
	p.flows = flows.New(p.started)
	p.shares = newShareOut(p.store, p.view.meshLimit)
	p.shares.self = func() (string, float64) { return p.cfg.name(), unix(p.started) }
	p.pub, err = publish.New(publish.Config{
		Source: p.view, Identity: p.ca.Peer, Attach: p.attach, SettledAt: p.settledAt(ctx), Log: p.log.Named("publish"),
		Demands: p.shares.demands, Shares: p.shares.shares, Detached: p.shares.detached,
		Flows: func(_ publish.ProxyName, counts []policy.FlowCount, leftOut uint64) {
			p.flows.Add(time.Now(), counts, leftOut)
		},
	})
	if err != nil {
		return err
	}
	p.shares.tell = p.pub.SharesChanged
	p.health, err = health.New(p.healthConfig())
	return err
}

// follow tells the parts what changed in the store.
func (p *plane) follow(ctx context.Context, watch *store.Watch) error {
	for {
		change, err := watch.Next(ctx)
		if err != nil {
			return ended("follow the store", err)
		}
		p.followTrust(ctx, &change)
		p.pub.Changed(p.view.apply(change))
		if (change.Security || change.Settings) && p.view.turning() {
			select {
			case p.turns <- struct{}{}:
			default: // it is to look already
			}
		}
		p.api.Changed(snapshot{p.store, change.State}, touched(change))
		p.health.Changed()
		select {
		case p.unmarked <- struct{}{}:
		default: // it is to look already
		}
	}
}

func (p *plane) bundleChanged([]byte) { p.pub.Changed(publish.Change{Mesh: true}) }

// serveGRPC serves proxies. At the end streams are closed at once: proxies
// keep what they know and look for the next control plane.
func (p *plane) serveGRPC(ctx context.Context, ln net.Listener) error {
	srv := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(p.ca.ServerTLS())), grpc.StreamInterceptor(p.streams.watch),
		// A proxy is idle most of the time: 32 KiB to read for each would be a third
		// of what the control plane keeps for it. What a proxy says fits into this; a
		// longer message takes more calls.
		grpc.ReadBufferSize(2<<10),
		// A window of fixed size, here and at the proxy: to find out a better one
		// gRPC sends a PING and a WINDOW_UPDATE for nearly each message (its
		// bdpEstimator), so a change and its ACK were six packets instead of two.
		grpc.StaticStreamWindowSize(64<<10), grpc.StaticConnWindowSize(64<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	wire.RegisterJoinServer(srv, p.ca.JoinServer())
	p.pub.Register(srv)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		p.pub.Close()
		srv.Stop()
	})
	err := srv.Serve(ln)
	if !stop() {
		<-stopped
		return nil
	}
	return err
}

// needsTLS tells whether the API's address may be reached from elsewhere.
func needsTLS(addr string) (bool, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false, fmt.Errorf("--http-addr %q: %w; meant is host:port", addr, err)
	}
	ip, err := netip.ParseAddr(host)
	isLoopback := host == "localhost" || (err == nil && ip.IsLoopback())
	return !isLoopback, nil
}

func ended(part string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, http.ErrServerClosed) || errors.Is(err, store.ErrClosed) {
		return nil
	}
	return fmt.Errorf("%s: %w", part, err)
}

// web is the REST API's server.
type web struct {
	ln  net.Listener
	srv *http.Server
	api *api.Server
}

func (p *plane) listenHTTP() (*web, error) {
	ln, err := net.Listen("tcp", p.cfg.HTTPAddr)
	if err != nil {
		return nil, fmt.Errorf("--http-addr: %w", err)
	}
	srv := &http.Server{
		Handler: p.api, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: zap.NewStdLog(p.log.Named("api")),
	}
	if p.secure {
		srv.TLSConfig = p.ca.HTTPSTLS()
	}
	return &web{ln: ln, srv: srv, api: p.api}, nil
}

func (w *web) serve(ctx context.Context) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		w.api.Close() // watches would not end by themselves
		limit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if w.srv.Shutdown(limit) != nil {
			_ = w.srv.Close()
		}
	})
	serve := w.srv.Serve
	if w.srv.TLSConfig != nil {
		serve = func(ln net.Listener) error { return w.srv.ServeTLS(ln, "", "") }
	}
	err := serve(w.ln)
	if !stop() {
		<-done
	}
	return err
}

func (w *web) close() { _ = w.ln.Close() }
