package proxy

import (
	"errors"
	"strconv"
	"time"

	"github.com/weir-mesh/weir/proxy/h2"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/retry"
	"github.com/weir-mesh/weir/proxy/telemetry"
	"github.com/weir-mesh/weir/proxy/translate"
)

// outboundStreams is one connection of the app that carries requests in HTTP/2, many
// at once.
type outboundStreams struct {
	streams h2.Conn
	outboundConn
}

// serveStreams runs the HTTP/2 engine on a connection.
func (p *Proxy) serveStreams(c loop.Stream, peeked []byte, lc *listen.Conn, d *destination) {
	p.conns.outboundH2.Opened()
	o := &outboundStreams{outboundConn: outboundConn{p: p, lc: lc, dest: d}}
	p.h2.Begin(&o.streams, c, peeked, o)
}

// Handle carries one request of the connection.
func (c *outboundStreams) Handle(x *h2.Exchange) {
	o := outbounds.Get().(*outbound)
	o.outboundConn, o.l = &c.outboundConn, c.lc.Loop()
	o.h2 = h2Hop{Exchange: x, l: o.l}
	o.serve(&o.h2)
	o.h2.put()
	o.h2 = h2Hop{}
	o.free()
}

// Connects implements h2.Connecter: extended CONNECT reaches endpoints of HTTP/2 only.
func (c *outboundStreams) Connects() bool {
	for _, e := range c.dest.members {
		if e.version() != translate.HTTP2 {
			return false
		}
	}
	return true
}

// Ended is told how the connection ended.
func (c *outboundStreams) Ended(err error) {
	streamsEnded(c.p.conns.outboundH2, err)
}

// inboundStreams is one connection to the app that carries requests in HTTP/2.
type inboundStreams struct {
	streams h2.Conn
	*inbound
}

// serveStreams runs the HTTP/2 engine.
func (i *inbound) serveStreams(c loop.Stream, peeked []byte) {
	i.p.conns.inboundH2.Opened()
	s := &inboundStreams{inbound: i}
	i.p.h2.Begin(&s.streams, c, peeked, s)
}

// Handle is the handler of the connection's requests.
func (s *inboundStreams) Handle(x *h2.Exchange) {
	r := inboundPool.Get().(*inboundRequests)
	r.in, r.l = s.inbound, s.lc.Loop()
	r.h2 = h2Hop{Exchange: x, l: r.l}
	r.serve(&r.h2)
	r.h2.put()
	r.h2 = h2Hop{}
	r.free()
}

// Connects implements h2.Connecter.
func (s *inboundStreams) Connects() bool { return s.protocol == "http2" || s.protocol == "grpc" }

// Ended is told how the connection ended.
func (s *inboundStreams) Ended(err error) {
	streamsEnded(s.p.conns.inboundH2, err)
}

func streamsEnded(m *telemetry.Connections, err error) {
	if err != nil {
		m.Closed("failed", 0, 0)
		return
	}
	m.Closed("eof", 0, 0)
}

// h2Hop is an exchange of HTTP/2, on both sides.
type h2Hop struct {
	*h2.Exchange
	l      *loop.Loop
	pool   *h2.Pool
	up     *h2.Upstream // of pool, whose answer is or was at hand
	resp   *h2.Response // until the answer is relayed or dropped
	status int          // of the answer
	over   bool         // all of the answer that a verdict goes by is there
	own    int          // the grpc-status that the proxy itself answered with
	hedged hedger       // nil: the request goes to one server at a time
}

func (g *h2Hop) protocol() string {
	if g.GRPC() {
		return "grpc"
	}
	return "http2"
}

func (g *h2Hop) version() translate.Version { return translate.HTTP2 }

func (g *h2Hop) send(kept *kept, via link, deadline time.Time) (int, error) {
	for stale := 0; ; stale++ {
		pool := kept.streams()
		up, err := pool.Take(g.l, deadline, func() (loop.Stream, error) { return via.dial(translate.HTTP2, deadline) })
		if err != nil {
			return 0, err
		}
		var resp *h2.Response
		if g.hedged == nil {
			resp, err = g.RoundTrip(up, deadline)
		} else {
			resp, up, pool, err = g.hedged.roundTripStream(g.Exchange, up, deadline)
		}
		if err == nil {
			g.pool, g.up, g.resp, g.status, g.over = pool, up, resp, resp.Status, resp.EndStream || !g.GRPC() || resp.Status != 200
			return resp.Status, nil
		}
		var he *h2.Error
		if !errors.As(err, &he) || !he.Stale() || !g.CanRetry() || stale >= maxStale || !retry.Safe(g.Method(), he.Sent, he.Got) {
			return 0, err
		}
	}
}

func (g *h2Hop) relay() error {
	g.over = true
	err := g.Relay(g.up)
	g.put()
	return err
}

func (g *h2Hop) discard() {
	g.Discard(g.up)
	g.put()
}

// put gives the place on the connection to the server back, whose streams are
// counted: without it every hundredth request or so would need a new connection.
func (g *h2Hop) put() {
	if g.up != nil {
		g.pool.Put(g.l.Now(), g.up)
		g.up = nil
	}
}

// abort says what gRPC takes for PERMISSION_DENIED.
func (g *h2Hop) abort() { g.Abort(h2.InadequateSecurity) }

func (g *h2Hop) upgrades() bool { return g.Protocol() != "" }

func (g *h2Hop) upgrade() (*upgrade, error) { return nil, errNoUpgrade }

var errNoUpgrade = errors.New("a stream of HTTP/2 cannot be taken over")

// verdict implements hop.
func (g *h2Hop) verdict() (int, bool) {
	if !g.GRPC() || g.status != 200 {
		return g.status, true
	}
	if !g.over {
		return 0, false
	}
	return grpcAsHTTP(g.grpcStatus()), true
}

func (g *h2Hop) answerField(name string) (string, bool) { return g.resp.Get(name) }

// ReplyGRPC answers the call here.
func (g *h2Hop) ReplyGRPC(code int, message string) error {
	g.own = code
	return g.Exchange.ReplyGRPC(code, message)
}

// grpcStatus is the grpc-status that a call ended with, -1 if with none.
func (g *h2Hop) grpcStatus() int {
	if g.own != 0 {
		return g.own
	}
	v, ok := g.Trailer("grpc-status")
	if !ok {
		return -1
	}
	if code, err := strconv.ParseUint(v, 10, 31); err == nil {
		return int(code)
	}
	return -1
}

// grpcAsHTTP is the status of HTTP that says what a grpc-status does, where it is
// the server that failed; that a method is not there is the caller's fault.
func grpcAsHTTP(code int) int {
	switch code {
	case 2, 13, 15: // UNKNOWN, INTERNAL, DATA_LOSS
		return 500
	case 14: // UNAVAILABLE
		return 503
	case 4: // DEADLINE_EXCEEDED
		return 504
	case -1: // none came
		return 502
	}
	return 200
}

// grpcOf is the grpc-status of an answer that the proxy makes: what gRPC's own
// table of HTTP statuses says, but that a limit is RESOURCE_EXHAUSTED, which callers
// do not take for a server that is gone.
func grpcOf(status int) int {
	switch status {
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 429, 431:
		return 8 // RESOURCE_EXHAUSTED
	case 501:
		return 12 // UNIMPLEMENTED
	case 502, 503:
		return 14 // UNAVAILABLE
	case 408, 504:
		return 4 // DEADLINE_EXCEEDED
	}
	return 13 // INTERNAL
}

// grpcCall is an exchange that may be a gRPC call, which hears of failures in its
// own way.
type grpcCall interface {
	GRPC() bool
	ReplyGRPC(code int, message string) error
	grpcStatus() int
}

// grpcCode is the grpc-status that a call ended with, -1 if with none; of what is no
// gRPC call it is false.
func grpcCode(x exchange) (code int, is bool) {
	g, ok := x.(grpcCall)
	if !ok || !g.GRPC() {
		return 0, false
	}
	return g.grpcStatus(), true
}
