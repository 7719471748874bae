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

// session is one client connection. Between requests it has no task: it is what
// the connection was parked with.
type session struct {
	wire
	cfg       *Config
	draining  func() bool
	handler   Handler
	ended     func(error)
	run       func() // serve, bound once
	idleUntil time.Time
	skipped   bool // an empty line before the request that is read
}

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
	s.ended(err)
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
				s.idleUntil = time.Time{}
				return false, nil
			}
			s.release()
			continue
		}
		if err != loop.ErrWouldBlock {
			return false, err
		}
		now := s.cfg.now(s)
		if s.idleUntil.IsZero() {
			s.idleUntil = now.Add(s.cfg.IdleTimeout)
			_ = s.conn.SetReadDeadline(s.idleUntil) // fails on a closed connection only, as parking will
		}
		if s.draining() || !now.Before(s.idleUntil) {
			return false, errIdle
		}
		s.conn.Park(s.run)
		return true, nil
	}
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
	s.handler(x)
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
