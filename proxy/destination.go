package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/outlier"
	"github.com/weir-mesh/weir/proxy/ratelimit"
	"github.com/weir-mesh/weir/proxy/retry"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// destinations are the services this proxy calls, compiled. Immutable; one
// atomic load gives all of it.
type destinations struct {
	byName map[policy.ServiceName]*destination
}

// destination is one service as its latest resource has it, made ready for
// requests. What must outlive a change (circuits, latencies, pools, counts) is
// in what it points to.
type destination struct {
	svc         *policy.Service
	missing     []string // hosts outside the mesh of which no address is known
	router      *policy.Router
	byPath      bool // a rule looks at the path
	picks       map[pickKey]*pick
	ports       map[uint16]bool   // on which an endpoint listens, healthy or not
	limits      []*limit          // of all its requests, as far as they are counted here
	routeLimits map[string]*limit // by the traffic rule
	budget      *retry.Budget
	affinity    *affinity         // nil when there is none
	hedges      map[string]*hedge // by rule
	metrics     *telemetry.Service
	label       string // "service.namespace", for the log
	hashKey     hashKey
	gates       *gates

	members []*endpoint     // in the order of the service's
	watch   *watch          // nil where outliers are not looked for
	hosts   []*outlier.Host // those that are compared,
	hosted  []*endpoint     // and whose they are
}

// endpointKey tells endpoints apart over changes of their service.
type endpointKey struct {
	service policy.ServiceName
	id      string
	addr    netip.AddrPort
	mtls    bool
}

// endpoint is what is known and kept of one endpoint.
type endpoint struct {
	id        string
	addr      netip.AddrPort
	at        string // addr as text
	protocol  string
	external  policy.External // of one outside the mesh
	host      string          // "" in the mesh
	hostField string          // host as requests name it
	origin    *origin         // TLS that the proxy begins; nil passes on what the app says
	mtls      bool            // a proxy is beside it, and policy does not disable mTLS
	stats     *balance.Stats
	judged    *outlier.Host    // nil where outliers are not looked for
	circuit   *breaker.Circuit // nil when circuits are off
	order     policy.CircuitOrder
	turned    *atomic.Int64      // Unix ms: when the circuit last opened or closed, 0 for never
	limits    policy.Breaker     // what circuit was made with
	limiter   *ratelimit.Limiter // the endpoint's own; nil when it has none
	limit     policy.RateLimit   // what limiter was made with
	kept      []kept             // by loop; each is its loop's alone
	across    *across            // to it from the version of HTTP that it does not speak
	metrics   *telemetry.Endpoint
}

// setService replaces what is known of a service; nil forgets it. It is called
// by the feed for each change; an error refuses the change and the old stays.
func (p *Proxy) setService(name policy.ServiceName, svc *policy.Service) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.setServiceLocked(name, svc)
}

func (p *Proxy) setServiceLocked(name policy.ServiceName, svc *policy.Service) error {
	old := p.dests.Load()
	next := &destinations{byName: make(map[policy.ServiceName]*destination, len(old.byName)+1)}
	for n, d := range old.byName {
		if n != name {
			next.byName[n] = d
		}
	}
	var kept map[endpointKey]bool
	if svc != nil {
		d, keys, err := p.compile(svc, old.byName[name], time.Now())
		if err != nil {
			return err
		}
		next.byName[name] = d
		kept = keys
		d.gates.set(svc.Traffic.Overload)
	}
	p.dests.Store(next)
	p.stir()
	if d := next.byName[name]; d != nil {
		p.askForNew(d.allLimits())
	}
	p.dropEndpoints(name, kept)
	if was := old.byName[name]; was != nil && isExternal(was.svc) {
		p.forgetHosts()
	}
	if svc == nil {
		p.metrics.Forget(name.Name, name.Namespace)
	}
	return nil
}

// dropEndpoints forgets a service's endpoints that are in it no more. Exchanges
// under way hold on to theirs until they end.
func (p *Proxy) dropEndpoints(name policy.ServiceName, kept map[endpointKey]bool) {
	for k, e := range p.endpoints {
		if k.service == name && !kept[k] {
			delete(p.endpoints, k)
			p.closeKept(e.kept)
			e.across.close()
			e.metrics.Forget()
		}
	}
}

func (p *Proxy) compile(svc *policy.Service, old *destination, now time.Time) (*destination, map[endpointKey]bool, error) {
	router, err := policy.NewRouter(svc)
	if err != nil {
		return nil, nil, err
	}
	d := &destination{
		svc: svc, router: router, byPath: router.LooksAtPath(), affinity: newAffinity(svc.Traffic.Affinity),
		metrics: p.metrics.Service(telemetry.Outbound, svc.Name.Name, svc.Name.Namespace),
		label:   svc.Name.Name + "." + svc.Name.Namespace,
		hashKey: newHashKey(&svc.Traffic),
		gates:   &gates{},
	}
	if old != nil {
		d.gates = old.gates
	}
	if err := errors.Join(d.setLimits(old, now), d.setBudget(old, now), d.setHedges(old, now)); err != nil {
		return nil, nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	kept := map[endpointKey]bool{}
	var members []member
	var targets []policy.Target
	build := p.builder(svc)
	var known map[string]bool
	if svc.Traffic.Balancing.SlowStart > 0 {
		known = old.healthy()
	}
	d.ports = map[uint16]bool{}
	for i := range svc.Endpoints {
		d.ports[uint16(svc.Endpoints[i].Port)] = true
	}
	all, missing := p.withAddresses(svc)
	d.missing = missing
	for _, t := range all {
		sick := t.Status == policy.Unhealthy
		if sick && !build.panic {
			continue
		}
		e, key, err := p.endpointFor(svc, t, now)
		if err != nil {
			return nil, nil, fmt.Errorf("service %s: endpoint %s: %w", svc.Name, t.ID, err)
		}
		if known != nil && !sick && !known[key.id] {
			e.stats.SlowStart(now) // new, or well again; at the first sight of a service all are
		}
		kept[key] = true
		d.members = append(d.members, e)
		members, targets = append(members, member{e, t.Weight, t.Labels[policy.ZoneLabel], sick}), append(targets, t)
	}
	if err := errors.Join(d.setPicks(build, members, targets), d.setWatch(old, members, now)); err != nil {
		return nil, nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	for _, pk := range d.distinct() {
		pk.settle(&svc.Traffic.Balancing, p.cfg.Labels[policy.ZoneLabel], now)
	}
	return d, kept, nil
}

// healthy gives the ids of the endpoints that were; nil where nothing was known.
func (d *destination) healthy() map[string]bool {
	if d == nil {
		return nil
	}
	out := make(map[string]bool, len(d.svc.Endpoints))
	for i := range d.svc.Endpoints {
		if e := &d.svc.Endpoints[i]; e.Status != policy.Unhealthy {
			out[e.ID] = true
		}
	}
	return out
}

func (p *Proxy) endpointFor(svc *policy.Service, t policy.Target, now time.Time) (*endpoint, endpointKey, error) {
	mtls := t.Meshed && !svc.Traffic.SendsPlaintext(p.cfg.Service, uint16(t.Port))
	// Connections that were made under another mode are not used again.
	key := endpointKey{service: svc.Name, id: t.ID, addr: t.Addr(), mtls: mtls}
	limits := svc.Traffic.Breaker
	if t.CircuitTimeout > 0 {
		limits.Timeout = time.Duration(t.CircuitTimeout * float64(time.Second))
	}
	e := p.endpoints[key]
	watched := svc.Traffic.Outliers.Enabled
	if e != nil && e.limits == limits && e.limit == t.Limit && e.protocol == t.Protocol && (e.judged != nil) == watched && e.order == t.Circuit && e.external == t.External {
		return e, key, nil
	}
	fresh := &endpoint{
		id: t.ID, addr: key.addr, at: key.addr.String(), protocol: t.Protocol, mtls: mtls, limits: limits, limit: t.Limit,
		order: t.Circuit, turned: &atomic.Int64{},
		metrics: p.metrics.Endpoint(svc.Name.Name, svc.Name.Namespace, t.ID),
	}
	if err := fresh.outside(&t, e); err != nil {
		return nil, key, err
	}
	if e != nil && e.external == t.External { // its settings changed: latencies and connections stay
		fresh.stats, fresh.kept, fresh.across = e.stats, e.kept, e.across
	} else {
		if e != nil {
			p.closeKept(e.kept)
			e.across.close()
		}
		fresh.stats, fresh.kept, fresh.across = &balance.Stats{}, p.newKept(), &across{}
	}
	if watched {
		fresh.judged = &outlier.Host{}
		if e != nil && e.judged != nil {
			fresh.judged = e.judged
		}
	}
	if err := fresh.guard(e, now); err != nil {
		return nil, key, err
	}
	p.obey(fresh, e, now)
	p.endpoints[key] = fresh
	return fresh, key, nil
}

// guard gives an endpoint its circuit and its limit: those of the old one where
// their settings are the same.
func (e *endpoint) guard(old *endpoint, now time.Time) (err error) {
	switch {
	case !e.limits.Enabled:
	case old != nil && old.limits == e.limits:
		e.circuit = old.circuit
	default:
		e.circuit, err = breaker.New(breaker.Config{Threshold: e.limits.Threshold, Timeout: e.limits.Timeout}, now)
	}
	if err != nil || e.limit.Limit == 0 {
		return err
	}
	if old != nil && old.limit == e.limit {
		e.limiter = old.limiter
		return nil
	}
	e.limiter, err = ratelimit.New(ratelimit.Policy{Limit: e.limit.Limit, Window: e.limit.Window}, now)
	return err
}

// setBudget keeps the budget of the old destination.
func (d *destination) setBudget(old *destination, now time.Time) (err error) {
	if old != nil {
		d.budget = old.budget
		return nil
	}
	d.budget, err = retry.NewBudget(retry.BudgetConfig{}, now)
	return err
}
