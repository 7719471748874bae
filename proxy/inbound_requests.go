package proxy

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/h2"
	"github.com/weir-mesh/weir/proxy/jwt"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// inboundRequests carries one request to the app. It is reused from request to
// request, and held by no connection that is idle.
type inboundRequests struct {
	in   *inbound
	h1   h1Hop // the request is this,
	h2   h2Hop // or this
	l    *loop.Loop
	ids  ids
	text []byte

	paths policy.PathReader
	check limitCheck
	hop   hop // from authorize on
	guard *guard
	call  policy.Call

	claims     map[string]any // of the token, once it was asked for
	noToken    policy.Reason  // why there are none
	tokenAsked bool
	late       bool // the rules changed while it is under way, and it is asked about again

	next, prev *inboundRequests // of those under way
	marked     bool             // policy allows it no more
	why        policy.Verdict   // for which it was cut

	reason  reason
	rule    string
	audits  string
	decided policy.Verdict
	flow    policy.Flow
	began   time.Time
}

var inboundPool = sync.Pool{New: func() any {
	r := &inboundRequests{text: make([]byte, 0, 128)}
	// Bound once: a method value made for each request would be an allocation.
	r.call.Header, r.call.Token = r.header, r.token
	return r
}}

// Handle is the handler of the connection's requests.
func (i *inbound) Handle(x *h1.Exchange) {
	r := inboundPool.Get().(*inboundRequests)
	r.in, r.l = i, i.lc.Loop()
	r.h1 = h1Hop{Exchange: x, l: r.l, conn: &i.lc.Conn}
	r.serve(&r.h1)
	r.h1 = h1Hop{}
	r.free()
}

func (r *inboundRequests) free() {
	r.in, r.hop, r.guard, r.claims = nil, nil, nil, nil
	inboundPool.Put(r)
}

// serve is the order of the request path inwards.
func (r *inboundRequests) serve(x hop) {
	r.begin(x)
	status := r.pass(x)
	r.end(x, status)
}

func (r *inboundRequests) begin(x hop) {
	r.began = x.Now()
	r.reason, r.rule, r.audits = "", "", ""
	r.tokenAsked, r.claims, r.marked, r.why = false, nil, false, policy.Verdict{}
	r.ids.begin(x, false) // a trace is begun by whoever calls first
	// Who calls is what the certificate says; what the caller wrote is dropped.
	x.Del(clientCert...)
	if r.in.caller.Verified {
		x.Set("X-Source-Service", r.in.caller.Name.Name)
		x.Set("X-Source-Namespace", r.in.caller.Name.Namespace)
	} else {
		x.Del(sourceFields...)
	}
}

// sourceFields tell the app who calls.
var sourceFields, clientCert = forgeable[:2], forgeable[5:]

// pass carries one request and returns the status the caller got, 0 for none.
func (r *inboundRequests) pass(x hop) int {
	if status := r.authorize(x); status != 0 {
		return status
	}
	if r.in.trusted {
		return r.forward(x)
	}
	u := &r.in.p.underway[r.in.lc.Shard()]
	u.add(r)
	defer u.remove(r)
	return r.forward(x)
}

// authorize applies the security rules, the token that a rule may demand, and
// limits that go by who calls.
func (r *inboundRequests) authorize(x hop) int {
	if r.in.trusted {
		return 0
	}
	g := r.in.p.guard.Load()
	if g.byPath && !readPath(&r.paths, x) {
		r.decided = policy.Verdict{Reason: policy.Reason(badPath.word)}
		return r.reply(x, badPath)
	}
	r.hop, r.guard = x, g
	r.call.Caller, r.call.Port = r.in.caller, r.in.dst.Port()
	v, one := r.verdict(x, g)
	if r.in.p.guard.Load() != g { // the rules changed while keys for its token were fetched
		r.tokenAsked = false
		return r.authorize(x)
	}
	r.rule, r.decided = v.Rule, v
	if g.Audits() {
		r.audits = r.in.audit(g, &r.call)
	}
	switch {
	case !one:
		r.decided = policy.Verdict{Reason: policy.Reason(ambiguousPath.word)}
		return r.reply(x, ambiguousPath)
	case v.Allow:
		return r.limit(x, g)
	case v.Reason == policy.TokenMissing:
		r.in.deny(v)
		return r.reply(x, tokenMissing)
	case v.Reason == policy.TokenInvalid:
		r.in.deny(v)
		return r.reply(x, tokenInvalid)
	}
	r.in.deny(v)
	return r.reply(x, denied(reason(v.Reason)))
}

// header is what rules look at.
func (r *inboundRequests) header(name string, n int) (string, bool) { return r.hop.Nth(name, n) }

// token verifies the request's token, once.
func (r *inboundRequests) token() (map[string]any, policy.Reason) {
	if !r.tokenAsked {
		r.tokenAsked = true
		claims, err := r.checkToken(r.hop, r.guard)
		r.claims, r.noToken = claims.All, refusedToken(err)
	}
	return r.claims, r.noToken
}

// method is the method that rules go by. The control plane may check health, by GET;
// gRPC's health check does the same and is a POST, as all gRPC calls are.
func (r *inboundRequests) method(x exchange, target string) string {
	if r.in.caller.Name == policy.ControlPlane && x.Method() == "POST" && target == grpcHealth {
		if _, is := grpcCode(x); is {
			return "GET"
		}
	}
	return x.Method()
}

// grpcHealth is the method of gRPC's health checking protocol.
const grpcHealth = "/grpc.health.v1.Health/Check"

func (r *inboundRequests) checkToken(x exchange, g *guard) (jwt.Claims, error) {
	header, _ := x.Get("Authorization")
	if r.late { // outside any task, which verify may have wait
		return g.tokens.Verify(header, r.began)
	}
	claims, err := r.in.p.verify(r.l, g, header, r.began)
	if err != nil && !errors.Is(err, jwt.ErrMissing) {
		r.in.p.log.Debug("token refused", zap.Error(err))
	}
	return claims, err
}

// refusedToken is why a token that was looked at counts for nothing.
func refusedToken(err error) policy.Reason {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, jwt.ErrMissing):
		return policy.TokenMissing
	}
	return policy.TokenInvalid
}

// forward sends the request to the app.
func (r *inboundRequests) forward(x hop) int {
	status, err := x.send(r.in.p.apps[r.in.lc.Shard()].get(appKey{r.in.dst, r.in.p.cfg.AppSource.perCaller(r.in.lc.Peer())}), r.in, time.Time{})
	if err == nil {
		return r.relay(x, status)
	}
	switch f := failureOf(err); {
	case errors.Is(err, h2.ErrNoConnect):
		return r.reply(x, noUpgrade)
	case !f.exchanged:
		r.in.p.log.Debug("the app does not answer", zap.Stringer("address", r.in.dst), zap.Error(err))
		return r.reply(x, appDown)
	case !f.server:
		return r.callerFailed(x, f)
	}
	return r.reply(x, upstreamFailed)
}

func (r *inboundRequests) callerFailed(x hop, f failure) int {
	r.reason = clientGone
	if f.status == 0 || f.got {
		return 0
	}
	return r.reply(x, unreadable(f.status))
}

func (r *inboundRequests) relay(x hop, status int) int {
	if status == 101 {
		var err error
		r.in.asked = r.keep()
		if r.in.upgraded, err = x.upgrade(); err != nil {
			return 0
		}
		return status
	}
	if err := x.relay(); err != nil {
		r.reason = clientGone
		if failureOf(err).server {
			r.reason = upstreamFailed.word
		}
	}
	return status
}

func (r *inboundRequests) reply(x exchange, f *refusal) int {
	r.reason = f.word
	return answer(x, f, r.in.p.cfg.Service.Name+"."+r.in.p.cfg.Service.Namespace)
}

func (r *inboundRequests) end(x hop, status int) {
	took := r.l.Now().Sub(r.began)
	p := r.in.p
	if r.why.Reason != "" {
		r.reason, r.rule = reason(r.why.Reason), r.why.Rule
	}
	r.count(x, status)
	p.ownMetrics().Done(status, took, x.Sent(), x.Received())
	code, grpc := grpcCode(x)
	if grpc {
		p.ownMetrics().GRPC(code)
	}
	if p.access == nil || !p.mesh.Load().AccessLog {
		return
	}
	record := &telemetry.Record{
		Time: r.began, Direction: telemetry.Inbound, RequestID: strings.Clone(r.ids.request), Source: source(r.in.caller, r.in.lc.Peer()),
		Destination: p.cfg.Service.String(), Endpoint: r.in.dst.String(), Method: strings.Clone(x.Method()), Path: strings.Clone(x.Target()),
		Protocol: x.protocol(), Status: status, Reason: string(r.reason), Duration: took, BytesIn: x.Sent(), BytesOut: x.Received(),
		Attempts: 1, Route: r.rule, Audit: r.audits, TraceID: strings.Clone(r.ids.trace),
	}
	if grpc {
		record.GRPC = telemetry.GRPCName(code)
	}
	p.access.Log(record)
}

// isLocal tells whether a peer is a program of this network namespace.
func (p *Proxy) isLocal(a netip.Addr) bool { return a.IsLoopback() || p.local[a] }
