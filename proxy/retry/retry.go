// Package retry decides whether and when a request is sent again.
// It does not send anything: its user keeps the loop, the request and the deadline.
package retry

import (
	"math"
	"math/bits"
	"time"
)

// NoDeadline is the time left when there is no deadline.
const NoDeadline = time.Duration(math.MaxInt64)

// jitter is the share of the wait by which it varies each way: requests that failed together must not come back together.
const jitter = 0.25

// Backoff returns the wait after try n (the first is 1): delay×n, ±25 % by 64 random bits. ok is false if the wait would not end
// before left has passed: then the answer at hand is better than none. A delay of 0 or less waits 0; overflow waits for ever, that is, not ok.
func Backoff(delay time.Duration, n int, random uint64, left time.Duration) (wait time.Duration, ok bool) {
	if delay <= 0 || n <= 0 {
		return 0, left > 0
	}
	hi, lo := bits.Mul64(uint64(delay), uint64(n))
	if hi != 0 || lo > math.MaxInt64/2 {
		return NoDeadline, false
	}
	factor := 1 - jitter + 2*jitter*float64(random)/(1<<64)
	wait = time.Duration(float64(lo) * factor)
	return wait, wait < left
}

// Safe says whether a request may be sent again. answered: something of an answer has gone to the client, which settles it. sent: a byte of the request
// may have reached the server; then only an idempotent method may go again, for the first try may have had its effect.
func Safe(method string, sent, answered bool) bool {
	return !answered && (!sent || Idempotent(method))
}

// Idempotent says whether the method is idempotent by RFC 9110 section 9.2.2: GET, HEAD, OPTIONS, TRACE, PUT, DELETE.
// Methods are case-sensitive; of an unknown one nothing is assumed.
func Idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// Retriable says whether an answer with this status is worth another try: any 5xx. 501 and 505 are included, though another endpoint of the same release
// will hardly answer otherwise: the contract says 5xx, and releases differ while one rolls out.
func Retriable(status int) bool { return status >= 500 && status <= 599 }
