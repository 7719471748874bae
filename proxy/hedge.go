package proxy

import (
	"math/rand/v2"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/h2"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/retry"
	"github.com/weir-mesh/weir/proxy/translate"
)

// hedge is what a rule's hedge knows and keeps over changes of its service.
type hedge struct {
	plan   policy.HedgePlan
	budget *retry.Budget
	times  *retry.Quantile // nil where the rule gives a time
}

// leastHedges are hedges a second that are allowed however few requests there are.
const leastHedges = 1

// setHedges makes the hedges of a service's rules: those of the old destination
// where their settings are the same.
func (d *destination) setHedges(old *destination, now time.Time) error {
	for i := range d.svc.Rules {
		r := &d.svc.Rules[i]
		plan := r.Hedge.Plan()
		if plan == nil {
			continue
		}
		if d.hedges == nil {
			d.hedges = map[string]*hedge{}
		}
		if old != nil && old.hedges[r.ID] != nil && old.hedges[r.ID].plan == *plan {
			d.hedges[r.ID] = old.hedges[r.ID]
			continue
		}
		budget, err := retry.NewBudget(retry.BudgetConfig{Ratio: plan.Ratio, MinPerSecond: leastHedges}, now)
		if err != nil {
			return err
		}
		h := &hedge{plan: *plan, budget: budget}
		if plan.After == 0 {
			h.times = retry.NewQuantile(plan.Quantile)
		}
		d.hedges[r.ID] = h
	}
	return nil
}

// hedge gives what sends a request that may be sent twice: the first try of an
// idempotent one whose rule says so, or of a gRPC call: gRPC knows POST only, so the
// rule speaks for the method. nil is for all others.
func (o *outbound) hedge(x exchange) hedger {
	plan := o.route.Plan
	if plan == nil || plan.Hedge == nil || o.attempts > 1 || o.dest.hedges[o.route.Rule] == nil {
		return nil
	}
	if g, ok := x.(grpcCall); !retry.Idempotent(x.Method()) && !(ok && g.GRPC()) {
		return nil
	}
	return o
}

// after is when a request is late; ok is false while that is not known.
func (h *hedge) after() (after time.Duration, ok bool) {
	if h.times == nil {
		return h.plan.After, true
	}
	return h.times.Value()
}

// roundTrip implements hedger.
func (o *outbound) roundTrip(x *h1.Exchange, up *h1.Upstream, deadline time.Time) (*h1.Response, *h1.Upstream, *h1.Pool, error) {
	var resp *h1.Response
	p, l, d, shard := o.p, o.l, o.service, o.lc.Shard()
	won, err := race(o, up, func(after time.Duration, other func() func() (*h1.Upstream, error)) (won *h1.Upstream, err error) {
		resp, won, err = x.RoundTripHedged(up, deadline, after, other)
		return won, err
	}, func(e *endpoint) (*h1.Upstream, error) {
		pool := e.kept[shard].h1
		for up := pool.Get(l.Now()); up != nil; up = pool.Get(l.Now()) {
			if up.IdleAlive() {
				return up, nil
			}
			_ = up.Close()
		}
		c, err := p.dialFor(l, d, e, translate.HTTP1, deadline)
		if err != nil {
			return nil, err
		}
		return h1.NewUpstream(c), nil
	})
	return resp, won, o.endpoint.kept[shard].h1, err
}

// roundTripStream implements hedger.
func (o *outbound) roundTripStream(x *h2.Exchange, up *h2.Upstream, deadline time.Time) (*h2.Response, *h2.Upstream, *h2.Pool, error) {
	var resp *h2.Response
	p, l, d, shard := o.p, o.l, o.service, o.lc.Shard()
	won, err := race(o, up, func(after time.Duration, other func() func() (*h2.Upstream, error)) (won *h2.Upstream, err error) {
		resp, won, err = x.RoundTripHedged(up, deadline, after, other)
		return won, err
	}, func(e *endpoint) (*h2.Upstream, error) {
		return e.kept[shard].streams().Take(l, deadline, func() (loop.Stream, error) { return p.dialFor(l, d, e, translate.HTTP2, deadline) })
	})
	return resp, won, o.endpoint.kept[shard].streams(), err
}

// race has a request sent, and a second time where no answer comes. The attempt is
// then that of the endpoint that answered. take gets a connection for the second; it
// is of no request: the one it was made for may have ended before.
func race[U comparable](
	o *outbound, up U, send func(after time.Duration, other func() func() (U, error)) (won U, err error), take func(*endpoint) (U, error),
) (U, error) {
	h := o.dest.hedges[o.route.Rule]
	if o.t.stale == 0 {
		h.budget.Request(o.began)
	}
	o.t.stale++
	var second attempt
	after, known := h.after()
	won, err := send(after, func() func() (U, error) {
		if !known || !o.second(h, &second) {
			return nil
		}
		e := second.e
		return func() (U, error) { return take(e) }
	})
	now := o.l.Now()
	if h.times != nil {
		h.times.Observe(now.Sub(o.t.began)) // of the first try, or as far as it went
	}
	switch {
	case second.e == nil:
	case won == up:
		o.service.metrics.Hedged("lost")
		second.cancel()
	default:
		o.service.metrics.Hedged("won")
		o.t.e.stats.End(now, now.Sub(o.t.began), false) // it is known to be slow, not to be broken
		o.t.cancelTicket()
		o.t = second
		o.endpoint = o.t.e
	}
	return won, err
}

// second chooses another endpoint for a request that is late; false where there is
// none, or no budget.
func (o *outbound) second(h *hedge, second *attempt) bool {
	now := o.l.Now()
	if !h.budget.Take(now) {
		o.service.metrics.Hedged("budget")
		return false
	}
	o.sel.now = now
	o.sel.avoid(o.t.e)
	e, ticket, ok := o.sel.take(rand.Uint64(), rand.Uint64())
	if !ok {
		return false
	}
	*second = attempt{e: e, ticket: ticket, began: now}
	if e == o.t.e { // the only one
		second.cancel()
		second.e = nil
		return false
	}
	o.service.metrics.Routed()
	o.identify(o.x, e)
	return true
}

// cancel takes an attempt back whose outcome says nothing of the endpoint.
func (t *attempt) cancel() {
	t.e.stats.Cancel()
	t.cancelTicket()
}

func (t *attempt) cancelTicket() {
	if t.e.circuit != nil {
		t.e.circuit.Cancel(t.ticket)
	}
	t.ticket = breaker.Ticket{}
}
