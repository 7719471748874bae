package telemetry

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Service counts the requests of one service in one direction. Series come into being when they first count something.
type Service struct {
	reg      *Registry
	key      serviceKey // as in the labels
	outbound bool

	counts
	retries, denied, mirrors, faults, hedges, overloads, ejections words
	deniedBy, audited                                              words

	forgotten bool // guarded by reg.mu
}

// Service returns the handle for requests to (outbound) or of (inbound, gateway) a service. Equal arguments give the same handle until Forget;
// above Options.MaxServices all get that of "other".
func (r *Registry) Service(d Direction, service, namespace string) *Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := serviceKey{d, service, namespace}
	if s := r.services[key]; s != nil {
		return s
	}
	if r.perSide[d] < r.opts.MaxServices {
		r.perSide[d]++
		return r.serviceLocked(key)
	}
	if s := r.services[serviceKey{d, other, ""}]; s != nil {
		return s
	}
	return r.serviceLocked(serviceKey{d, other, ""})
}

func (r *Registry) serviceLocked(key serviceKey) *Service {
	s := &Service{reg: r, key: key, outbound: key.direction == Outbound}
	s.retries = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.retries, w) }}
	s.denied = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.denied, w) }}
	s.deniedBy = words{mu: &r.mu, most: maxRules, make: func(w string) prometheus.Counter { return s.seriesLocked(r.deniedBy, w) }}
	s.audited = words{mu: &r.mu, most: maxRules, make: func(w string) prometheus.Counter { return s.seriesLocked(r.audited, w) }}
	s.mirrors = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.mirrors, w) }}
	s.faults = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.faults, w) }}
	s.hedges = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.hedges, w) }}
	s.overloads = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.overloads, w) }}
	s.ejections = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.ejections, w) }}
	r.services[key] = s
	return s
}

// Forget removes the series of a service that is no longer used, in all directions, and those of its endpoints.
// Handles still held go on working and show in Totals only.
func (r *Registry) Forget(service, namespace string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range []Direction{Inbound, Outbound, Gateway} {
		key := serviceKey{d, service, namespace}
		if s := r.services[key]; s != nil && key != (serviceKey{d, other, ""}) {
			s.forgotten = true
			delete(r.services, key)
			r.perSide[d]--
		}
	}
	if service == other && namespace == "" {
		return
	}
	gone := prometheus.Labels{"service": service, "namespace": namespace}
	for _, v := range []*prometheus.CounterVec{r.retries, r.denied, r.deniedBy, r.audited, r.mirrors, r.faults, r.hedges, r.circuitOpens, r.overloads, r.ejections} {
		v.DeletePartialMatch(gone)
	}
	r.circuitState.DeletePartialMatch(gone)
	r.ejected.DeletePartialMatch(gone)
	for key := range r.circuits {
		if key.service == service && key.namespace == namespace {
			delete(r.circuits, key)
		}
	}
}

// Done counts a request that has ended. code is the status sent to the client, 0 if none was; the bytes are those of the bodies,
// from the client (in) and to it (out).
func (s *Service) Done(code int, d time.Duration, bytesIn, bytesOut int64) {
	s.codes[codes.place(code)].Add(1)
	s.observe(d)
	s.Bytes(bytesIn, bytesOut)
	t := &s.reg.totals.in
	if s.outbound {
		t = &s.reg.totals.out
	}
	t.requests.Add(1)
	t.nanos.Add(uint64(max(d, 0)))
	if code == 0 || code >= 500 {
		t.errors.Add(1)
	}
}

// GRPC counts a gRPC call that has ended, beside Done. code is the grpc-status sent to the client, below 0 if none was.
func (s *Service) GRPC(code int) { s.grpc[grpcPlace(code)].Add(1) }

// Bytes counts bytes of an opaque connection to the service, from the client (in) and to it (out). Done counts those of requests.
func (s *Service) Bytes(in, out int64) {
	if in > 0 {
		s.received.Add(uint64(in))
	}
	if out > 0 {
		s.sent.Add(uint64(out))
	}
}

// Routed counts a choice of endpoint.
func (s *Service) Routed() {
	s.routed.Add(1)
	s.side(&s.reg.totals.in.routed, &s.reg.totals.out.routed)
}

// RoutingFailed counts a choice that found no usable endpoint.
func (s *Service) RoutingFailed() {
	s.unrouted.Add(1)
	s.side(&s.reg.totals.in.unrouted, &s.reg.totals.out.unrouted)
}

// BackendFailed counts a try that an endpoint failed.
func (s *Service) BackendFailed() {
	s.failed.Add(1)
	s.side(&s.reg.totals.in.failed, &s.reg.totals.out.failed)
}

func (s *Service) side(in, out *atomic.Uint64) {
	if s.outbound {
		in = out
	}
	in.Add(1)
}

// Retried counts a request sent again.
func (s *Service) Retried() { s.retries.get("sent").Inc() }

// RetryRefused counts a request not sent again for this reason: "budget", "deadline", "unsafe".
func (s *Service) RetryRefused(reason string) { s.retries.get(reason).Inc() }

// RateLimited counts a request over the limit.
func (s *Service) RateLimited() { s.limited.Add(1) }

// Denied counts a request or connection refused by policy: reason is one word ("no-rule", "method", …), rule the id of the rule that
// decided, "" where none did. Of more than 256 rules those that came last count as "other".
func (s *Service) Denied(reason, rule string) {
	s.denied.get(reason).Inc()
	if rule != "" {
		s.deniedBy.get(rule).Inc()
	}
}

// Audited counts a request or connection that a rule with action audit is about.
func (s *Service) Audited(rule string) { s.audited.get(rule).Inc() }

// Mirrored counts a copy of a request to the service by what became of it: "sent" (and answered), "failed", "crowded" (too many were
// under way), "too_large" (its body was not kept).
func (s *Service) Mirrored(outcome string) { s.mirrors.get(outcome).Inc() }

// Hedged counts a request that was sent a second time by which answer was used: the second's ("won") or the first's ("lost"); "budget" one
// that was not sent again for want of budget.
func (s *Service) Hedged(outcome string) { s.hedges.get(outcome).Inc() }

// Fault counts a fault that a rule injected: "delay" or "abort".
func (s *Service) Fault(kind string) { s.faults.get(kind).Inc() }

func (s *Service) seriesLocked(vec *prometheus.CounterVec, last string) prometheus.Counter {
	if s.forgotten { // a series now would stay for ever
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "forgotten"})
	}
	return vec.WithLabelValues(string(s.key.direction), s.key.service, s.key.namespace, last)
}
