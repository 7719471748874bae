package proxy

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/h2"
	"github.com/weir-mesh/weir/proxy/identity"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/retry"
	"github.com/weir-mesh/weir/proxy/telemetry"
	"github.com/weir-mesh/weir/proxy/translate"
)

// outboundConn is one connection of the app that carries requests.
type outboundConn struct {
	requests h1.Conn
	p        *Proxy
	lc       *listen.Conn
	dest     *destination // the service that was dialled
	seen     *destinations
	touched  time.Duration // the loop's age when the service's use was last told to the feed
	upgraded *upgrade      // nil unless there was one
}

// Draining is asked between requests.
func (c *outboundConn) Draining() bool { return c.lc.Listener().Draining() }

// outbound carries one request. It is reused from request to request so that a
// request allocates nothing, and held by no connection that is idle.
type outbound struct {
	*outboundConn
	l       *loop.Loop
	sel     selection
	ids     ids
	request policy.Request
	paths   policy.PathReader
	flow    policy.Flow
	text    []byte // header values made for this request
	hand    handling
	check   limitCheck

	x        hop
	h1       h1Hop // what x is: this,
	h2       h2Hop // or this
	route    policy.Route
	service  *destination // where route leads
	attempts int
	waited   bool // for room
	endpoint *endpoint
	t        attempt // the try at hand
	reason   reason
	began    time.Time
}

var outbounds = sync.Pool{New: func() any {
	o := &outbound{text: make([]byte, 0, 128)}
	o.sel.usableFn = o.sel.usable
	o.request.Header = o.header
	return o
}}

// Handle carries one request of the connection.
func (c *outboundConn) Handle(x *h1.Exchange) {
	o := outbounds.Get().(*outbound)
	o.outboundConn, o.l = c, c.lc.Loop()
	o.h1 = h1Hop{Exchange: x, l: o.l}
	o.serve(&o.h1)
	o.h1 = h1Hop{}
	o.free()
}

func (o *outbound) free() {
	o.outboundConn, o.x, o.service, o.endpoint, o.sel.pick = nil, nil, nil, nil, nil
	o.t = attempt{}
	o.sel.from, o.sel.full, o.hand.held = nil, nil, nil
	clear(o.sel.tried)
	outbounds.Put(o)
}

// header is what rules look at. It is bound once: a method value made for each
// request would be an allocation.
func (o *outbound) header(name string) (string, bool) { return o.x.Get(name) }

// serve is the order of the request path outwards.
func (o *outbound) serve(x hop) {
	o.begin(x)
	status := o.pass(x)
	o.end(x, status)
}

func (o *outbound) begin(x hop) {
	o.x, o.began = x, x.Now()
	o.attempts, o.endpoint, o.reason = 0, nil, ""
	o.hand.reset()
	o.ids.begin(x, o.p.mesh.Load().Tracing) // request id and trace
	x.Del(forgeable...)
	o.refresh()
	o.service = o.dest
}

// forgeable are the fields that only proxies may write. It is a variable since
// arguments of an interface's method are allocated.
var forgeable = []string{
	"X-Source-Service", "X-Source-Namespace", "X-Target-Service", "X-Target-Namespace", mirrorHeader,
	"X-Forwarded-Client-Cert", // what Envoy says of a peer's certificate; nobody here does
}

// refresh takes the service's resource of now, which may have changed since the
// last request. That it is in use need not be told more than once a second.
func (o *outbound) refresh() {
	if all := o.p.dests.Load(); all != o.seen || o.l.Age()-o.touched > time.Second {
		if d := o.p.destination(o.l, o.dest.svc.Name); d != nil {
			o.dest = d
		}
		o.seen, o.touched = all, o.l.Age()
	}
}

// pass carries one request and returns the status that the app got, 0 for none.
func (o *outbound) pass(x hop) int {
	if refused := o.findRoute(x); refused != nil {
		return o.reply(x, refused)
	}
	if status, done := o.answerByRule(x); done {
		return status
	}
	if status := o.limit(x); status != 0 {
		return status
	}
	if status, done := o.disturb(x); done {
		return status
	}
	o.prepare(x)
	o.service.budget.Request(o.began)
	status := o.bounded(x)
	o.mirrorLate(x)
	return status
}

// findRoute applies the service's traffic rules.
func (o *outbound) findRoute(x hop) *refusal {
	byPath := o.dest.byPath
	if byPath && !readPath(&o.paths, x) {
		return badPath
	}
	o.request.Method, o.request.Path, o.request.Host = x.Method(), x.Target(), x.Host()
	roll := rand.Uint64()
	o.route = o.dest.router.Route(&o.request, roll)
	if byPath && !o.sameRoute(roll) {
		return ambiguousPath
	}
	if o.route.Service == o.dest.svc.Name {
		return nil
	}
	o.service = o.p.destination(o.l, o.route.Service)
	if o.service == nil {
		o.service = o.dest
		return noEndpoints
	}
	return nil
}

// forward tries endpoints until one answers, the tries are used up or there is
// no time left.
func (o *outbound) forward(x hop) int {
	pk := o.service.choose(o.route.Subset, o.lc.OriginalDst().Port())
	if pk == nil {
		o.service.metrics.RoutingFailed()
		return o.reply(x, noEndpoints)
	}
	deadline := o.deadline(x)
	o.sel.begin(pk)
	o.sel.ignore, o.sel.counted = !o.route.Breaker, true
	o.prefer(x, pk)
	for {
		o.attempts++
		status, again := o.try(x, deadline)
		if !again {
			return status
		}
		o.service.metrics.Retried()
	}
}

// try sends the request to one endpoint. It returns the status that the app
// got, or that the request is to be tried again.
func (o *outbound) try(x hop, deadline time.Time) (status int, again bool) {
	o.sel.now = o.began
	if o.attempts > 1 || o.waited {
		o.sel.now = o.l.Now()
	}
	random := rand.Uint64()
	e, ticket, ok := o.sel.take(random, o.service.hashKey.hash(x.Target(), x, o.p.cfg.ID, random))
	if !ok {
		return o.noneUsable(x), false
	}
	o.endpoint = e
	o.service.metrics.Routed()
	if x.upgrades() && x.version() != e.version() {
		e.unjudged(ticket)
		return o.reply(x, noUpgrade), false
	}
	o.identify(x, e)
	o.t = attempt{e: e, ticket: ticket, began: o.sel.now}
	o.h1.hedged = o.hedge(x)
	o.h2.hedged = o.h1.hedged
	status, err := x.send(&e.kept[o.lc.Shard()], o, o.tryDeadline(x, o.t.began, deadline))
	e, ticket, began := o.t.e, o.t.ticket, o.t.began // of the endpoint that answered
	now := o.l.Now()
	if err != nil {
		return o.sendFailed(x, ticket, began, err, deadline)
	}
	if status == http.StatusServiceUnavailable && o.crowded(x) {
		e.unjudged(ticket)
		x.discard()
		return o.reply(x, overload), false
	}
	verdict, known := x.verdict()
	if !known {
		return o.judgeLate(x, status, now), false
	}
	o.judge(e, ticket, now, now.Sub(began), verdict >= 500)
	if o.repeats(x, verdict) && o.mayRetry(x, e, deadline) {
		x.discard()
		return 0, true
	}
	return o.relay(x, status), false
}

// judgeLate relays an answer whose verdict comes with its end; one that the client
// broke off has none.
func (o *outbound) judgeLate(x hop, status int, now time.Time) int {
	t := o.t
	status = o.relay(x, status)
	if o.reason == clientGone {
		t.e.unjudged(t.ticket)
		return status
	}
	verdict, _ := x.verdict()
	o.judge(t.e, t.ticket, now, now.Sub(t.began), verdict >= 500)
	return status
}

// judge tells those who keep count of an endpoint how it answered; took is the time
// to the answer's head.
func (o *outbound) judge(e *endpoint, t breaker.Ticket, now time.Time, took time.Duration, failed bool) {
	e.stats.End(now, took, failed)
	e.record(took, failed)
	if !failed {
		o.p.succeeded(e, t, now)
		return
	}
	o.service.metrics.BackendFailed()
	o.p.failed(e, t, now)
}

// attempt is one try at one endpoint.
type attempt struct {
	e      *endpoint
	ticket breaker.Ticket
	began  time.Time
	stale  int // connections that turned out to be closed
}

// dial connects to the endpoint of the try at hand.
func (o *outbound) dial(speak translate.Version, deadline time.Time) (loop.Stream, error) {
	return o.p.dialFor(o.l, o.service, o.endpoint, speak, deadline)
}

// noneUsable answers when no endpoint may be used.
func (o *outbound) noneUsable(x hop) int {
	full := o.sel.full
	switch {
	case o.attempts > 1: // tries were made and failed: that is what the app is to hear
		o.service.metrics.RoutingFailed()
		return o.reply(x, upstreamFailed)
	case full != nil:
		o.service.metrics.RateLimited()
		o.text = setLimitFields(x, o.text[:0], policy.DefaultLimit, limitPolicy(full.limit), o.sel.when)
		return o.reply(x, rateLimited)
	}
	o.service.metrics.RoutingFailed()
	return o.reply(x, circuitOpen)
}

// sendFailed decides what a failed try means.
func (o *outbound) sendFailed(x hop, ticket breaker.Ticket, began time.Time, err error, deadline time.Time) (status int, again bool) {
	e, now, f := o.endpoint, o.l.Now(), failureOf(err)
	if errors.Is(err, h2.ErrNoConnect) {
		e.unjudged(ticket)
		return o.reply(x, noUpgrade), false
	}
	if f.exchanged && !f.server {
		e.unjudged(ticket)
		return o.clientFailed(x, f), false
	}
	if errors.Is(err, errOverload) {
		e.unjudged(ticket)
		return o.reply(x, overload), false
	}
	e.stats.End(now, now.Sub(began), true)
	e.record(0, true)
	o.service.metrics.BackendFailed()
	o.p.failed(e, ticket, now)
	o.p.log.Debug("try failed", zap.Stringer("service", o.service.svc.Name), zap.String("endpoint", e.id),
		zap.Int("try", o.attempts), zap.Error(err))
	timedOut := !deadline.IsZero() && !now.Before(deadline)
	safe := !f.exchanged || retry.Safe(x.Method(), f.sent, false)
	if !timedOut && safe && o.repeatsSilence(f.exchanged) && o.mayRetry(x, e, deadline) {
		return 0, true
	}
	if timedOut || f.timeout {
		return o.reply(x, timedOutUpstream), false
	}
	if errors.Is(err, identity.ErrRevoked) {
		return o.reply(x, peerRevoked), false
	}
	return o.reply(x, upstreamFailed), false
}

// clientFailed ends a request that the app broke off or framed badly.
func (o *outbound) clientFailed(x hop, f failure) int {
	o.reason = clientGone
	if f.status == 0 || f.got {
		return 0
	}
	return o.reply(x, unreadable(f.status))
}

// mayRetry asks for another try and waits for its time.
func (o *outbound) mayRetry(x hop, e *endpoint, deadline time.Time) bool {
	if o.attempts >= o.route.Attempts || !x.CanRetry() {
		return false
	}
	if !o.p.backoff(o.l, o.service, o.pause(), o.attempts, deadline) {
		return false
	}
	o.sel.avoid(e)
	return true
}

// relay passes the answer on.
func (o *outbound) relay(x hop, status int) int {
	o.stick(x, o.endpoint)
	if status == 101 {
		var err error
		if o.upgraded, err = x.upgrade(); err != nil {
			return 0
		}
		return status
	}
	err := x.relay()
	if err != nil {
		if failureOf(err).server {
			o.reason = upstreamFailed.word
			o.service.metrics.BackendFailed()
		} else {
			o.reason = clientGone
		}
	}
	return status
}

// identify tells an endpoint without a proxy who is calling; a proxy finds out
// from the certificate and would not believe it.
func (o *outbound) identify(x hop, e *endpoint) {
	if e.mtls {
		return
	}
	if e.host != "" {
		o.present(x, e)
		return
	}
	x.Set("X-Source-Service", o.p.cfg.Service.Name)
	x.Set("X-Source-Namespace", o.p.cfg.Service.Namespace)
}

func balanceRequest(s *selection, random, hash uint64) balance.Request {
	return balance.Request{Now: s.now, Random: random, Hash: hash, Usable: s.usableFn}
}

// end counts the request and writes its line in the access log.
func (o *outbound) end(x hop, status int) {
	took := o.l.Now().Sub(o.began)
	o.count(x, status)
	o.service.metrics.Done(status, took, x.Sent(), x.Received())
	code, grpc := grpcCode(x)
	if grpc {
		o.service.metrics.GRPC(code)
	}
	if o.p.access == nil || !o.p.mesh.Load().AccessLog {
		return
	}
	r := &telemetry.Record{
		Time: o.began, Direction: telemetry.Outbound, RequestID: strings.Clone(o.ids.request), Source: o.p.cfg.Service.String(),
		Destination: o.service.label, Method: strings.Clone(x.Method()), Path: strings.Clone(x.Target()), Protocol: x.protocol(),
		Status: status, Reason: string(o.reason), Duration: took, BytesIn: x.Sent(), BytesOut: x.Received(),
		Attempts: o.attempts, Route: o.route.Rule, TraceID: strings.Clone(o.ids.trace),
	}
	if o.endpoint != nil {
		r.Endpoint = o.endpoint.at
	}
	if grpc {
		r.GRPC = telemetry.GRPCName(code)
	}
	o.p.access.Log(r)
}
