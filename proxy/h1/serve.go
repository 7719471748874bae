package h1

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// watchEvery is how often a wait for a silent upstream looks after the client.
const watchEvery = 5 * time.Second

// session is one client connection.
type session struct {
	wire
	cfg      Config
	draining atomic.Bool
	skipped  bool // an empty line before the request that is read

	handing sync.Mutex // guards what follows, against the end of the context
	handed  bool       // the connection is another's now
}

var exchanges = sync.Pool{New: func() any { return new(Exchange) }}

func serve(ctx context.Context, c net.Conn, peeked []byte, cfg *Config, h Handler) error {
	if len(peeked) > largeBuffer {
		_ = c.Close()
		return &Error{Side: SideLocal, Step: ReadRequest, Err: errPeeked}
	}
	s := &session{cfg: cfg.withDefaults()}
	s.init(c, smallBuffer)
	s.preload(peeked)
	stop := context.AfterFunc(ctx, s.drain)
	defer stop()
	upgraded := false
	defer func() {
		if !upgraded {
			_ = c.Close()
		}
		s.r = s.w
		s.release()
	}()
	for {
		if err := s.awaitRequest(); err != nil {
			return orderly(err)
		}
		again, err := s.serveOne(h)
		if upgraded = errors.Is(err, ErrUpgraded); upgraded || !again {
			return err
		}
	}
}

// drain wakes a reader: every wait looks at the flag after it has set its deadline.
func (s *session) drain() {
	s.handing.Lock()
	defer s.handing.Unlock()
	if s.draining.Store(true); !s.handed {
		s.wakeReader()
	}
}

var errPeeked = errors.New("more was peeked than a buffer holds")

func (s *session) preload(peeked []byte) {
	if len(peeked) == 0 {
		return
	}
	if s.buf = takeBuffer(smallBuffer); len(peeked) > smallBuffer {
		giveBuffer(s.buf)
		s.buf = takeBuffer(largeBuffer)
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

// awaitRequest waits for the first byte of the next request, without a buffer.
func (s *session) awaitRequest() error {
	s.skipped = false
	if s.skipEmptyLine(); s.r != s.w {
		return nil
	}
	s.release()
	now := s.cfg.Now()
	until := now.Add(s.cfg.IdleTimeout)
	for {
		s.armRead(now, until)
		if s.draining.Load() {
			return errIdle
		}
		err := s.fill()
		if err == nil {
			if s.skipEmptyLine(); s.r != s.w {
				return nil
			}
			s.release()
			continue
		}
		if !isTimeout(err) {
			return err
		}
		s.forget()
		if now = s.cfg.Now(); !now.Before(until) {
			return errIdle
		}
	}
}

// serveOne reads one request, has it handled and reports whether another may follow.
func (s *session) serveOne(h Handler) (again bool, err error) {
	x := exchanges.Get().(*Exchange)
	x.begin(s)
	defer x.end()
	if err := x.readHead(); err != nil {
		x.refuse(err)
		return false, err
	}
	h(x)
	return x.finish()
}

// readHead reads until the head is whole and looks at what there is of the body.
func (x *Exchange) readHead() *Error {
	s := x.s
	var until time.Time
	for {
		done, err := x.Req.parse(s.unread(), &s.cfg)
		if err != nil {
			return clientError(ReadRequest, err)
		}
		if done {
			break
		}
		if until.IsZero() {
			until = s.cfg.Now().Add(s.cfg.HeadTimeout)
		}
		if err := s.fillBefore(until); err != nil {
			return clientError(ReadRequest, err)
		}
		if s.skipEmptyLine() {
			x.Req.reset()
		}
	}
	x.now = s.cfg.Now()
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
	for {
		now := s.cfg.Now()
		if !now.Before(until) {
			return errSlow
		}
		s.armRead(now, until)
		err := s.fill()
		if err == nil {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return ErrTruncated
		}
		if !isTimeout(err) {
			return err
		}
		s.forget()
	}
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
	cw, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || cw.CloseWrite() != nil {
		return
	}
	_ = s.conn.SetReadDeadline(s.cfg.Now().Add(time.Second))
	b := takeBuffer(largeBuffer)
	defer giveBuffer(b)
	for total := 0; total < 256<<10; {
		n, err := s.conn.Read(b)
		if err != nil {
			return
		}
		total += n
	}
}
