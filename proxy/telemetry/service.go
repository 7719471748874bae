package telemetry

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Service counts the requests of one service in one direction. Series come into being when they first count something.
type Service struct {
	reg      *Registry
	key      serviceKey // as in the labels
	outbound bool

	duration       prometheus.Observer
	codes          [6]atomic.Pointer[[100]atomic.Pointer[counter]] // by hundreds; [0] holds only what is no status
	received, sent atomic.Pointer[counter]
	routed         atomic.Pointer[counter]
	unrouted       atomic.Pointer[counter]
	failed         atomic.Pointer[counter]
	limited        atomic.Pointer[counter]
	retries        words
	denied         words

	forgotten bool // guarded by reg.mu
}

// counter gives the interface a size, for atomic.Pointer.
type counter struct{ prometheus.Counter }

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
	s.duration = r.duration.WithLabelValues(string(key.direction), key.service, key.namespace)
	s.retries = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.retries, w) }}
	s.denied = words{mu: &r.mu, make: func(w string) prometheus.Counter { return s.seriesLocked(r.denied, w) }}
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
	for _, v := range []*prometheus.CounterVec{r.requests, r.bytes, r.retries, r.limited, r.denied, r.picks, r.failures, r.circuitOpens} {
		v.DeletePartialMatch(gone)
	}
	r.duration.DeletePartialMatch(gone)
	r.circuitState.DeletePartialMatch(gone)
	for key := range r.circuits {
		if key.service == service && key.namespace == namespace {
			delete(r.circuits, key)
		}
	}
}

// Done counts a request that has ended. code is the status sent to the client, 0 if none was; the bytes are those of the bodies,
// from the client (in) and to it (out).
func (s *Service) Done(code int, d time.Duration, bytesIn, bytesOut int64) {
	s.code(code).Inc()
	s.duration.Observe(d.Seconds())
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

// Bytes counts bytes of an opaque connection to the service, from the client (in) and to it (out). Done counts those of requests.
func (s *Service) Bytes(in, out int64) {
	if in > 0 {
		s.counter(&s.received, s.reg.bytes, "received").Add(float64(in))
	}
	if out > 0 {
		s.counter(&s.sent, s.reg.bytes, "sent").Add(float64(out))
	}
}

// Routed counts a choice of endpoint.
func (s *Service) Routed() {
	s.counter(&s.routed, s.reg.picks, "routed").Inc()
	s.side(&s.reg.totals.in.routed, &s.reg.totals.out.routed)
}

// RoutingFailed counts a choice that found no usable endpoint.
func (s *Service) RoutingFailed() {
	s.counter(&s.unrouted, s.reg.picks, "no_endpoint").Inc()
	s.side(&s.reg.totals.in.unrouted, &s.reg.totals.out.unrouted)
}

// BackendFailed counts a try that an endpoint failed.
func (s *Service) BackendFailed() {
	s.counter(&s.failed, s.reg.failures, "").Inc()
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
func (s *Service) RateLimited() { s.counter(&s.limited, s.reg.limited, "").Inc() }

// Denied counts a request or connection refused by a rule: reason is one word ("policy", "jwt", "mtls", …).
func (s *Service) Denied(reason string) { s.denied.get(reason).Inc() }

// code returns the counter of a status.
func (s *Service) code(code int) *counter {
	hundreds, rest := code/100, code%100
	if code < 100 || code > 599 {
		hundreds, rest = 0, 0
		if code != 0 {
			rest = 1
		}
	}
	block := s.codes[hundreds].Load()
	if block == nil {
		block = new([100]atomic.Pointer[counter])
		if !s.codes[hundreds].CompareAndSwap(nil, block) {
			block = s.codes[hundreds].Load()
		}
	}
	if c := block[rest].Load(); c != nil {
		return c
	}
	return s.counter(&block[rest], s.reg.requests, codeLabel(code))
}

// codeLabel is the code itself for registered ones and 499 (nginx: the client went away); others are counted by class,
// so that a server that makes up codes makes no series.
func codeLabel(code int) string {
	switch {
	case code == 0, code == 499, http.StatusText(code) != "":
		return strconv.Itoa(code)
	case code >= 100 && code <= 599:
		return strconv.Itoa(code/100) + "xx"
	}
	return other
}

// counter returns what slot holds, the counter of vec with this service's labels (and last, unless empty), resolved at its first use.
func (s *Service) counter(slot *atomic.Pointer[counter], vec *prometheus.CounterVec, last string) *counter {
	if c := slot.Load(); c != nil {
		return c
	}
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	if slot.Load() == nil {
		slot.Store(&counter{s.seriesLocked(vec, last)})
	}
	return slot.Load()
}

func (s *Service) seriesLocked(vec *prometheus.CounterVec, last string) prometheus.Counter {
	if s.forgotten { // a series now would stay for ever
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "forgotten"})
	}
	labels := []string{string(s.key.direction), s.key.service, s.key.namespace}
	if last != "" {
		labels = append(labels, last)
	}
	return vec.WithLabelValues(labels...)
}
