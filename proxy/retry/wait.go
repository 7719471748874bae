package retry

import (
	"math"
	"time"
)

// Wait is how long to wait between tries.
type Wait struct {
	Delay time.Duration // × n before try n+1, as for Backoff
	Most  time.Duration // no wait is longer; 0 is no bound
	Least time.Duration // what the server asked for: no wait is shorter
}

// Before returns the wait before try n+1, n from 1, by 64 random bits. ok is false
// if it would not end before left has passed, or if the server asked for more than
// Most: then the answer at hand is better than none.
func (w Wait) Before(n int, random uint64, left time.Duration) (wait time.Duration, ok bool) {
	if w.Most <= 0 {
		wait, ok = Backoff(w.Delay, n, random, left)
	} else {
		// The bound is put on what the jitter is added to, so that waits at the bound
		// differ, too.
		wait, ok = Backoff(min(times(w.Delay, n), time.Duration(float64(w.Most)/(1+jitter))), 1, random, left)
		wait = min(wait, w.Most)
	}
	if w.Least > w.Most && w.Most > 0 {
		return w.Least, false
	}
	if wait < w.Least {
		wait, ok = w.Least, w.Least < left
	}
	return wait, ok
}

// times is d×n, or the longest there is.
func times(d time.Duration, n int) time.Duration {
	if d <= 0 || n <= 0 {
		return 0
	}
	if d > math.MaxInt64/time.Duration(n) {
		return NoDeadline
	}
	return d * time.Duration(n)
}
