package proxy

import (
	"math/rand/v2"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/h1"
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
// idempotent one whose rule says so. nil is for all others.
func (o *outbound) hedge(x exchange) hedger {
	plan := o.route.Plan
	if plan == nil || plan.Hedge == nil || o.attempts > 1 || !retry.Idempotent(x.Method()) || o.dest.hedges[o.route.Rule] == nil {
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

// roundTrip sends the request, and a second time where no answer comes. The attempt
// is then that of the endpoint that answered.
func (o *outbound) roundTrip(x *h1.Exchange, up *h1.Upstream, deadline time.Time) (*h1.Response, *h1.Upstream, *h1.Pool, error) {
	h := o.dest.hedges[o.route.Rule]
	if o.t.stale == 0 {
		h.budget.Request(o.began)
	}
	o.t.stale++
	var second attempt
	other := func() func() (*h1.Upstream, error) { return o.second(h, &second, deadline) }
	after, known := h.after()
	if !known {
		other = func() func() (*h1.Upstream, error) { return nil }
	}
	resp, won, err := x.RoundTripHedged(up, deadline, after, other)
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
	return resp, won, o.endpoint.kept[o.lc.Shard()].h1, err
}

// second chooses another endpoint for a request that is late; nil where there is
// none, or no budget. What it returns is of no request: the one it was made for
// may have ended before.
func (o *outbound) second(h *hedge, second *attempt, deadline time.Time) func() (*h1.Upstream, error) {
	now := o.l.Now()
	if !h.budget.Take(now) {
		o.service.metrics.Hedged("budget")
		return nil
	}
	o.sel.now = now
	o.sel.avoid(o.t.e)
	e, ticket, ok := o.sel.take(rand.Uint64(), rand.Uint64())
	if !ok {
		return nil
	}
	*second = attempt{e: e, ticket: ticket, began: now}
	if e == o.t.e { // the only one
		second.cancel()
		second.e = nil
		return nil
	}
	o.service.metrics.Routed()
	o.identify(o.x, e)
	p, l, d, pool := o.p, o.l, o.service, e.kept[o.lc.Shard()].h1
	return func() (*h1.Upstream, error) {
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
	}
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
