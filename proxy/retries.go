package proxy

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/retry"
)

// repeats tells whether an answer is worth another try: by the rule's conditions
// or, without any, a 5xx.
func (o *outbound) repeats(x hop, verdict int) bool {
	o.hand.wait = 0
	again := retry.Safe(x.Method(), true, false)
	plan := o.route.Plan
	if plan == nil || plan.Retries == nil {
		return again && retry.Retriable(verdict)
	}
	again = again && plan.Retries.Answer(verdict)
	if !again {
		status, _ := x.answerField("grpc-status")
		again = plan.Retries.GRPC(status)
	}
	if after, ok := x.answerField("Retry-After"); ok && again {
		o.hand.wait = retryAfter(after, o.l.Now())
	}
	return again
}

// repeatsSilence tells whether a try without an answer is worth another.
func (o *outbound) repeatsSilence(connected bool) bool {
	o.hand.wait = 0
	plan := o.route.Plan
	return plan == nil || plan.Retries == nil || plan.Retries.NoAnswer(connected)
}

// retryAfter reads Retry-After, which holds seconds or a date (RFC 9110 section
// 10.2.3). What is neither asks for nothing.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// pause is the wait before the next try.
func (o *outbound) pause() retry.Wait {
	w := retry.Wait{Delay: o.service.svc.Traffic.Retry.Delay}
	if plan := o.route.Plan; plan != nil && plan.Retries != nil {
		w = retry.Wait{Delay: plan.Delay, Most: plan.MaxDelay, Least: o.hand.wait}
	}
	return w
}

// backoff waits before try n+1; false when there is no time or budget for it.
func (p *Proxy) backoff(l *loop.Loop, d *destination, w retry.Wait, n int, deadline time.Time) bool {
	left := retry.NoDeadline
	if !deadline.IsZero() {
		left = deadline.Sub(l.Now())
	}
	wait, fits := w.Before(n, rand.Uint64(), left)
	if !fits {
		d.metrics.RetryRefused("deadline")
		return false
	}
	if !d.budget.Take(l.Now()) {
		d.metrics.RetryRefused("budget")
		return false
	}
	l.Sleep(wait)
	return !l.Closing()
}
