package telemetry

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type endpointKey struct{ service, namespace, endpoint string }

// Endpoint counts one endpoint's circuit. It has no series until its circuit opens: most never do.
type Endpoint struct {
	reg *Registry
	key endpointKey

	series atomic.Pointer[circuit]
}

type circuit struct {
	opens prometheus.Counter
	state prometheus.Gauge // nil for other: one gauge cannot show many states
}

// Endpoint returns a new handle for an endpoint's circuit.
func (r *Registry) Endpoint(service, namespace, endpoint string) *Endpoint {
	return &Endpoint{reg: r, key: endpointKey{service, namespace, endpoint}}
}

// CircuitOpened counts an opening. It does not set the state.
func (e *Endpoint) CircuitOpened() {
	e.resolve().opens.Inc()
	e.reg.totals.opens.Add(1)
}

// CircuitState sets the state: 0 closed, 1 half-open, 2 open (breaker.State).
func (e *Endpoint) CircuitState(state int) {
	c := e.series.Load()
	if c == nil {
		if state == 0 {
			return
		}
		c = e.resolve()
	}
	if c.state != nil {
		c.state.Set(float64(state))
	}
}

func (e *Endpoint) resolve() *circuit {
	if c := e.series.Load(); c != nil {
		return c
	}
	r := e.reg
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := e.series.Load(); c != nil {
		return c
	}
	c := &circuit{}
	if r.circuits[e.key] || len(r.circuits) < r.opts.MaxEndpoints {
		r.circuits[e.key] = true
		c.opens = r.circuitOpens.WithLabelValues(e.key.service, e.key.namespace, e.key.endpoint)
		c.state = r.circuitState.WithLabelValues(e.key.service, e.key.namespace, e.key.endpoint)
	} else {
		c.opens = r.circuitOpens.WithLabelValues(other, "", other)
	}
	e.series.Store(c)
	return c
}

// Forget removes the endpoint's series; the handle may be used again and then begins anew.
func (e *Endpoint) Forget() {
	r := e.reg
	r.mu.Lock()
	defer r.mu.Unlock()
	e.series.Store(nil)
	if r.circuits[e.key] {
		delete(r.circuits, e.key)
		r.circuitOpens.DeleteLabelValues(e.key.service, e.key.namespace, e.key.endpoint)
		r.circuitState.DeleteLabelValues(e.key.service, e.key.namespace, e.key.endpoint)
	}
}

// Connections counts connections of one direction and protocol.
type Connections struct {
	open           prometheus.Gauge
	received, sent prometheus.Counter
	closed         words
}

// Connections returns the handle for connections of a direction and protocol ("http1", "http2", "tcp", "tls", "quic", …).
// It is meant for the protocols that the code knows: the word is not capped.
func (r *Registry) Connections(d Direction, protocol string) *Connections {
	return &Connections{
		open:     r.connOpen.WithLabelValues(string(d), protocol),
		received: r.connBytes.WithLabelValues(string(d), protocol, "received"),
		sent:     r.connBytes.WithLabelValues(string(d), protocol, "sent"),
		closed: words{mu: &r.mu, make: func(w string) prometheus.Counter {
			return r.connClosed.WithLabelValues(string(d), protocol, w)
		}},
	}
}

// Opened counts a connection that began; each is followed by one Closed.
func (c *Connections) Opened() { c.open.Inc() }

// Closed counts a connection that ended: reason is one word ("eof", "idle", "reset", "drain", …);
// the bytes are those that no Service counts, from the client (in) and to it (out).
func (c *Connections) Closed(reason string, bytesIn, bytesOut int64) {
	c.open.Dec()
	c.closed.get(reason).Inc()
	c.received.Add(float64(max(bytesIn, 0)))
	c.sent.Add(float64(max(bytesOut, 0)))
}
