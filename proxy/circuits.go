package proxy

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
)

// failed reports a failure to an endpoint's circuit.
func (p *Proxy) failed(e *endpoint, t breaker.Ticket, now time.Time) {
	if e.circuit == nil {
		return
	}
	if e.circuit.Failure(now, t) {
		e.turned.Store(now.UnixMilli())
		e.metrics.CircuitOpened()
		e.metrics.CircuitState(int(breaker.Open))
		p.stir()
		p.log.Info("circuit opened", zap.String("endpoint", e.id), zap.Stringer("address", e.addr))
	}
}

// succeeded reports a success; a probe's closes the circuit.
func (p *Proxy) succeeded(e *endpoint, t breaker.Ticket, now time.Time) {
	if e.circuit == nil {
		return
	}
	if e.circuit.Success(now, t) {
		e.turned.Store(now.UnixMilli())
		e.metrics.CircuitState(int(breaker.Closed))
		p.stir()
		p.log.Info("circuit closed", zap.String("endpoint", e.id), zap.Stringer("address", e.addr))
	}
}

// obey gives the endpoint's circuit what an operator orders. was is what was
// known of the endpoint before, nil where it is new.
func (p *Proxy) obey(e, was *endpoint, now time.Time) {
	known := policy.CircuitOrder{}
	if was != nil {
		known = was.order
		e.turned = was.turned
	}
	renewed := was == nil || e.circuit != was.circuit
	if e.order == known && !renewed {
		return
	}
	mode, ends := breaker.Auto, known.State != ""
	switch e.order.State {
	case policy.CircuitOpen:
		mode = breaker.ForceOpen
	case policy.CircuitClose:
		mode = breaker.ForceClosed
	}
	// Without a circuit an order to open holds all the same: see selection.usable.
	if begins := was != nil && e.order.Number != 0; e.circuit != nil && (mode != breaker.Auto || ends || begins) {
		e.circuit.Force(mode)
		e.metrics.CircuitState(int(e.circuit.State(now)))
	}
	if e.order == known || was == nil && e.order.State == "" {
		return
	}
	e.turned.Store(now.UnixMilli())
	p.log.Info("circuit ordered by an operator", zap.String("endpoint", e.id), zap.Stringer("address", e.addr),
		zap.String("order", orderWord(e.order)))
}

// orderWord names an order for the log.
func orderWord(o policy.CircuitOrder) string {
	if o.Number == 0 {
		return "ended"
	}
	return cmp.Or(o.State, policy.CircuitReset)
}

// shut says whether an operator wants nothing to be sent to the endpoint.
func (e *endpoint) shut() bool { return e.order.State == policy.CircuitOpen }

// circuits are the states with something to tell, those that are not closed
// first, and how many there are more than may be reported.
func (p *Proxy) circuits(now time.Time) (out []policy.CircuitState, leftOut int) {
	for name, d := range p.dests.Load().byName {
		for _, e := range d.members {
			if s, tells := e.circuitState(now); tells {
				s.Service = name
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b policy.CircuitState) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), strings.Compare(a.Service.String(), b.Service.String()), strings.Compare(a.Endpoint, b.Endpoint))
	})
	if leftOut = len(out) - policy.MaxReportedCircuits; leftOut > 0 {
		return out[:policy.MaxReportedCircuits], leftOut
	}
	return out, 0
}

func rank(s *policy.CircuitState) int {
	switch {
	case s.State != breaker.Closed.String():
		return 0
	case s.Forced || s.Ejected:
		return 1
	}
	return 2
}

// circuitState is how the endpoint's circuit stands; tells is false when it is
// closed and nothing speaks against it.
func (e *endpoint) circuitState(now time.Time) (s policy.CircuitState, tells bool) {
	s = policy.CircuitState{Endpoint: e.id, State: breaker.Closed.String(), Ejected: e.ejected(), Forced: e.order.State != ""}
	if e.circuit != nil {
		s.State, s.Failures = e.circuit.State(now).String(), e.circuit.Failures()
	}
	if e.shut() {
		s.State = breaker.Open.String()
	}
	if ms := e.turned.Load(); ms != 0 {
		s.Since = time.UnixMilli(ms)
	}
	return s, s.Ejected || s.Forced || s.Failures > 0 || s.State != breaker.Closed.String()
}
