package ratelimit

import (
	"math"
	"time"
)

// A limit that several keep together is divided by somebody who knows what each
// wants: Usage tells that, and SetShare takes what it may have.

// Usage is what a limiter has seen.
type Usage struct {
	Asked uint64  // requests since the Usage before, refused ones too
	Used  float64 // what counts against the limit now
}

// KeyUsage is the same of one key.
type KeyUsage struct {
	Key string
	Usage
}

// Usage tells what was asked for since it was called last.
func (l *Limiter) Usage(now time.Time) Usage {
	at := int64(now.Sub(l.start))
	l.mu.Lock()
	defer l.mu.Unlock()
	u := Usage{Asked: l.asked, Used: l.rules.used(&l.count, at)}
	l.asked = 0
	return u
}

// SetShare makes the limiter allow so many of the policy's Limit from now on, in
// 0..Limit. What is counted stays so; a token bucket's depth shrinks likewise.
func (l *Limiter) SetShare(requests float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = part(requests, l.rules.policy.Limit)
}

func part(requests float64, limit int) int {
	return int(math.Round(min(max(requests, 0), float64(limit))))
}

const (
	hotKeys   = 64 // watched in each of the shards together
	hotIdleAt = 3  // reports without a request, after which a key is watched no more
)

// hotKey is a key that wants more than the share of any.
type hotKey struct {
	asked uint64
	idle  int
	limit int // its own share; below 0 it has none yet
}

// Divide makes this one of several limiters, before its first use. share is that
// of each key.
func (k *Keyed) Divide(share float64) {
	k.shared = true
	k.share.Store(int64(part(share, k.rules.policy.Limit)))
}

// limitLocked is what a key may have.
func (k *Keyed) limitLocked(e *entry) int {
	if e.hot != nil && e.hot.limit >= 0 {
		return e.hot.limit
	}
	return int(k.share.Load())
}

// watchLocked notes what a key asks for, from where it has used half its share.
func (k *Keyed) watchLocked(s *shard, e *entry, limit int, d *Decision) {
	k.asked.Add(1)
	if e.hot == nil && (!d.OK || 2*d.Remaining < limit) && len(s.hot) < max(hotKeys/len(k.shards), 1) {
		if s.hot == nil {
			s.hot = map[*entry]struct{}{}
		}
		e.hot = &hotKey{limit: -1}
		s.hot[e] = struct{}{}
	}
	if e.hot != nil {
		e.hot.asked++
	}
}

// Usage tells how many requests there were since it was called last, and lists
// the keys that want more than the share of any: at most 64.
func (k *Keyed) Usage(now time.Time) (Usage, []KeyUsage) {
	at := int64(now.Sub(k.start))
	var keys []KeyUsage
	for i := range k.shards {
		keys = k.shards[i].usage(&k.rules, at, keys)
	}
	return Usage{Asked: k.asked.Swap(0)}, keys
}

func (s *shard) usage(r *rules, at int64, keys []KeyUsage) []KeyUsage {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := range s.hot {
		u := Usage{Asked: e.hot.asked, Used: r.used(&e.count, at)}
		e.hot.asked = 0
		if e.hot.idle++; u.Asked > 0 {
			e.hot.idle = 0
		}
		if e.hot.idle >= hotIdleAt && u.Used < 1 {
			e.hot = nil
			delete(s.hot, e)
			continue
		}
		keys = append(keys, KeyUsage{e.key, u})
	}
	return keys
}

// SetShares sets the share of each key, and those of the keys that Usage listed,
// for which own tells theirs.
func (k *Keyed) SetShares(share float64, own func(key string) (float64, bool)) {
	k.share.Store(int64(part(share, k.rules.policy.Limit)))
	for i := range k.shards {
		s := &k.shards[i]
		s.mu.Lock()
		for e := range s.hot {
			if requests, ok := own(e.key); ok {
				e.hot.limit = part(requests, k.rules.policy.Limit)
			}
		}
		s.mu.Unlock()
	}
}
