package proxy

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
	"github.com/weir-mesh/weir/proxy/breaker"
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
	svc       *policy.Service
	router    *policy.Router
	picks     map[pickKey]*pick
	ports     map[uint16]bool    // on which an endpoint listens, healthy or not
	limiter   *ratelimit.Limiter // all requests together, nil when there is no limit
	keyed     *ratelimit.Keyed   // by the header limitBy
	limitBy   string
	limitText string // the limit as the RateLimit-Policy field has it
	budget    *retry.Budget
	metrics   *telemetry.Service
	label     string // "service.namespace", for the log
}

// pickKey is what narrows a choice of endpoint. An empty subset, port 0 and
// http false do not narrow.
type pickKey struct {
	subset string
	port   uint16
	http   bool // only those declared so
}

// pick is a set to choose from, and what its indexes stand for.
type pick struct {
	set       *balance.Set
	endpoints []*endpoint
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
	id       string
	addr     netip.AddrPort
	at       string // addr as text
	protocol string
	mtls     bool // a proxy is beside it, and policy does not disable mTLS
	stats    *balance.Stats
	circuit  *breaker.Circuit   // nil when circuits are off
	limits   policy.Breaker     // what circuit was made with
	limiter  *ratelimit.Limiter // the endpoint's own; nil when it has none
	limit    policy.RateLimit   // what limiter was made with
	kept     []kept             // by loop; each is its loop's alone
	across   *across            // to it from the version of HTTP that it does not speak
	metrics  *telemetry.Endpoint
}

// setService replaces what is known of a service; nil forgets it. It is called
// by the feed for each change; an error refuses the change and the old stays.
func (p *Proxy) setService(name policy.ServiceName, svc *policy.Service) error {
	p.mu.Lock()
	defer p.mu.Unlock()
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
	}
	p.dests.Store(next)
	p.dropEndpoints(name, kept)
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
		svc: svc, router: router,
		metrics: p.metrics.Service(telemetry.Outbound, svc.Name.Name, svc.Name.Namespace),
		label:   svc.Name.Name + "." + svc.Name.Namespace,
	}
	if err := d.setLimits(old, now); err != nil {
		return nil, nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	kept := map[endpointKey]bool{}
	var members []*endpoint
	var targets []policy.Target
	d.ports = map[uint16]bool{}
	for _, t := range svc.Endpoints {
		d.ports[uint16(t.Port)] = true
		if t.Status == policy.Unhealthy {
			continue
		}
		e, key, err := p.endpointFor(svc, t, now)
		if err != nil {
			return nil, nil, fmt.Errorf("service %s: endpoint %s: %w", svc.Name, t.ID, err)
		}
		kept[key] = true
		members, targets = append(members, e), append(targets, t)
	}
	if err := d.setPicks(members, targets); err != nil {
		return nil, nil, fmt.Errorf("service %s: %w", svc.Name, err)
	}
	return d, kept, nil
}

func (p *Proxy) endpointFor(svc *policy.Service, t policy.Target, now time.Time) (*endpoint, endpointKey, error) {
	mtls := t.Meshed && !svc.Traffic.SendsPlaintext(p.cfg.Service)
	// Connections that were made under another mode are not used again.
	key := endpointKey{service: svc.Name, id: t.ID, addr: t.Addr(), mtls: mtls}
	limits := svc.Traffic.Breaker
	if t.CircuitTimeout > 0 {
		limits.Timeout = time.Duration(t.CircuitTimeout * float64(time.Second))
	}
	e := p.endpoints[key]
	if e != nil && e.limits == limits && e.limit == t.Limit && e.protocol == t.Protocol {
		return e, key, nil
	}
	fresh := &endpoint{
		id: t.ID, addr: key.addr, at: key.addr.String(), protocol: t.Protocol, mtls: mtls, limits: limits, limit: t.Limit,
		metrics: p.metrics.Endpoint(svc.Name.Name, svc.Name.Namespace, t.ID),
	}
	if e != nil { // its settings changed: latencies and connections stay
		fresh.stats, fresh.kept, fresh.across = e.stats, e.kept, e.across
	} else {
		fresh.stats, fresh.kept, fresh.across = &balance.Stats{}, p.newKept(), &across{}
	}
	if err := fresh.guard(e, now); err != nil {
		return nil, key, err
	}
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

// setPicks makes a set for each subset and port that an endpoint has.
func (d *destination) setPicks(members []*endpoint, targets []policy.Target) error {
	d.picks = map[pickKey]*pick{}
	for i := range members {
		t := &targets[i]
		for _, subset := range subsetsOf(t) {
			keys := []pickKey{{subset: subset}, {subset: subset, port: uint16(t.Port)}}
			if t.Protocol == "http" {
				keys = append(keys, pickKey{subset: subset, http: true})
			}
			for _, key := range keys {
				if d.picks[key] == nil {
					d.picks[key] = &pick{}
				}
				d.picks[key].endpoints = append(d.picks[key].endpoints, members[i])
			}
		}
	}
	weight := map[*endpoint]int{}
	for i, e := range members {
		weight[e] = targets[i].Weight
	}
	for _, pk := range d.picks {
		candidates := make([]balance.Endpoint, len(pk.endpoints))
		for i, e := range pk.endpoints {
			candidates[i] = balance.Endpoint{ID: e.id, Weight: weight[e], Stats: e.stats}
		}
		set, err := balance.New(balance.Strategy(d.svc.Traffic.Strategy), candidates)
		if err != nil {
			return err
		}
		pk.set = set
	}
	return nil
}

// subsetsOf lists the subsets an endpoint is in: "" and the values of its
// labels version and subset.
func subsetsOf(t *policy.Target) []string {
	out := []string{""}
	for _, label := range []string{"version", "subset"} {
		if v := t.Labels[label]; v != "" && v != out[len(out)-1] {
			out = append(out, v)
		}
	}
	return out
}

// choose gives the set for a subset: of the endpoints that listen on the port
// the app dialled. If no endpoint of the service is meant to, healthy or not,
// then of those that serve HTTP, or if none does of all. nil when there is none.
func (d *destination) choose(subset string, port uint16) *pick {
	if d.ports[port] {
		return d.picks[pickKey{subset: subset, port: port}]
	}
	if pk := d.picks[pickKey{subset: subset, http: true}]; pk != nil {
		return pk
	}
	return d.picks[pickKey{subset: subset}]
}

// protocolFor is what is declared for connections to a port of the service.
func (d *destination) protocolFor(port uint16) string {
	if pk := d.choose("", port); pk != nil {
		return pk.endpoints[0].protocol
	}
	for i := range d.svc.Endpoints { // none is healthy: what one would speak
		if t := &d.svc.Endpoints[i]; t.Port == int(port) || !d.ports[port] {
			return t.Protocol
		}
	}
	return "http"
}

// setLimits keeps budget and counts of the old destination where their
// settings are the same.
func (d *destination) setLimits(old *destination, now time.Time) error {
	if old != nil {
		d.budget = old.budget
	} else {
		budget, err := retry.NewBudget(retry.BudgetConfig{}, now)
		if err != nil {
			return err
		}
		d.budget = budget
	}
	limit := d.svc.Traffic.RateLimit
	if limit.Limit == 0 || isInboundLimit(limit) {
		return nil
	}
	d.limitText = limitPolicy(limit)
	if old != nil && old.svc.Traffic.RateLimit == limit {
		d.limiter, d.keyed, d.limitBy = old.limiter, old.keyed, old.limitBy
		return nil
	}
	var err error
	window := ratelimit.Policy{Limit: limit.Limit, Window: limit.Window}
	if limit.Key == "" {
		d.limiter, err = ratelimit.New(window, now)
	} else {
		d.limitBy = limit.Key[len("header:"):]
		d.keyed, err = ratelimit.NewKeyed(window, 0, now)
	}
	return err
}

// isInboundLimit tells limits that only the receiving proxy can count, since
// they are by who is calling.
func isInboundLimit(l policy.RateLimit) bool { return l.Key == "source" || l.Key == "jwt:sub" }
