package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/feed"
	"github.com/weir-mesh/weir/proxy/identity"
	"github.com/weir-mesh/weir/proxy/jwt"
	"github.com/weir-mesh/weir/proxy/loop"
)

// follow makes the parts that speak with the control plane.
func (p *Proxy) follow() error {
	cfg := &p.cfg
	source, ids, err := cfg.Joining.source(cfg.Service, p.log.Named("spire"))
	if err != nil {
		return err
	}
	id, err := identity.New(identity.Config{
		AccountTokenFile: cfg.Joining.AccountTokenFile, ControlCAFile: cfg.Joining.ControlCAFile, Source: source, Template: ids,
		Control: cfg.Control, TokenFile: cfg.TokenFile, Service: cfg.Service, CacheDir: cfg.StateDir,
		Dial: p.toMesh.DialContext, Now: time.Now, OnClock: p.clockTold, Log: p.log.Named("identity"),
	})
	if err != nil {
		return err
	}
	p.id = id
	if cfg.ID == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w", err)
		}
		cfg.ID = fmt.Sprintf("%s.%s@%s-%s", cfg.Service.Name, cfg.Service.Namespace, host, p.firstAddress())
	}
	own := p.ownEndpoints()
	for i := range own {
		if problems := own[i].Validate(); len(problems) > 0 {
			return fmt.Errorf("the app's port %d as an endpoint: %w", own[i].Port, problems)
		}
	}
	state := ""
	if cfg.StateDir != "" {
		state = filepath.Join(cfg.StateDir, "state.pb")
	}
	p.feed, err = feed.New(feed.Config{
		Control: cfg.Control, TLS: id.ControlTLS, Dial: p.toMesh.DialContext,
		ProxyID: cfg.ID, Version: cfg.Version, Service: cfg.Service,
		Addresses: p.addresses(), Endpoints: own, Figures: p.figures, Report: p.report,
		Demands: p.demands, FiguresEvery: func() time.Duration { return p.mesh.Load().MetricsInterval },
		StateFile: state, Now: time.Now, Log: p.log.Named("feed"),
		Hooks: feed.Hooks{OnMesh: p.setMesh, OnInbound: p.setInbound, OnService: p.setService, OnShares: p.takeShares, OnClock: p.clockTold},
	})
	return err
}

// addresses are those the app is reached at: all of this host that are not
// loopback nor link-local, in a stable order.
func (p *Proxy) addresses() []netip.Addr {
	if len(p.cfg.Advertise) > 0 {
		return p.cfg.Advertise
	}
	var out []netip.Addr
	for a := range p.local {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() && !policy.IsVirtual(a) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b netip.Addr) int { return a.Compare(b) })
	return out
}

func (p *Proxy) firstAddress() string {
	if a := p.addresses(); len(a) > 0 {
		return a[0].String()
	}
	return "nowhere"
}

// ownEndpoints are the app's ports at its first address, as --app-port and its
// companions declare them.
func (p *Proxy) ownEndpoints() []policy.Target {
	addrs := p.addresses()
	if len(addrs) == 0 {
		return nil
	}
	var out []policy.Target
	for _, port := range p.cfg.AppPorts {
		t := policy.Target{Meshed: true, Endpoint: policy.DefaultEndpoint()}
		t.ID = fmt.Sprintf("%s-%s-%d", p.cfg.Service.Name, addrs[0], port.Port)
		t.ServiceName, t.Namespace = p.cfg.Service.Name, p.cfg.Service.Namespace
		t.IP, t.Port, t.Protocol = addrs[0].String(), int(port.Port), port.Protocol
		t.Weight, t.HealthCheckPath, t.Labels = p.cfg.Weight, p.cfg.HealthPath, p.cfg.Labels
		out = append(out, t)
	}
	return out
}

// renewSpread is the time in which the proxies of a mesh renew when another root
// signs: a thousand of them are 200 certificates a second so.
const renewSpread = 5 * time.Second

// setMesh takes new mesh settings from the feed.
func (p *Proxy) setMesh(m policy.Mesh) error {
	p.setRevoked(m.Revocations) // whatever is wrong with the rest
	if len(m.Bundle) > 0 {
		if err := p.id.SetBundle(m.Bundle); err != nil {
			return err
		}
	}
	p.id.SignedUnder(m.SigningRoot, renewSpread)
	p.mesh.Store(&m)
	if p.cfg.SetLog != nil {
		p.cfg.SetLog(m.LogLevel, m.LogFormat)
	}
	if p.cfg.AccessLogAs != nil && p.access != nil {
		if w := p.cfg.AccessLogAs(m.LogOutput); w != nil {
			p.access.SetOutput(w)
		}
	}
	return nil
}

// guard is what is enforced on calls to the app: the decision and what goes
// with it.
type guard struct {
	*policy.Guard
	tokens *jwt.Verifier // without a secret it takes no token
	limits inboundLimits
	byPath bool // a rule looks at the path
}

func (p *Proxy) newGuard(in policy.Inbound, old *guard, now time.Time) (*guard, error) {
	decide, err := policy.NewGuard(in)
	if err != nil {
		return nil, err
	}
	g := &guard{Guard: decide}
	var before *inboundLimits
	if old != nil {
		g.tokens = old.tokensFor(&in)
		before = &old.limits
	}
	if g.tokens == nil {
		g.tokens = p.newTokens(&in, old)
	}
	g.limits, err = newInboundLimits(&in, before, now)
	g.byPath = in.LooksAtPath() || g.limits.router != nil && g.limits.router.LooksAtPath()
	return g, err
}

// setInbound takes new rules for calls to the app, and ends the connections
// that they no longer allow.
func (p *Proxy) setInbound(in policy.Inbound) error {
	if in.Service != p.cfg.Service {
		return fmt.Errorf("inbound is for %s, this proxy is beside %s", in.Service, p.cfg.Service)
	}
	g, err := p.newGuard(in, p.guard.Load(), time.Now())
	if err != nil {
		return err
	}
	p.guard.Store(g)
	p.tokensChanged()
	p.askForNew(g.limits.all())
	if n := p.live.recheck(g); n > 0 {
		p.log.Info("connections cut: policy allows them no more", zap.Int("connections", n))
	}
	p.recheckRequests(g)
	return nil
}

// destination finds a service, asking the control plane for it on first use.
func (p *Proxy) destination(l *loop.Loop, name policy.ServiceName) *destination {
	if d := p.dests.Load().byName[name]; d != nil {
		p.feed.Touch(name)
		return p.found(l, d)
	}
	var d *destination
	l.Block(func() { d = p.askFor(p.hard, name) })
	if d != nil {
		d = p.found(l, d)
	}
	return d
}

// askFor waits for the control plane's answer about a service.
func (p *Proxy) askFor(ctx context.Context, name policy.ServiceName) *destination {
	if !p.feed.Service(ctx, name) {
		return nil
	}
	return p.dests.Load().byName[name]
}

// lookupName answers the DNS server.
func (p *Proxy) lookupName(ctx context.Context, namespace, name string) (v4, v6 netip.Addr, ok bool) {
	n := policy.ServiceName{Namespace: namespace, Name: name}
	if n.Validate() != nil {
		return v4, v6, false
	}
	d := p.askFor(ctx, n)
	if d == nil {
		p.metrics.DNSQuery("forwarded")
		return v4, v6, false
	}
	p.metrics.DNSQuery("mesh")
	return d.svc.Virtual4, d.svc.Virtual6, true
}

func (p *Proxy) report() policy.Report {
	circuits, more := p.circuits(time.Now())
	r := policy.Report{ResidentBytes: residentBytes(), Clock: time.Now(), Circuits: circuits, CircuitsLeftOut: more}
	if c, ok := p.id.Certificate(); ok {
		r.CertificateExpires, r.CertificateBegins, r.CertificateSerial = c.Ends, c.Begins, c.Serial
		r.CertificateRoot, r.TrustedRoots = c.Root, c.Trusted
	}
	p.reportFlows(&r)
	return r
}

// residentBytes is the process's memory as ps shows it; 0 where /proc does not
// tell.
func residentBytes() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident uint64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * uint64(os.Getpagesize())
}

func (p *Proxy) figures() policy.Figures {
	t := p.metrics.Totals()
	return policy.Figures{
		InboundRequests: t.InboundRequests, OutboundRequests: t.OutboundRequests, RequestErrors: t.Errors,
		RequestDurationTotal: t.DurationTotal, CircuitBreakerOpens: t.CircuitOpens,
		RequestsRouted: t.RequestsRouted, RoutingFailures: t.RoutingFailures, BackendFailures: t.BackendFailures,
	}
}
