// Package h1 carries HTTP/1.1 exchanges between a client connection and upstream connections, strictly framed.
// It does not choose upstreams, decide policy or keep metrics.
//
// It runs on an event loop. A request whose body is at hand goes to the upstream
// in one write, and its response comes back the same way, both by one task: no
// lock and no allocation per request. Only a body that is still arriving gets a
// second task, so that a response may begin before the request has ended. Between
// requests a connection is parked and has neither task nor buffer.
//
// Strictness (RFC 9112, section 11.2): a message that two readers could frame
// differently is refused and nothing of it is forwarded. The price is that some
// sloppy but harmless clients are refused too.
package h1

import (
	"errors"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Config bounds what one connection may cost. The zero value of a field means
// its default. A Config is shared by many connections and must not change
// once a Server has it.
type Config struct {
	// MaxHeadBytes bounds a request head, request line included, and likewise a
	// response head: beyond it 431, or an upstream error. At most (and by
	// default) 64 KiB, the size of one buffer.
	MaxHeadBytes int
	// MaxLineBytes bounds the request line; beyond it 414. Default 16 KiB.
	MaxLineBytes int
	// MaxFields bounds the number of header fields; beyond it 431. Default 128.
	MaxFields int
	// HeadTimeout is the time from the first byte of a request head to its end;
	// beyond it 408 and close. Default 10 s.
	HeadTimeout time.Duration
	// IdleTimeout is how long a kept-alive client connection may be silent
	// between requests. Default 5 min: longer than most clients keep their own
	// pools, so that it is the client who closes and no request is lost to the race.
	IdleTimeout time.Duration
	// StallTimeout is how long the client may neither send the next bytes of a
	// body nor take those of a response. It is observed to within a half.
	// Default 5 min.
	StallTimeout time.Duration
	// StreamIdle is how long an upstream may be silent inside a response body.
	// Default 0: for ever (server-sent events may be silent for hours).
	StreamIdle time.Duration
	// HalfCloseGrace is how long an exchange waits for a silent upstream after
	// the client has sent its FIN. A client that half-closes and one that went
	// away look the same; the price of waiting is work nobody will read.
	// Looked at every 5 s or so. Default 5 s; negative: never give up.
	HalfCloseGrace time.Duration
	// ReplayBytes is how much of a request body is kept for a retry, at most
	// (and by default) 64 KiB. Negative: nothing beyond what came with the head.
	ReplayBytes int
	// Refusal gives the body and the fields (names and values in turn) of the
	// answer to a request that could not be read. nil answers without a body.
	Refusal func(status int) (body []byte, header []string)
	// Now is the clock; by default the loop's, which is read when a task is
	// resumed. Deadlines of connections are set from it, so it must run with the
	// wall clock.
	Now func() time.Time
}

// now is the time for a connection.
func (c *Config) now(s *session) time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return s.conn.Socket().Loop().Now()
}

// withDefaults is a copy in which every field says what it means.
func (c *Config) withDefaults() Config {
	var d Config
	if c != nil {
		d = *c
	}
	d.MaxHeadBytes = orDefault(d.MaxHeadBytes, largeBuffer, largeBuffer)
	d.MaxLineBytes = orDefault(d.MaxLineBytes, 16<<10, largeBuffer)
	d.MaxFields = orDefault(d.MaxFields, 128, 1<<16)
	d.HeadTimeout = orDefault(d.HeadTimeout, 10*time.Second, forever)
	d.IdleTimeout = orDefault(d.IdleTimeout, 5*time.Minute, forever)
	d.StallTimeout = orDefault(d.StallTimeout, 5*time.Minute, forever)
	d.StreamIdle = orDefault(d.StreamIdle, forever, forever)
	if d.HalfCloseGrace == 0 {
		d.HalfCloseGrace = 5 * time.Second
	}
	switch {
	case d.ReplayBytes == 0 || d.ReplayBytes > largeBuffer:
		d.ReplayBytes = largeBuffer
	case d.ReplayBytes < 0:
		d.ReplayBytes = 0
	}
	return d
}

// forever is long enough to mean no limit, and short enough to be added to a time.
const forever = 100 * 365 * 24 * time.Hour

func orDefault[T int | time.Duration](v, def, most T) T {
	if v <= 0 {
		return def
	}
	return min(v, most)
}

// Handler is called once per request, in a task of the connection's loop. The
// Exchange and every string taken from it are valid until it returns. A Handler
// that returns without Relay, Reply or Upgraded cuts the connection.
type Handler func(x *Exchange)

// ErrUpgraded is what a connection ends with when the handler took it over with
// Exchange.Upgraded.
var ErrUpgraded = errors.New("h1: connection upgraded")

// Server serves connections, all with the same bounds.
type Server struct{ cfg Config }

// NewServer makes a Server.
func NewServer(cfg Config) *Server { return &Server{cfg.withDefaults()} }

// Serve is Begin of a Conn of its own, with functions as User.
func (sv *Server) Serve(c loop.Stream, peeked []byte, draining func() bool, h Handler, ended func(error)) {
	sv.Begin(new(Conn), c, peeked, &funcs{h, draining, ended})
}

// Begin reads requests from s and has u handle each in turn. c is what is kept of
// it: most often part of u. It must be called by a task of s's loop, serves what
// is there and returns: from then on it begins tasks of its own. peeked is what was
// read from s before, at most 64 KiB; it is copied. Once u is Draining the exchange
// at hand is finished, answered with "Connection: close", and the connection ends;
// an idle one does when it is woken (loop.Conn.Wake).
//
// At the end, after s was closed, u is told that it Ended, once and perhaps before
// Begin returns: with nil when the connection ended between two requests, with an
// *Error when it was cut, and with ErrUpgraded, s not being closed then.
func (sv *Server) Begin(c *Conn, s loop.Stream, peeked []byte, u User) {
	*c = Conn{server: sv, conn: s, user: u}
	if len(peeked) > largeBuffer {
		_ = s.Close()
		u.Ended(&Error{Side: SideLocal, Step: ReadRequest, Err: errPeeked})
		return
	}
	session := c.session()
	session.preload(peeked)
	session.serve()
}
