package ratelimit

import (
	"math"
	"time"
)

// rules is a policy made ready.
type rules struct {
	policy   Policy
	exact    bool  // a sliding window by the times of its requests, not by two counters
	interval int64 // token bucket: ns per token. Rounded to whole ns, the rate is right to 0.1 %
}

func newRules(p Policy, exactLimit int) rules {
	return rules{policy: p, exact: p.Burst == 0 && p.Limit <= exactLimit, interval: int64(p.Window) / int64(p.Limit)}
}

// A count is what one policy has seen of one key. Times are ns since the limiter's start.
type count struct {
	last int64 // the newest time seen

	// The exact window: a ring of the times of the n requests in it.
	times   []int64
	head, n int

	// Two counters: the fixed window number index, and the one before.
	index     int64
	prev, cur int

	// The token bucket: when it will be full again (the theoretical arrival time of GCRA, ITU-T I.371).
	full int64
	per  int64 // ns per token when full was worked out
}

// clear forgets everything but the room for times.
func (c *count) clear() { *c = count{times: c.times} }

// decide fills d in place: handed up as a value through three calls, its five words would be copied at each, a third of the time of a decision.
// limit is the policy's, or a share of it.
func (r *rules) decide(c *count, limit int, now int64, spend bool, d *Decision) {
	// Requests read the clock before they take the lock: a later one may come first. Time stands still for it, by less than a scheduling delay.
	now = max(now, c.last)
	c.last = now
	switch {
	case r.policy.Burst > 0:
		r.bucket(c, limit, now, spend, d)
	case r.exact:
		r.log(c, limit, now, spend, d)
	default:
		r.counters(c, limit, now, spend, d)
	}
}

// set fills in all: whoever is refused has nothing left until reset.
func (d *Decision) set(ok bool, limit, remaining int, reset int64) {
	d.OK, d.Limit, d.Remaining, d.Reset, d.RetryAfter = ok, limit, remaining, time.Duration(reset), 0
	if !ok {
		d.Remaining, d.RetryAfter = 0, d.Reset
	}
}

// log is the exact sliding window: a request counts for exactly Window, so that after RetryAfter the next one is allowed.
func (r *rules) log(c *count, limit int, now int64, spend bool, d *Decision) {
	window := int64(r.policy.Window)
	for c.n > 0 && now-c.times[c.head] >= window {
		if c.head++; c.head == len(c.times) {
			c.head = 0
		}
		c.n--
	}
	ok := c.n < limit
	if ok && spend {
		c.push(now, limit)
	}
	reset := int64(0)
	if c.n > 0 {
		reset = c.times[c.head] + window - now
	}
	d.set(ok, limit, limit-c.n, reset)
}

func (c *count) push(now int64, limit int) {
	if c.n == len(c.times) { // only where the ring was not made whole: a key with few requests keeps a small one
		bigger := make([]int64, min(max(2*c.n, 8), limit))
		copied := copy(bigger, c.times[c.head:])
		copy(bigger[copied:], c.times[:c.head])
		c.times, c.head = bigger, 0
	}
	at := c.head + c.n
	if at >= len(c.times) {
		at -= len(c.times)
	}
	c.times[at] = now
	c.n++
}

// counters is the approximate sliding window.
func (r *rules) counters(c *count, limit int, now int64, spend bool, d *Decision) {
	window := int64(r.policy.Window)
	switch index := now / window; {
	case index == c.index+1:
		c.index, c.prev, c.cur = index, c.cur, 0
	case index > c.index:
		c.index, c.prev, c.cur = index, 0, 0
	}
	offset := float64(now-c.index*window) / float64(window)
	used := float64(c.prev)*(1-offset) + float64(c.cur)
	ok := used+1 <= float64(limit)
	if ok && spend {
		c.cur++
		used++
	}
	remaining := max(int(float64(limit)-used), 0)
	reset := int64(0)
	if used > 0 {
		reset = c.until(float64(limit-remaining-1), offset, window)
	}
	d.set(ok, limit, remaining, reset)
}

// until is the time until no more than level is used: in this window while the last one slides out, or in the next while this one does.
// A microsecond on top pays for rounding.
func (c *count) until(level, offset float64, window int64) int64 {
	at := 1 + 1 - level/float64(max(c.cur, 1))
	if float64(c.cur) <= level {
		at = 1 - (level-float64(c.cur))/float64(max(c.prev, 1))
	}
	return int64(math.Ceil(max(at-offset, 0)*float64(window))) + int64(time.Microsecond)
}

// bucket is the token bucket as a single time: a token taken puts off by one interval the moment when the bucket is full.
func (r *rules) bucket(c *count, limit int, now int64, spend bool, d *Decision) {
	burst, interval := r.part(limit)
	if burst == 0 {
		d.set(false, 0, 0, int64(time.Second)) // until there is a share
		return
	}
	full := max(c.full, now)
	if c.per != interval && c.per != 0 { // another share: the tokens that are missing stay missing
		full = now + int64(float64(full-now)/float64(c.per)*float64(interval))
	}
	ok := full+interval-now <= int64(burst)*interval
	if ok && spend {
		full += interval
	}
	c.full, c.per = full, interval
	missing := (full - now + interval - 1) / interval
	reset := int64(0)
	if missing > 0 {
		reset = full - now - (missing-1)*interval
	}
	d.set(ok, burst, max(burst-int(missing), 0), reset)
}

// part is the depth and the pace of a bucket with a share of the limit.
func (r *rules) part(limit int) (burst int, interval int64) {
	switch limit {
	case r.policy.Limit:
		return r.policy.Burst, r.interval
	case 0:
		return 0, 0
	}
	share := float64(limit) / float64(r.policy.Limit)
	return max(int(share*float64(r.policy.Burst)), 1), int64(r.policy.Window) / int64(limit)
}

// used is what counts of a key against its limit.
func (r *rules) used(c *count, now int64) float64 {
	now = max(now, c.last)
	switch {
	case r.policy.Burst > 0:
		if c.per == 0 || c.full <= now {
			return 0
		}
		return float64(c.full-now) / float64(c.per)
	case r.exact:
		n := c.n
		for i := 0; i < c.n; i++ {
			if now-c.times[(c.head+i)%len(c.times)] < int64(r.policy.Window) {
				break
			}
			n--
		}
		return float64(n)
	}
	window := int64(r.policy.Window)
	switch index := now / window; index - c.index {
	case 0:
		return float64(c.prev)*(1-float64(now-index*window)/float64(window)) + float64(c.cur)
	case 1:
		return float64(c.cur) * (1 - float64(now-index*window)/float64(window))
	}
	return 0
}
