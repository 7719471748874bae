package h1

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// watchEvery is how often a wait for a silent upstream looks after the client.
const watchEvery = 5 * time.Second

// Conn is a client connection of a Server, as it is kept between requests: without
// task, buffer or session. The zero Conn waits for Server.Begin.
type Conn struct {
	server *Server
	conn   loop.Stream
	user   User
	idle   time.Duration // the loop's age at which it has been idle for too long; 0 while it is not idle
}

// User is whose connection it is.
type User interface {
	Handle(*Exchange) // as Handler
	Draining() bool   // the connection is to end after the exchange at hand
	Ended(error)      // see Server.Begin
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

// session is a client connection that is being served. Those of one loop are used
// again and again: there are as many as connections that are busy.
type session struct {
	wire
	c       *Conn
	cfg     *Config
	skipped bool // an empty line before the request that is read
}

func (c *Conn) session() *session {
	st := stockOf(c.conn.Socket().Loop())
	s, ok := st.sessions.take()
	if !ok {
		s = new(session)
	}
	s.c, s.cfg, s.skipped = c, &c.server.cfg, false
	s.init(c.conn, smallBuffer, st)
	return s
}

func (s *session) free() {
	st := s.stock
	s.wire, s.c, s.cfg = wire{}, nil, nil
	st.sessions.give(s, maxSmall)
}

// resumed is a Conn as the task that goes on serving it.
type resumed Conn

func (r *resumed) Run() { (*Conn)(r).session().serve() }

func (s *session) draining() bool { return s.c.user.Draining() }

// serve serves the requests that are there, then parks the connection.
func (s *session) serve() {
	for {
		s.skipped = false
		if s.skipEmptyLine(); s.r == s.w {
			if parked, err := s.awaitRequest(); parked {
				return
			} else if err != nil {
				s.end(orderly(err))
				return
			}
		}
		again, err := s.serveOne()
		if !again {
			s.end(err)
			return
		}
		if s.r != s.w { // pipelined; whoever fills the pipe is not to keep the loop
			s.conn.Socket().Loop().Yield()
		}
	}
}

func (s *session) end(err error) {
	if !errors.Is(err, ErrUpgraded) {
		_ = s.conn.Close()
	}
	s.r = s.w
	s.release()
	user := s.c.user
	s.free()
	user.Ended(err)
}

var errPeeked = errors.New("more was peeked than a buffer holds")

func (s *session) preload(peeked []byte) {
	if len(peeked) == 0 {
		return
	}
	if s.buf = s.stock.take(smallBuffer); len(peeked) > smallBuffer {
		s.stock.give(s.buf)
		s.buf = s.stock.take(largeBuffer)
	}
	s.w = copy(s.buf, peeked)
}

var errIdle = errors.New("idle for too long")

// orderly turns the ends a connection may come to between two requests into nil.
func orderly(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, errIdle) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return &Error{Side: SideClient, Step: ReadRequest, Err: err}
}

// awaitRequest reads the beginning of the next request, or parks the connection
// until it comes.
func (s *session) awaitRequest() (parked bool, err error) {
	s.release()
	for {
		err := s.tryFill()
		if err == nil {
			if s.skipEmptyLine(); s.r != s.w {
				s.c.idle = 0
				return false, nil
			}
			s.release()
			continue
		}
		if err != loop.ErrWouldBlock {
			return false, err
		}
		if s.idledOut() || s.draining() {
			return false, errIdle
		}
		c := s.c
		s.free()
		c.conn.Park((*resumed)(c))
		return true, nil
	}
}

// idledOut tells whether the connection has been idle for too long, and sees at the
// beginning of that time that its end is noticed.
func (s *session) idledOut() bool {
	now := s.cfg.now(s)
	began := s.conn.Socket().Loop().At(0)
	if s.c.idle == 0 {
		until := now.Add(s.cfg.IdleTimeout)
		s.c.idle = until.Sub(began)
		_ = s.conn.SetReadDeadline(until) // fails on a closed connection only, as parking will
	}
	return now.Sub(began) >= s.c.idle
}

// serveOne reads one request, has it handled and reports whether another may follow.
func (s *session) serveOne() (again bool, err error) {
	x := s.stock.takeExchange()
	x.begin(s)
	defer x.end()
	if err := x.readHead(); err != nil {
		x.refuse(err)
		return false, err
	}
	s.c.user.Handle(x)
	return x.finish()
}

// readHead reads until the head is whole and looks at what there is of the body.
func (x *Exchange) readHead() *Error {
	s := x.s
	var until time.Time
	for {
		done, err := x.Req.parse(s.unread(), s.cfg)
		if err != nil {
			return clientError(ReadRequest, err)
		}
		if done {
			break
		}
		if until.IsZero() {
			until = s.cfg.now(s).Add(s.cfg.HeadTimeout)
		}
		if err := s.fillBefore(until); err != nil {
			return clientError(ReadRequest, err)
		}
		if s.skipEmptyLine() {
			x.Req.reset()
		}
	}
	x.now = s.cfg.now(s)
	x.closing = x.Req.close || x.Req.Minor == 0 && !x.Req.keepAlive
	s.r += len(x.Req.b)
	if err := x.beginBody(); err != nil {
		return clientError(ReadBody, err)
	}
	return nil
}

// skipEmptyLine drops one CRLF before a request, which old clients send after a
// body (RFC 9112 section 2.2).
func (s *session) skipEmptyLine() bool {
	u := s.unread()
	if s.skipped || len(u) < 2 || u[0] != '\r' || u[1] != '\n' {
		return false
	}
	s.r += 2
	s.skipped = true
	return true
}

// fillBefore reads more of something that has begun and must end by a time.
func (s *session) fillBefore(until time.Time) error {
	_ = s.conn.SetReadDeadline(until) // fails on a closed connection only, as the read will
	err := s.fill()
	switch {
	case errors.Is(err, io.EOF):
		return ErrTruncated
	case isTimeout(err):
		return errSlow
	}
	return err
}

// errSlow is a time limit of ours that passed; it is a timeout to net.Error users too.
var errSlow error = slowError{}

type slowError struct{}

func (slowError) Error() string   { return "took too long" }
func (slowError) Timeout() bool   { return true }
func (slowError) Temporary() bool { return true }

func clientError(step Step, err error) *Error {
	e := &Error{Side: SideClient, Step: step, Timeout: isTimeout(err), Err: err}
	e.Status = statusFor(SideClient, e.Timeout)
	var r *refusal
	if errors.As(err, &r) {
		e.Status = r.status
	}
	return e
}

// linger lets a client that may still be sending read our answer: closing with
// unread bytes would reset the connection and could take the answer along. It
// ends after a second or 256 KiB, whichever is first.
func (s *session) linger() {
	if s.conn.CloseWrite() != nil {
		return
	}
	_ = s.conn.SetReadDeadline(s.cfg.now(s).Add(time.Second))
	b := s.stock.take(largeBuffer)
	defer s.stock.give(b)
	for total := 0; total < 256<<10; {
		n, err := s.conn.Read(b)
		if err != nil {
			return
		}
		total += n
	}
}
