// Package ratelimit counts requests against sliding windows and token buckets.
// It does not know what a request is, nor answer it: it decides and gives the figures to answer with.
package ratelimit

import (
	"fmt"
	"sync"
	"time"
)

// Policy is one limit.
//
// A sliding window is exact up to 10 000 requests (1000 per key): the times of the last Limit requests are kept, 8 bytes each. Above that two counters
// approximate it: the last whole window counts for the part of it that the sliding one still covers, as if its requests had come evenly.
type Policy struct {
	Limit  int           // requests per Window, 1..16 777 215
	Window time.Duration // 1 ms .. 24 h
	Burst  int           // 0: sliding window. >0: token bucket of this depth, filled evenly at Limit per Window
}

const (
	maxLimit  = 1<<24 - 1
	minWindow = time.Millisecond
	maxWindow = 24 * time.Hour
	maxFill   = 30 * 24 * time.Hour // how long an empty bucket may take to fill

	exactLimit, exactLimitPerKey = 10_000, 1000
)

// Check says what is wrong with the policy.
func (p Policy) Check() error {
	switch {
	case p.Limit < 1 || p.Limit > maxLimit:
		return fmt.Errorf("ratelimit: limit %d is not in 1..%d", p.Limit, maxLimit)
	case p.Window < minWindow || p.Window > maxWindow:
		return fmt.Errorf("ratelimit: window %v is not in %v..%v", p.Window, minWindow, maxWindow)
	case p.Burst < 0 || p.Burst > maxLimit:
		return fmt.Errorf("ratelimit: burst %d is not in 0..%d", p.Burst, maxLimit)
	case p.Burst == 0:
		return nil
	case p.Window/time.Duration(p.Limit) < time.Microsecond:
		return fmt.Errorf("ratelimit: %d in %v is more than the million tokens a second that a bucket can count", p.Limit, p.Window)
	case time.Duration(p.Burst) > maxFill/(p.Window/time.Duration(p.Limit)):
		return fmt.Errorf("ratelimit: a burst of %d at %d in %v takes more than %v to fill", p.Burst, p.Limit, p.Window, maxFill)
	}
	return nil
}

// Decision is the answer to one request.
type Decision struct {
	OK         bool
	Limit      int           // the quota: Policy.Limit, or Burst of a token bucket
	Remaining  int           // what is left after this request
	Reset      time.Duration // until Remaining grows if no request comes; 0 when nothing is used
	RetryAfter time.Duration // until a request is allowed if none comes before; 0 when OK
}

// Limiter holds one policy's count. Safe for concurrent use.
type Limiter struct {
	rules rules     // never changed
	start time.Time // never changed

	// A lock, not atomics: the exact window is a queue with several words, and its order must be that of time.
	// It is held for some 20 ns.
	mu    sync.Mutex
	count count
	limit int    // that in force: the policy's, or a share of it
	asked uint64 // requests since Usage
}

// New returns a limiter with nothing used. start is any time not later than the first use; times are kept relative to it,
// so that a step of the wall clock does not matter. It fails for a policy out of bounds.
func New(p Policy, start time.Time) (*Limiter, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	l := &Limiter{rules: newRules(p, exactLimit), start: start, limit: p.Limit}
	if l.rules.exact {
		l.count.times = make([]int64, p.Limit) // at once: Allow never allocates
	}
	return l, nil
}

// Allow asks for one request; a refused one is not counted. It does not allocate.
func (l *Limiter) Allow(now time.Time) Decision { return l.decide(now, true) }

// Peek says whether a request would be allowed, and what is left, without counting one.
func (l *Limiter) Peek(now time.Time) Decision { return l.decide(now, false) }

func (l *Limiter) decide(now time.Time, spend bool) (d Decision) {
	at := int64(now.Sub(l.start))
	l.mu.Lock()
	if spend {
		l.asked++
	}
	l.rules.decide(&l.count, l.limit, at, spend, &d)
	l.mu.Unlock() // not deferred, which would copy d once more; nothing above panics
	return d
}

// Policy returns the policy in force.
func (l *Limiter) Policy() Policy { return l.rules.policy }
