// Package telemetry counts what the proxy does and writes its access log.
// It does not decide anything or serve a port: the parent hands it figures and mounts its handler. It is the only user of the metrics library.
//
// Handles (Service, Endpoint, Connections) are resolved once, when a service, endpoint or listener comes into use, and kept;
// their methods are safe for concurrent use and do not allocate. No label takes its values from clients: services and endpoints are capped
// and their series removed by Forget, words (reasons, outcomes) are capped, status codes are the registered ones.
package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Direction is the side of the proxy.
type Direction string

// The directions.
const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
	Gateway  Direction = "gateway" // counted as inbound in Totals
)

// Options sets a registry; zero fields take the defaults.
type Options struct {
	MaxServices  int  // services with series of their own in each direction, default 1000; later ones are counted as "other"
	MaxEndpoints int  // endpoints with circuit series of their own, default 1000; later ones are counted as "other"
	NoRuntime    bool // leave out the go_* and process_* collectors
}

// other is the label of all that came after a cap was reached.
const other = "other"

// Registry holds all metrics of one proxy.
type Registry struct {
	opts Options
	prom *prometheus.Registry
	served
	vecs

	accessLog atomic.Pointer[AccessLog]

	mu       sync.Mutex // guards what follows, and making and removing series
	services map[serviceKey]*Service
	perSide  map[Direction]int // services, without other
	circuits map[endpointKey]bool

	totals totals
}

type serviceKey struct {
	direction          Direction
	service, namespace string
}

// vecs are the metrics that the library keeps.
type vecs struct {
	retries, denied      *prometheus.CounterVec // per service
	deniedBy, audited    *prometheus.CounterVec
	revoked              *prometheus.CounterVec
	overloads, ejections *prometheus.CounterVec
	mirrors, faults      *prometheus.CounterVec
	hedges               *prometheus.CounterVec
	ejected              *prometheus.GaugeVec

	circuitOpens *prometheus.CounterVec
	circuitState *prometheus.GaugeVec

	connOpen               *prometheus.GaugeVec
	connClosed, connBytes  *prometheus.CounterVec
	detectVec, dnsVec      *prometheus.CounterVec
	detected, dns          words
	certificate, connected prometheus.Gauge
	handshakes
	trust             prometheus.Gauge
	tokenVec, keysVec *prometheus.CounterVec
	keysFetched       *prometheus.GaugeVec
	tokens            words
}

// New returns an empty registry. It starts nothing.
func New(o Options) *Registry {
	if o.MaxServices <= 0 {
		o.MaxServices = 1000
	}
	if o.MaxEndpoints <= 0 {
		o.MaxEndpoints = 1000
	}
	r := &Registry{
		opts:     o,
		prom:     prometheus.NewRegistry(),
		services: map[serviceKey]*Service{},
		perSide:  map[Direction]int{},
		circuits: map[endpointKey]bool{},
	}
	r.register()
	if !o.NoRuntime {
		r.prom.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	return r
}

// register makes the metrics. MustRegister panics on a name given twice: a mistake here, which any test shows.
func (r *Registry) register() {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_" + name, Help: help}, labels)
		r.prom.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weir_" + name, Help: help}, labels)
		r.prom.MustRegister(v)
		return v
	}
	service := func(name, help string, last ...string) *prometheus.Desc {
		return prometheus.NewDesc("weir_"+name, help, append([]string{"direction", "service", "namespace"}, last...), nil)
	}
	r.served = served{
		requests: service("requests_total", "Requests that have ended, by status sent to the client (0: none).", "code"),
		bytes:    service("bytes_total", "Bytes of bodies and of opaque connections, from the client (received) and to it (sent).", "flow"),
		limited:  service("ratelimited_total", "Requests refused because over the rate limit."),
		picks:    service("picks_total", "Choices of an endpoint: routed, or no_endpoint when none was usable.", "outcome"),
		failures: service("backend_failures_total", "Tries that an endpoint failed."),
		grpc:     service("grpc_responses_total", "gRPC calls that have ended, by grpc-status sent to the client; none where none was.", "grpc_status"),
		duration: service("request_duration_seconds", "Time from the request's head to the end of its answer."),
	}
	r.prom.MustRegister(collector{r})
	r.retries = counter("retries_total", "Requests sent again (sent), or not for want of budget, time or safety.", "direction", "service", "namespace", "outcome")
	r.denied = counter("denied_total", "Requests and connections refused by a rule.", "direction", "service", "namespace", "reason")
	r.deniedBy = counter("denied_by_rule_total", "Requests and connections refused, by the security rule that decided.", "direction", "service", "namespace", "rule")
	r.audited = counter("audited_total", "Requests and connections that a security rule with action audit is about.", "direction", "service", "namespace", "rule")

	r.mirrors = counter("mirrored_total", "Copies of requests to a second service, by what became of them.", "direction", "service", "namespace", "outcome")
	r.hedges = counter("hedged_total", "Requests sent to a second endpoint because late, by whether its answer was used (won, lost), or not for want of budget.",
		"direction", "service", "namespace", "outcome")
	r.faults = counter("faults_total", "Faults that traffic rules injected.", "direction", "service", "namespace", "kind")
	r.overloads = counter("overload_total", "Requests and connections refused because too many were under way, by the bound that was reached.", "direction", "service", "namespace", "bound")
	r.ejections = counter("outlier_ejections_total", "Endpoints left out for doing worse than the others, by reason.", "direction", "service", "namespace", "reason")
	r.ejected = gauge("outlier_ejected", "Endpoints that are left out now.", "direction", "service", "namespace")

	r.circuitOpens = counter("circuit_opens_total", "Openings of an endpoint's circuit.", "service", "namespace", "endpoint")
	r.circuitState = gauge("circuit_state", "State of a circuit that has opened before: 0 closed, 1 half-open, 2 open.", "service", "namespace", "endpoint")

	r.connOpen = gauge("connections_open", "Connections now open.", "direction", "protocol")
	r.connClosed = counter("connections_total", "Connections that have ended, by reason.", "direction", "protocol", "reason")
	r.connBytes = counter("connection_bytes_total", "Bytes of connections that belong to no service.", "direction", "protocol", "flow")
	r.detectVec = counter("detect_total", "Outcomes of protocol detection.", "outcome")
	r.dnsVec = counter("dns_queries_total", "DNS queries by outcome.", "outcome")
	r.detected = words{mu: &r.mu, make: func(w string) prometheus.Counter { return r.detectVec.WithLabelValues(w) }}
	r.dns = words{mu: &r.mu, make: func(w string) prometheus.Counter { return r.dnsVec.WithLabelValues(w) }}
	r.certificate = gauge("certificate_expiry_timestamp_seconds", "When this workload's certificate ends, as Unix time; 0 without one.").WithLabelValues()
	r.handshakes.register(&r.mu, counter, gauge)
	r.trust = gauge("trust_expiry_timestamp_seconds", "When the first of the roots that this workload trusts ends, as Unix time; 0 without one.").WithLabelValues()
	r.revoked = counter("revoked_total", "Handshakes refused and connections cut because the peer's certificate or identity was revoked.", "direction", "what")
	r.tokenVec = counter("tokens_total", "Bearer tokens that were looked at, by outcome: valid, missing, expired, unknown-key, invalid.", "outcome")
	r.tokens = words{mu: &r.mu, make: func(w string) prometheus.Counter { return r.tokenVec.WithLabelValues(w) }}
	r.keysVec = counter("token_keys_fetches_total", "Fetches of the keys that tokens are verified with, by source and outcome: ok, failed (the old keys stay).", "source", "outcome")
	r.keysFetched = gauge("token_keys_fetched_timestamp_seconds", "When a source of keys was last fetched well, as Unix time; what is in force may be as old.", "source")
	r.connected = gauge("control_connected", "1 while connected to the control plane.").WithLabelValues()
	r.prom.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "weir_access_log_dropped_total", Help: "Access log records lost because the writer did not keep up or failed.",
	}, func() float64 { return float64(r.accessLog.Load().Dropped()) }))
}

// Detected counts an outcome of protocol detection: "http1", "http2", "tls", "opaque", "server_first", "timeout", …
func (r *Registry) Detected(outcome string) { r.detected.get(outcome).Inc() }

// DNSQuery counts a DNS query by outcome: "mesh", "forwarded", "nxdomain", "failed", …
func (r *Registry) DNSQuery(outcome string) { r.dns.get(outcome).Inc() }

// Token counts a bearer token that was looked at: "valid", "missing", "expired", "unknown-key" or "invalid".
func (r *Registry) Token(outcome string) { r.tokens.get(outcome).Inc() }

// KeysFetched counts a fetch of keys from a source, and notes when one went well.
func (r *Registry) KeysFetched(source string, ok bool, now time.Time) {
	if !ok {
		r.keysVec.WithLabelValues(source, "failed").Inc()
		return
	}
	r.keysVec.WithLabelValues(source, "ok").Inc()
	r.keysFetched.WithLabelValues(source).Set(float64(now.Unix()))
}

// CertificateExpiry sets when this workload's certificate ends.
func (r *Registry) CertificateExpiry(t time.Time) { r.certificate.Set(float64(t.Unix())) }

// TrustExpiry sets when the first of the roots that are trusted ends.
func (r *Registry) TrustExpiry(t time.Time) { r.trust.Set(float64(t.Unix())) }

// Revoked counts what a revocation ended: "handshake" or "connection".
func (r *Registry) Revoked(d Direction, what string) {
	r.revoked.WithLabelValues(string(d), what).Inc()
}

// ControlConnected sets whether the control plane is connected.
func (r *Registry) ControlConnected(yes bool) {
	if yes {
		r.connected.Set(1)
	} else {
		r.connected.Set(0)
	}
}

// WatchAccessLog exports the number of records l has lost.
func (r *Registry) WatchAccessLog(l *AccessLog) { r.accessLog.Store(l) }

// Totals are sums over all services since the start, those forgotten included: for the JSON form and for reports to the control plane.
type Totals struct {
	InboundRequests, OutboundRequests                uint64  // gateway requests are inbound
	DurationTotal                                    float64 // seconds, of inbound requests
	Errors                                           uint64  // requests answered 5xx or not at all, both directions
	CircuitOpens                                     uint64
	RequestsRouted, RoutingFailures, BackendFailures uint64
}

// totals are kept apart from the metrics, which cost more to add up than to keep twice; each side on cache lines of its own.
type totals struct {
	in, out struct {
		requests, nanos, errors, routed, unrouted, failed atomic.Uint64
		_                                                 [64]byte
	}
	opens atomic.Uint64
}

// Totals returns the sums.
func (r *Registry) Totals() Totals {
	in, out := &r.totals.in, &r.totals.out
	return Totals{
		InboundRequests:  in.requests.Load(),
		OutboundRequests: out.requests.Load(),
		DurationTotal:    time.Duration(in.nanos.Load()).Seconds(),
		Errors:           in.errors.Load() + out.errors.Load(),
		CircuitOpens:     r.totals.opens.Load(),
		RequestsRouted:   in.routed.Load() + out.routed.Load(),
		RoutingFailures:  in.unrouted.Load() + out.unrouted.Load(),
		BackendFailures:  in.failed.Load() + out.failed.Load(),
	}
}
