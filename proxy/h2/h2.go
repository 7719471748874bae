// Package h2 carries HTTP/2 exchanges between a client connection and upstream connections, strictly framed.
// It does not choose upstreams, decide policy or keep metrics.
//
// It runs on an event loop. Each end of a connection has one reader, which is a task
// only while there is something to read: it takes frames apart, and hands requests
// to tasks of their own, the last of them to itself. What is to be written is
// gathered and goes out in one write when nobody else has anything to add. Bodies
// pass from one connection's buffer to the other's, without a task, as far as the
// windows of the other end allow, and only then is the sender given new credit: a
// reader that stalls holds what one window is, and stops nobody else.
//
// Strictness (RFC 9113 section 8): what would be read otherwise when it is passed on
// by HTTP/1.1 is refused, though here all goes on by HTTP/2.
package h2

import (
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Config bounds what one connection may cost. The zero value of a field means its
// default. A Config is shared by many connections and must not change once a Server
// or a Pool has it.
type Config struct {
	// MaxStreams is how many requests a connection carries at once: what a client is
	// told (SETTINGS_MAX_CONCURRENT_STREAMS), and what an upstream gets at most,
	// however many it would allow. Default 256, at most 4096.
	MaxStreams int
	// StreamWindow is how many bytes of one body a connection holds while the other
	// end does not take them. The window of the connection is MaxStreams times that,
	// so that streams that stall never stop the others; it is also the bound of the
	// memory that bodies of one connection take, besides ReplayBytes for each request
	// that may be sent again. Default 128 KiB; 16 KiB to 1 MiB.
	StreamWindow int
	// MaxHeadBytes bounds a head, as RFC 9113 section 6.5.2 counts, and its block as
	// it is sent: beyond the first 431, or an upstream error; beyond the second the
	// connection ends. At most (and by default) 64 KiB.
	MaxHeadBytes int
	// MaxFields bounds the number of header fields; beyond it 431. Default 128.
	MaxFields int
	// MaxResets bounds how many requests of a connection may come to nothing (reset
	// by the client before they were answered, refused or malformed) in a burst; 50
	// more are granted each second. Beyond it the connection ends with
	// ENHANCE_YOUR_CALM (CVE-2023-44487). Default 500.
	MaxResets int
	// MaxControl bounds in the same way the frames that carry nothing: PING,
	// SETTINGS, PRIORITY, empty DATA and CONTINUATION, unknown ones, and
	// WINDOW_UPDATE but for those that give back a KiB or more of what was sent. 100
	// more are granted each second, and 10 for each frame of a head or body that goes
	// either way. Beyond it ENHANCE_YOUR_CALM. Default 2000.
	MaxControl int
	// HeadTimeout is the time for the connection preface, and from the first byte of
	// a frame that is not DATA, or a head, to its end; beyond it the connection ends.
	// Default 10 s.
	HeadTimeout time.Duration
	// IdleTimeout is how long a client connection may be without a request. Default
	// 5 min; it ends with GOAWAY.
	IdleTimeout time.Duration
	// StallTimeout is how long a client may leave untaken what there is for it, and,
	// before it is answered, be silent in the body of a request that is not gRPC
	// (whose calls may be silent for hours). It may be noticed as late as twice that.
	// Default 5 min.
	StallTimeout time.Duration
	// StreamIdle is how long an upstream may be silent inside a response body.
	// Default 0: for ever.
	StreamIdle time.Duration
	// ReplayBytes is how much of a request body is kept for a retry. Default (and at
	// most) 64 KiB; negative: nothing.
	ReplayBytes int
	// KeepAlive is after what silence an upstream with requests under way is asked,
	// by PING, whether it is there; KeepAliveTimeout is how long it may take to
	// answer. Default 0: never. Servers of grpc-go take more than one in 5 min for an
	// attack. KeepAliveTimeout is 20 s by default.
	KeepAlive        time.Duration
	KeepAliveTimeout time.Duration
	// Refusal gives the body and the fields (names and values in turn) of the answer
	// to a request that could not be read. nil answers without a body.
	Refusal func(status int) (body []byte, header []string)
	// Now is the clock; by default the loop's.
	Now func() time.Time
}

const (
	resetsPerSecond  = 50
	controlPerSecond = 100
	controlPerFrame  = 10
)

// forever is long enough to mean no limit, and short enough to be added to a time.
const forever = 100 * 365 * 24 * time.Hour

func orDefault[T int | time.Duration](v, def, least, most T) T {
	if v <= 0 {
		return def
	}
	return max(min(v, most), least)
}

// withDefaults is a copy in which every field says what it means.
func (c Config) withDefaults() Config {
	c.MaxStreams = orDefault(c.MaxStreams, 256, 1, 4096)
	c.StreamWindow = orDefault(c.StreamWindow, 128<<10, 16<<10, 1<<20)
	if most := (maxWindow - connSlack) / c.MaxStreams; c.StreamWindow > most {
		c.StreamWindow = most
	}
	c.MaxHeadBytes = orDefault(c.MaxHeadBytes, 64<<10, 1<<10, 64<<10)
	c.MaxFields = orDefault(c.MaxFields, 128, 1, 1<<16)
	c.MaxResets = orDefault(c.MaxResets, 500, 1, 1<<30)
	c.MaxControl = orDefault(c.MaxControl, 2000, 10, 1<<30)
	c.HeadTimeout = orDefault(c.HeadTimeout, 10*time.Second, 1, forever)
	c.IdleTimeout = orDefault(c.IdleTimeout, 5*time.Minute, 1, forever)
	c.StallTimeout = orDefault(c.StallTimeout, 5*time.Minute, 1, forever)
	c.StreamIdle = orDefault(c.StreamIdle, forever, 1, forever)
	c.KeepAliveTimeout = orDefault(c.KeepAliveTimeout, 20*time.Second, 1, forever)
	switch {
	case c.ReplayBytes == 0 || c.ReplayBytes > 64<<10:
		c.ReplayBytes = 64 << 10
	case c.ReplayBytes < 0:
		c.ReplayBytes = 0
	}
	return c
}

// connSlack is when the peer is given new credit for the connection. Its window has so
// much more than all streams together, so that nothing is missing meanwhile.
const connSlack = 64 << 10

// connWindow is the window of a connection.
func (c *Config) connWindow() int { return c.MaxStreams*c.StreamWindow + connSlack }

// Handler is called once per request, in a task of the connection's loop. The
// Exchange and every string taken from it are valid until it returns. A Handler that
// returns without Relay, Reply, ReplyGRPC or ResetStream resets the stream.
type Handler func(x *Exchange)

// User is whose connection it is.
type User interface {
	Handle(*Exchange) // as Handler; several at once, each in a task of its own
	Draining() bool   // the connection is to end after the requests at hand
	Ended(error)      // see Server.Begin
}

// Connecter is a User that may take extended CONNECT (RFC 8441), by which a client asks
// for a WebSocket on a stream. Others refuse it.
type Connecter interface {
	Connects() bool // asked once, in Begin
}

// funcs is a User of functions.
type funcs struct {
	handler  Handler
	draining func() bool
	ended    func(error)
}

func (f *funcs) Handle(x *Exchange) { f.handler(x) }
func (f *funcs) Draining() bool     { return f.draining() }
func (f *funcs) Ended(err error)    { f.ended(err) }

// Server serves connections, all with the same bounds.
type Server struct{ cfg Config }

// NewServer makes a Server.
func NewServer(cfg Config) *Server { return &Server{cfg.withDefaults()} }

// Serve is Begin of a Conn of its own, with functions as User.
func (sv *Server) Serve(c loop.Stream, peeked []byte, draining func() bool, h Handler, ended func(error)) {
	sv.Begin(new(Conn), c, peeked, &funcs{h, draining, ended})
}

// Begin reads requests from s, whose client has prior knowledge of HTTP/2 or agreed
// on it by ALPN, and has u handle them. c is what is kept of it: most often part of
// u. It must be called by a task of s's loop, serves what is there and returns: from
// then on it begins tasks of its own. peeked is what was read from s before, the
// connection preface most likely, at most 64 KiB; it is copied. Once u is Draining
// the client is told (GOAWAY), requests at hand are finished, and the connection
// ends; an idle one does when it is woken (loop.Conn.Wake).
//
// At the end, after s was closed and every Handle has returned, u is told that it
// Ended, once and perhaps before Begin returns: with nil when the connection ended
// with no request at hand, and with an *Error when it was cut.
func (sv *Server) Begin(c *Conn, s loop.Stream, peeked []byte, u User) {
	c.session = newSession(&sv.cfg, s, u)
	c.session.begin(peeked)
}

// Conn is a client connection of a Server.
type Conn struct{ session *session }

// Drain has the connection end after the requests at hand: the client is told not to
// begin others. It must be called on the connection's loop.
func (c *Conn) Drain() {
	if c.session != nil {
		c.session.drain()
		c.session.settle()
	}
}

// Streams is how many requests are being handled.
func (c *Conn) Streams() int {
	if c.session == nil {
		return 0
	}
	return c.session.active
}
