package telemetry

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Side is whose part in a handshake is counted: of a server the calls from others, of a client those to others.
type Side uint8

// The sides.
const (
	Server Side = iota
	Client
)

var sideLabels = [...]string{Server: "server", Client: "client"}

// handshakes counts the mesh's TLS handshakes.
type handshakes struct {
	done, failed [len(sideLabels)]words
	skew         prometheus.Gauge
}

func (h *handshakes) register(mu *sync.Mutex, counter func(name, help string, labels ...string) *prometheus.CounterVec, gauge func(name, help string, labels ...string) *prometheus.GaugeVec) {
	done := counter("tls_handshakes_total", "Handshakes of the mesh's TLS that succeeded: full, or resumed from a session.", "side", "kind")
	failed := counter("tls_handshake_failures_total", "Handshakes of the mesh's TLS that failed, by reason (docs/JOINING.md).", "side", "reason")
	for side, label := range sideLabels {
		h.done[side].mu, h.done[side].make = mu, func(w string) prometheus.Counter { return done.WithLabelValues(label, w) }
		h.failed[side].mu, h.failed[side].make = mu, func(w string) prometheus.Counter { return failed.WithLabelValues(label, w) }
	}
	h.skew = gauge("clock_skew_seconds", "How far this proxy's clock is ahead of the control plane's; negative is behind.").WithLabelValues()
}

// HandshakeDone counts a handshake that succeeded.
func (r *Registry) HandshakeDone(s Side, resumed bool) {
	kind := "full"
	if resumed {
		kind = "resumed"
	}
	r.handshakes.done[s].get(kind).Inc()
}

// HandshakeFailed counts one that failed, by one word for why.
func (r *Registry) HandshakeFailed(s Side, reason string) { r.handshakes.failed[s].get(reason).Inc() }

// ClockSkew sets how far our clock is ahead of the control plane's.
func (r *Registry) ClockSkew(d time.Duration) { r.handshakes.skew.Set(d.Seconds()) }
