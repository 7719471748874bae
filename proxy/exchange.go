package proxy

import (
	"errors"
	"strings"
	"time"

	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/h2"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/retry"
	"github.com/weir-mesh/weir/proxy/translate"
)

// exchange is one request and its answer, whichever version of HTTP they are
// carried by. Its strings are valid until the request's handler returns.
type exchange interface {
	Now() time.Time // at which the request's head was complete
	Method() string
	Target() string // "/a?b" or "*"
	// Retarget has another target stand for the one that came.
	Retarget(target string)
	Host() string // may be empty
	Get(name string) (value string, ok bool)
	// Nth is Get after n fields of the same name.
	Nth(name string, n int) (value string, ok bool)

	// Changes of the request, and of the answer's head.
	Set(name, value string)
	Add(name, value string)
	Del(names ...string)
	SetTarget(target string)
	SetStreamIdle(time.Duration) // how long the server may be silent inside the answer's body
	SetResponse(name, value string)
	AddResponse(name, value string)
	DelResponse(names ...string)

	Reply(status int, body []byte, header ...string) error
	CanRetry() bool
	Gone() bool      // the client is known to have left; nothing will be answered then
	Sent() int64     // bytes of the request's body that were read
	Received() int64 // bytes of the answer's body that the client got
}

// hop is an exchange with the way on to its server: by a connection of HTTP/1.1
// or a stream of HTTP/2, kept from before or made by a link.
type hop interface {
	exchange
	// send sends the request and returns with the answer's status. One of relay,
	// discard, upgrade and Reply must follow where there is no error. What a
	// server closed while nobody used it says nothing about the server: the next
	// connection is taken at once.
	send(kept *kept, via link, deadline time.Time) (status int, err error)
	// relay passes the answer on.
	relay() error
	// verdict is the status by which an answer is judged: its own or, of a gRPC call,
	// what the grpc-status amounts to, which most often is known only after relay.
	verdict() (status int, known bool)
	// answerField is a field of the answer's head.
	answerField(name string) (value string, ok bool)
	// Whole reports whether all of the request's body is there, and AppendCopy appends
	// the request as HTTP/1.1 text with a field more, if all of it is kept.
	Whole() bool
	AppendCopy(b []byte, name, value string) ([]byte, bool)
	// KeepBody has the request's body kept for AppendCopy after the answer, too.
	KeepBody()
	// discard drops the answer.
	discard()
	// version is the one in which the request came.
	version() translate.Version
	// upgrades reports whether the request asks for another protocol on its connection,
	// or its stream.
	upgrades() bool
	// upgrade hands both connections over after a 101.
	upgrade() (*upgrade, error)
	// abort ends the exchange while another task of the loop handles it. A client of
	// HTTP/2 is told that it is not permitted; to one of HTTP/1.1 the connection breaks.
	abort()
	// protocol is the word of the access log.
	protocol() string
}

// link makes a connection to a server, on which this version of HTTP is spoken.
type link interface {
	dial(speak translate.Version, deadline time.Time) (loop.Stream, error)
}

// kept are a loop's connections to one server: of HTTP/1.1 those that are idle.
type kept struct {
	h1     *h1.Pool
	h2     *h2.Pool // nil until somebody speaks HTTP/2 to the server
	closed bool
}

func newKept() kept { return kept{h1: h1.NewPool(h1.PoolConfig{})} }

// streams are the connections of HTTP/2.
func (k *kept) streams() *h2.Pool {
	if k.h2 == nil {
		if k.h2 = h2.NewPool(h2.PoolConfig{}); k.closed {
			k.h2.Close()
		}
	}
	return k.h2
}

func (k *kept) close() {
	k.closed = true
	k.h1.Close()
	if k.h2 != nil {
		k.h2.Close()
	}
}

// trim closes what has been idle for too long and says how many connections are left.
func (k *kept) trim(now time.Time) int {
	left := k.h1.CloseIdle(now)
	if k.h2 != nil {
		left += k.h2.CloseIdle(now)
	}
	return left
}

// maxStale bounds how many dead connections one try may meet: after a restart of
// a server all that were kept can be.
const maxStale = 300

// h1Hop is an exchange of HTTP/1.1, on both sides.
type h1Hop struct {
	*h1.Exchange
	l    *loop.Loop
	conn *loop.Conn // the client's; nil where nothing aborts
	pool *h1.Pool
	up   *h1.Upstream
	resp *h1.Response

	hedged hedger // nil: the request goes to one server at a time
}

func (g *h1Hop) Method() string                 { return g.Req.Method }
func (g *h1Hop) Target() string                 { return g.Req.Target }
func (g *h1Hop) Retarget(target string)         { g.Req.Target = target }
func (g *h1Hop) Host() string                   { return g.Req.Host }
func (g *h1Hop) Get(name string) (string, bool) { return g.Req.Get(name) }
func (g *h1Hop) KeepBody()                      {} // it is kept in any case

func (g *h1Hop) Nth(name string, n int) (string, bool) {
	if n == 0 {
		return g.Req.Get(name)
	}
	for k, v := range g.Req.All() {
		if strings.EqualFold(k, name) {
			if n--; n < 0 {
				return v, true
			}
		}
	}
	return "", false
}

func (g *h1Hop) protocol() string { return "http1" }

func (g *h1Hop) abort() { _ = g.conn.Reset() }

func (g *h1Hop) version() translate.Version { return translate.HTTP1 }

func (g *h1Hop) send(kept *kept, via link, deadline time.Time) (int, error) {
	for stale := 0; ; stale++ {
		up := kept.h1.Get(g.l.Now())
		if up == nil {
			c, err := via.dial(translate.HTTP1, deadline)
			if err != nil {
				return 0, err
			}
			up = h1.NewUpstream(c)
		}
		var resp *h1.Response
		var err error
		pool := kept.h1
		if g.hedged == nil {
			resp, err = g.RoundTrip(up, deadline)
		} else {
			resp, up, pool, err = g.hedged.roundTrip(g.Exchange, up, deadline)
		}
		if err == nil {
			g.pool, g.up, g.resp = pool, up, resp
			return resp.Status, nil
		}
		var he *h1.Error
		if !errors.As(err, &he) || !he.Stale() || !g.CanRetry() || stale >= maxStale || !retry.Safe(g.Req.Method, he.Sent, he.Got) {
			return 0, err
		}
	}
}

func (g *h1Hop) verdict() (int, bool) { return g.resp.Status, true }

func (g *h1Hop) answerField(name string) (string, bool) { return g.resp.Get(name) }

func (g *h1Hop) relay() error {
	err := g.Relay(g.up)
	g.pool.Put(g.l.Now(), g.up) // which closes what cannot be used again
	return err
}

func (g *h1Hop) discard() {
	g.Discard(g.up)
	g.pool.Put(g.l.Now(), g.up)
}

func (g *h1Hop) upgrades() bool { return g.Req.Upgrade() != "" }

func (g *h1Hop) upgrade() (*upgrade, error) {
	client, upstream, err := g.Upgraded(g.up)
	if err != nil {
		return nil, err
	}
	return newUpgrade(g.Req.Upgrade(), client, upstream), nil
}

// hedger sends a request to a second server when the first is late, and gives the one
// that answered with the pool that it is of.
type hedger interface {
	roundTrip(x *h1.Exchange, up *h1.Upstream, deadline time.Time) (*h1.Response, *h1.Upstream, *h1.Pool, error)
	roundTripStream(x *h2.Exchange, up *h2.Upstream, deadline time.Time) (*h2.Response, *h2.Upstream, *h2.Pool, error)
}

// failure is how an exchange failed. The zero failure is that of a dial: nothing
// of the request was sent.
type failure struct {
	exchanged bool // it was not the dial
	server    bool // it was not the client, nor ourselves
	timeout   bool
	sent, got bool // some byte of the request, of an answer
	status    int  // what to answer if nothing has been answered; 0 if nobody is there to hear it
}

func failureOf(err error) failure {
	var e1 *h1.Error
	if errors.As(err, &e1) {
		return failure{true, e1.Side == h1.SideUpstream, e1.Timeout, e1.Sent, e1.Got, e1.Status}
	}
	var e2 *h2.Error
	if errors.As(err, &e2) {
		return failure{true, e2.Side == h2.SideUpstream, e2.Timeout, e2.Sent, e2.Got, e2.Status}
	}
	return failure{}
}
