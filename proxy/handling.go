package proxy

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// handling is what a request needs whose traffic rule does more than route it.
// Its buffers hold what was made for the request and go from one to the next.
type handling struct {
	target   []byte
	time     []byte
	cookie   []byte
	held     *endpoint     // that the client's cookie names
	wait     time.Duration // that the upstream asked for before another try
	copyLast bool          // a copy is to be sent once the body is whole
	one      [1]string     // see only
}

// only is a list of one name: arguments of an interface's method are allocated.
func (h *handling) only(name string) []string {
	h.one[0] = name
	return h.one[:]
}

func (h *handling) reset() { h.held, h.wait, h.copyLast = nil, 0, false }

// timeLeftHeader tells who is called how long the caller's proxy will wait for
// the head of the answer, in ms, where a rule says how long that is.
const timeLeftHeader = "weir-timeout-ms"

// answerByRule answers in the service's place where the rule says so. What it
// changes of the answer's header it changes in every answer from here on.
func (o *outbound) answerByRule(x exchange) (status int, done bool) {
	plan := o.route.Plan
	if plan == nil {
		return 0, false
	}
	for i := range plan.Response {
		switch c := &plan.Response[i]; c.Kind {
		case policy.RemoveHeader:
			x.DelResponse(o.hand.only(c.Name)...)
		case policy.SetHeader:
			x.SetResponse(c.Name, c.Value)
		case policy.AddHeader:
			x.AddResponse(c.Name, c.Value)
		}
	}
	switch {
	case plan.Redirect:
		o.hand.target = plan.AppendLocation(o.hand.target[:0], x.Host(), x.Target())
		return o.answer(x, "redirect", plan.Status, nil, "Location", view(o.hand.target)), true
	case plan.Direct != nil:
		d := plan.Direct
		return o.answer(x, "direct-response", d.Status, d.Body, "Content-Type", d.ContentType), true
	}
	return 0, false
}

// answer gives an answer that is no refusal; word tells the log where it is from.
func (o *outbound) answer(x exchange, word reason, status int, body []byte, fields ...string) int {
	o.reason = word
	if err := x.Reply(status, body, fields...); err != nil {
		return 0
	}
	return status
}

// disturb makes a request slow, or fail, that a rule's fault takes.
func (o *outbound) disturb(x exchange) (status int, done bool) {
	plan := o.route.Plan
	if plan == nil || plan.Fault == nil {
		return 0, false
	}
	f := plan.Fault
	if f.Header != "" {
		if _, carried := x.Get(f.Header); !carried {
			return 0, false
		}
	}
	if f.Delay > 0 && f.Delayed.Takes(rand.Uint64()) {
		o.service.metrics.Fault("delay")
		if !o.hold(f.Delay) {
			if o.reason == clientGone {
				return 0, true
			}
			return o.reply(x, timedOutUpstream), true
		}
	}
	if f.Status == 0 || !f.Aborted.Takes(rand.Uint64()) {
		return 0, false
	}
	o.service.metrics.Fault("abort")
	if f.GRPCStatus != "" {
		return o.answer(x, faultInjected.word, f.Status, nil, "Content-Type", "application/grpc",
			"grpc-status", f.GRPCStatus, "grpc-message", faultInjected.text, "weir-error", string(faultInjected.word)), true
	}
	injected := *faultInjected
	injected.status = f.Status
	return o.reply(x, &injected), true
}

// hold waits as if the service took so long. It is false when the request's time
// is over before, the client leaves, or the proxy ends.
func (o *outbound) hold(d time.Duration) bool {
	now := o.l.Now()
	until, deadline := now.Add(d), o.deadline(o.x)
	inTime := deadline.IsZero() || until.Before(deadline)
	if !inTime {
		until = deadline
	}
	for left := until.Sub(now); left > 0 && !o.l.Closing(); left = until.Sub(o.l.Now()) {
		o.l.Sleep(min(left, holdAtOnce))
		if o.x.Gone() {
			o.reason = clientGone
			return false
		}
	}
	return inTime && !o.l.Closing()
}

// holdAtOnce bounds by how much a fault's delay holds up the end of the proxy, and how
// late it notices that the client left.
const holdAtOnce = 250 * time.Millisecond

// prepare changes the request as its rule says, and sends a copy where it says.
func (o *outbound) prepare(x hop) {
	plan := o.route.Plan
	if plan == nil {
		return
	}
	if plan.ChangesPath() {
		o.hand.target = plan.AppendTarget(o.hand.target[:0], x.Target())
		x.SetTarget(view(o.hand.target))
	}
	if plan.Host != "" {
		x.Set("Host", plan.Host)
	}
	for i := range plan.Request {
		switch c := &plan.Request[i]; c.Kind {
		case policy.RemoveHeader:
			x.Del(o.hand.only(c.Name)...)
		case policy.SetHeader:
			x.Set(c.Name, c.Value)
		case policy.AddHeader:
			x.Add(c.Name, c.Value)
		}
	}
	if plan.Idle > 0 {
		x.SetStreamIdle(plan.Idle)
	}
	if plan.Mirror != nil && plan.Mirror.Taken.Takes(rand.Uint64()) {
		o.mirror(x)
	}
}

// deadline is when the head of the answer must be there: the rule's timeout or,
// where the rule gives one, what the caller itself says if that is sooner. Zero
// is none.
func (o *outbound) deadline(x exchange) time.Time {
	deadline := time.Time{}
	if o.route.Timeout > 0 {
		deadline = o.began.Add(o.route.Timeout)
	}
	if o.route.Plan == nil || !o.route.Plan.Bounded {
		return deadline
	}
	for _, told := range []func(exchange) (time.Duration, bool){timeLeft, grpcTimeout} {
		if left, ok := told(x); ok {
			if by := o.began.Add(left); deadline.IsZero() || by.Before(deadline) {
				deadline = by
			}
		}
	}
	return deadline
}

// tryDeadline is when the head of the answer to one try must be there; who is
// called is told.
func (o *outbound) tryDeadline(x exchange, now, deadline time.Time) time.Time {
	plan := o.route.Plan
	if plan == nil {
		return deadline
	}
	if by := now.Add(plan.PerTry); plan.PerTry > 0 && (deadline.IsZero() || by.Before(deadline)) {
		deadline = by
	}
	if plan.Bounded && !deadline.IsZero() {
		ms := max(deadline.Sub(now).Milliseconds(), 1)
		o.hand.time = append(strconv.AppendInt(o.hand.time[:0], ms, 10), 'm')
		x.Set(timeLeftHeader, view(o.hand.time[:len(o.hand.time)-1]))
		if isGRPC(x) && ms < maxGRPCTime {
			x.Set("grpc-timeout", view(o.hand.time))
		}
	}
	return deadline
}

// timeLeft is how much time a proxy before left for the request.
func timeLeft(x exchange) (time.Duration, bool) {
	v, ok := x.Get(timeLeftHeader)
	if !ok {
		return 0, false
	}
	ms, err := strconv.ParseUint(v, 10, 31)
	return time.Duration(ms) * time.Millisecond, err == nil
}

func isGRPC(x exchange) bool {
	v, _ := x.Get("Content-Type")
	return strings.HasPrefix(v, "application/grpc")
}

// maxGRPCTime is what eight digits cannot say, the most that grpc-timeout has.
const maxGRPCTime = 100_000_000

// grpcTimeout reads a gRPC client's timeout: up to eight digits and a unit
// (gRPC over HTTP/2, "Requests").
func grpcTimeout(x exchange) (time.Duration, bool) {
	v, ok := x.Get("grpc-timeout")
	if !ok || len(v) < 2 || len(v) > 9 || !isGRPC(x) {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 31)
	if err != nil {
		return 0, false
	}
	switch v[len(v)-1] {
	case 'H':
		return time.Duration(min(n, 24*365)) * time.Hour, true
	case 'M':
		return time.Duration(n) * time.Minute, true
	case 'S':
		return time.Duration(n) * time.Second, true
	case 'm':
		return time.Duration(n) * time.Millisecond, true
	case 'u':
		return time.Duration(n) * time.Microsecond, true
	case 'n':
		return time.Duration(n), true
	}
	return 0, false
}
