package proxy

import (
	"context"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/outlier"
)

// What changes with the endpoints' state and not with the service is worked out
// here, beside the requests: how many leave the zone, whether too few endpoints
// are usable, who is an outlier.

// headroom is how much more than their share the endpoints of a zone are taken
// to bear before requests leave it (Envoy's overprovisioning factor).
const headroom = 1.4

// settle works out a pick's shares anew. now tells which circuits are open.
//
// Of the requests of this proxy the share
//
//	min(1, headroom × zones × near / all)
//
// stays in its zone, where near and all are the weights of the endpoints that
// are usable (healthy, not an outlier, circuit closed), and zones is how many
// zones have endpoints. If the callers are spread evenly over the zones, no
// endpoint of one gets more than headroom times its share: a zone with few
// endpoints, or whose endpoints fail, does not drown in what is near.
func (pk *pick) settle(b *policy.Balancing, zone string, now time.Time) {
	zones := map[string]bool{}
	usable, unsound := 0, 0
	var near, all float64
	drains := pk.drains()
	for i := range pk.members {
		m := &pk.members[i]
		weight := float64(m.weight)
		if drains {
			weight = 1
		}
		if weight > 0 {
			zones[m.zone] = true
		}
		if m.sick || m.ejected() {
			unsound++
			continue
		}
		usable++
		if m.shut() || m.circuit != nil && m.circuit.State(now) != breaker.Closed {
			continue
		}
		all += weight
		if m.zone == zone {
			near += weight
		}
	}
	stay := 1.0
	if all > 0 {
		stay = min(1, headroom*float64(len(zones))*near/all)
	}
	pk.leaving.Store(uint32(math.Round((1 - stay) * math.MaxUint32)))
	pk.panics.Store(pk.all.set != nil && usable*100 < b.Panic*(usable+unsound))
}

// drains says whether no endpoint has weight: then all count alike, as in
// balance.
func (pk *pick) drains() bool {
	for i := range pk.members {
		if pk.members[i].weight > 0 {
			return false
		}
	}
	return true
}

// order gives what a request is to be chosen from, and what if nobody there may
// be used; the second may be nil. A request by its hash always gets the same.
func (pk *pick) order(random, hash uint64) (first, second *choice) {
	switch {
	case pk.panics.Load():
		return &pk.all, nil
	case pk.near.set == nil:
		return &pk.choice, nil
	}
	if pk.near.set.Strategy() == balance.ConsistentHash {
		random = hash
	}
	// The multiplier makes the draw another than those of the choice that follows.
	if uint32(random*0x9e3779b97f4a7c15>>32) < pk.leaving.Load() {
		return &pk.far, &pk.near
	}
	return &pk.near, &pk.far
}

// ejected says whether the endpoint is left out as an outlier.
func (e *endpoint) ejected() bool { return e.judged != nil && e.judged.Ejected() }

// find chooses an endpoint: first of those that come first, then of the others;
// then again of those that were tried; at last of those that are left out as
// outliers, since any is better than none.
func (s *selection) find(random, hash uint64) (*endpoint, bool) {
	s.outliers = s.pick.panics.Load()
	for {
		first, second := s.pick.order(random, hash)
		if e, ok := s.findIn(first, random, hash); ok {
			return e, true
		}
		if second != nil {
			if e, ok := s.findIn(second, random, hash); ok {
				return e, true
			}
		}
		switch {
		case len(s.tried) > 0:
			s.tried = s.tried[:0]
		case !s.outliers && s.pick.hasOutlier():
			s.outliers = true
		default:
			return nil, false
		}
	}
}

func (s *selection) findIn(from *choice, random, hash uint64) (*endpoint, bool) {
	s.from = from
	i, ok := from.set.Pick(balanceRequest(s, random, hash))
	if !ok {
		return nil, false
	}
	return from.endpoints[i], true
}

func (pk *pick) hasOutlier() bool {
	for i := range pk.members {
		if pk.members[i].ejected() {
			return true
		}
	}
	return false
}

// record notes how a try at an endpoint ended, for the comparison with others.
func (e *endpoint) record(latency time.Duration, failed bool) {
	if e.judged != nil {
		e.judged.Record(latency, failed)
	}
}

// watch is when a service's endpoints are compared next. It outlives changes of
// the service.
type watch struct{ next time.Time }

// stir has settle look at all services soon: a circuit has opened or closed.
func (p *Proxy) stir() {
	select {
	case p.stirred <- struct{}{}:
	default: // it is to look already
	}
}

const (
	// settleWithin bounds how often changes of circuits are looked at.
	settleWithin = 100 * time.Millisecond
	// judgeEvery is how often it is asked whether a comparison is due or an ejection
	// over, where there is something to compare.
	judgeEvery = time.Second
)

// keepSettled follows the endpoints' states until ctx ends.
func (p *Proxy) keepSettled(ctx context.Context) {
	timer := time.NewTimer(judgeEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.stirred:
			select { // several circuits open together
			case <-ctx.Done():
				return
			case <-time.After(settleWithin):
			}
		case <-timer.C:
		}
		if p.settleAll(time.Now()) {
			timer.Reset(judgeEvery)
		} else {
			timer.Stop()
		}
	}
}

// settleAll looks at all services; more says that it is to look again without
// being asked.
func (p *Proxy) settleAll(now time.Time) (more bool) {
	zone := p.cfg.Labels[policy.ZoneLabel]
	for _, d := range p.dests.Load().byName {
		if d.watch != nil {
			more = true
			p.judge(d, now)
		}
		for _, pk := range d.distinct() {
			pk.settle(&d.svc.Traffic.Balancing, zone, now)
		}
	}
	return more
}

// judge compares the endpoints of a service when it is time to, and lets those
// back whose time is over.
func (p *Proxy) judge(d *destination, now time.Time) {
	changed := false
	for _, v := range outlier.Release(now, d.hosts) {
		changed = true
		e := d.hosted[v.Index]
		e.stats.SlowStart(now)
		p.log.Info("endpoint is no outlier any more", zap.String("service", d.label), zap.String("endpoint", e.id), zap.Stringer("address", e.addr))
	}
	for _, v := range d.compare(now) {
		changed = true
		e := d.hosted[v.Index]
		d.metrics.Ejected(string(v.Reason))
		p.log.Warn("endpoint is an outlier and left out", zap.String("service", d.label), zap.String("endpoint", e.id), zap.Stringer("address", e.addr),
			zap.String("reason", string(v.Reason)), zap.Duration("for", v.For), zap.Float64("success_rate", v.Rate), zap.Float64("usual_success_rate", v.MedianRate),
			zap.Duration("latency", v.Latency), zap.Duration("usual_latency", v.MedianLatency))
	}
	if changed {
		d.metrics.EjectedNow(d.ejected())
	}
}

// compare judges the endpoints if it is time to.
func (d *destination) compare(now time.Time) []outlier.Verdict {
	if now.Before(d.watch.next) {
		return nil
	}
	o := &d.svc.Traffic.Outliers
	d.watch.next = now.Add(o.Interval)
	return outlier.Judge(outlierConfig(o), now, d.hosts)
}

func (d *destination) ejected() (n int) {
	for _, h := range d.hosts {
		if h.Ejected() {
			n++
		}
	}
	return n
}

func outlierConfig(o *policy.Outliers) outlier.Config {
	return outlier.Config{
		MinHosts: o.MinHosts, MinRequests: o.MinRequests, RateFactor: o.RateFactor, RateMargin: o.RateMargin,
		LatencyFactor: o.LatencyFactor, LatencyMargin: o.LatencyMargin,
		BaseEjection: o.BaseEjection, MaxEjection: o.MaxEjection, MaxEjectedPart: o.MaxEjectedPart,
	}
}

// setWatch lists the endpoints that are compared.
func (d *destination) setWatch(old *destination, members []member, now time.Time) error {
	o := &d.svc.Traffic.Outliers
	if !o.Enabled {
		if old != nil && old.watch != nil {
			d.metrics.EjectedNow(0)
		}
		return nil
	}
	if err := outlierConfig(o).Check(); err != nil {
		return err
	}
	d.watch = &watch{next: now.Add(o.Interval)}
	if old != nil && old.watch != nil && old.svc.Traffic.Outliers.Interval == o.Interval {
		d.watch = old.watch
	}
	for _, m := range members {
		if m.sick {
			continue // the health checks have left it out
		}
		d.hosts, d.hosted = append(d.hosts, m.judged), append(d.hosted, m.endpoint)
	}
	return nil
}
