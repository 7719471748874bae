package proxy

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// A limit of the whole mesh is kept by every proxy that has requests for it, each
// within its share, which the control plane gives out by what each wants. While
// the control plane is away a proxy keeps to the last share that it had.

// firstShare is the part of a limit that a proxy takes before it has heard of
// its share: connected, that is for the time of one answer.
const firstShare = 0.1

// wants is what a limit of the whole mesh has seen of demand.
type wants struct {
	mu    sync.Mutex // guards what follows
	rate  float64    // requests a second
	since time.Time  // of the last report
	keys  map[string]float64
}

func (l *limit) beginShare(now time.Time) {
	l.wants.since = now
	share := max(firstShare*float64(l.policy.Limit), 1)
	if l.keyed != nil {
		l.keyed.Divide(share)
		return
	}
	l.whole.SetShare(share)
}

// meshLimits lists the limits of the whole mesh that this proxy keeps.
func (p *Proxy) meshLimits() []*limit {
	var out []*limit
	keep := func(all []*limit) {
		for _, l := range all {
			if l.policy.Mesh {
				out = append(out, l)
			}
		}
	}
	for _, d := range p.dests.Load().byName {
		keep(d.allLimits())
	}
	keep(p.guard.Load().limits.all())
	return out
}

// demands tells the feed what is wanted of them.
func (p *Proxy) demands() []policy.Demand {
	now := time.Now()
	var out []policy.Demand
	for _, l := range p.meshLimits() {
		out = append(out, l.demand(now))
	}
	return out
}

// rateOver is the time over which demand is averaged, at most.
const rateOver = time.Second

func (l *limit) demand(now time.Time) policy.Demand {
	w := &l.wants
	w.mu.Lock()
	defer w.mu.Unlock()
	since := now.Sub(w.since)
	w.since = now
	out := policy.Demand{Limit: l.ref}
	if l.keyed == nil {
		u := l.whole.Usage(now)
		w.rate = smooth(w.rate, u.Asked, since)
		out.Rate, out.Used = w.rate, u.Used
		return out
	}
	u, keys := l.keyed.Usage(now)
	w.rate = smooth(w.rate, u.Asked, since)
	out.Rate = w.rate
	rates := make(map[string]float64, len(keys))
	for _, k := range keys {
		rates[k.Key] = smooth(w.keys[k.Key], k.Asked, since)
		out.Keys = append(out.Keys, policy.KeyDemand{Key: l.hash(k.Key), Rate: rates[k.Key], Used: k.Used})
	}
	w.keys = rates
	return out
}

func smooth(rate float64, asked uint64, over time.Duration) float64 {
	if over <= 0 {
		return rate
	}
	now := float64(asked) / over.Seconds()
	if over >= rateOver {
		return now
	}
	part := float64(over) / float64(rateOver)
	return rate*(1-part) + now*part
}

// hash is a key as the control plane hears of it: it counts by it, and is not to
// learn tokens and the like. Every proxy of the mesh has the same for a key.
func (l *limit) hash(key string) uint64 {
	sum := sha256.Sum256([]byte(l.ref.Service.String() + "\x00" + l.ref.Rule + "\x00" + l.ref.Name + "\x00" + key))
	return binary.BigEndian.Uint64(sum[:8])
}

// takeShares puts shares in force.
func (p *Proxy) takeShares(shares []policy.Share) {
	limits := map[policy.LimitRef]*limit{}
	for _, l := range p.meshLimits() {
		limits[l.ref] = l
	}
	for i := range shares {
		if l := limits[shares[i].Limit]; l != nil {
			l.take(&shares[i])
		}
	}
}

func (l *limit) take(s *policy.Share) {
	if l.keyed == nil {
		l.whole.SetShare(s.Requests)
		return
	}
	own := make(map[uint64]float64, len(s.Keys))
	for _, k := range s.Keys {
		own[k.Key] = k.Requests
	}
	l.keyed.SetShares(s.Requests, func(key string) (float64, bool) {
		requests, ok := own[l.hash(key)]
		return requests, ok
	})
}

// wantsShare has the control plane told soon that a share is used up.
func (p *Proxy) wantsShare(l *limit) {
	if l.policy.Mesh {
		p.feed.AskShares()
	}
}

// askForNew has shares asked for at once, if a limit is new.
func (p *Proxy) askForNew(limits []*limit) {
	for _, l := range limits {
		p.wantsShare(l)
	}
}
