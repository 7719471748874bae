package detect

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Config bounds one detection.
type Config struct {
	// Deadline is the moment at which Peek gives up waiting; zero is never.
	Deadline time.Time
	// Pause is for how long a client that has begun something may say nothing
	// more before Peek gives up, Deadline or not; zero is for ever. Its protocol
	// may be one of few bytes that wait for an answer.
	Pause time.Duration
	// Enough is asked whenever the stream is woken: true ends the wait. The
	// upstream has spoken first, so the protocol is none that is detected; or
	// the connection is to end. nil is never.
	Enough func() bool
}

// firstRead holds most ClientHellos whole.
const firstRead = 2 << 10

var firstReads = sync.Pool{New: func() any { return new([firstRead]byte) }}

// peek is a detection under way.
type peek struct {
	s    loop.Stream
	cfg  Config
	then func(Result, []byte, error)
	buf  []byte // nil while nothing came
	n    int
	res  Result        // of the bytes so far
	said time.Duration // the loop's age when the last of them came
}

// Peek reads the first bytes of s until they tell the protocol, and calls then
// with them, once, in a task of the stream's loop. It must be called in such a
// task too, and returns at once when it has to wait: s is parked then. The bytes
// are the caller's until then returns. It never reads more than MaxBytes.
//
// One read decides: waiting for more would stall protocols whose client says
// little before the server's turn. Only where the bytes are the beginning of an
// HTTP request line, of the HTTP/2 preface or of a ClientHello does it read on,
// until Deadline or a Pause.
//
// The read deadline of s is cleared. An error means that s failed; the end of
// the stream is an Outcome, and no byte is lost, whatever happened.
func Peek(s loop.Stream, cfg Config, then func(Result, []byte, error)) {
	p := peek{s: s, cfg: cfg, then: then}
	if done, err := p.read(); done { // as a rule: nothing is kept then
		p.end(err)
		return
	}
	kept := peeks.Get().(*peek) // not made anew: garbage of just the size of what stays is holes later
	*kept = p
	kept.wait()
}

var peeks = sync.Pool{New: func() any { return new(peek) }}

// Run goes on when the stream was woken.
func (p *peek) Run() {
	done, err := p.read()
	if !done {
		p.wait()
		return
	}
	ended := *p
	*p = peek{}
	peeks.Put(p)
	ended.end(err)
}

func (p *peek) wait() {
	_ = p.s.SetReadDeadline(p.until()) // fails on a closed connection only, as the next read will
	p.s.Park(p)
}

// until is when the wait ends at the latest; zero is never.
func (p *peek) until() time.Time {
	if p.n == 0 || p.cfg.Pause == 0 {
		return p.cfg.Deadline
	}
	pause := p.s.Socket().Loop().At(p.said + p.cfg.Pause)
	if d := p.cfg.Deadline; !d.IsZero() && d.Before(pause) {
		return d
	}
	return pause
}

func (p *peek) end(err error) {
	_ = p.s.SetReadDeadline(time.Time{})
	p.then(p.res, p.buf[:p.n], err)
	if len(p.buf) == firstRead {
		firstReads.Put((*[firstRead]byte)(p.buf))
	}
}

// read takes what is there. done is false when more has to be waited for.
func (p *peek) read() (done bool, err error) {
	for {
		switch {
		case p.buf == nil:
			p.buf = firstReads.Get().(*[firstRead]byte)[:]
		case p.n == len(p.buf):
			p.buf = append(p.buf, make([]byte, min(3*p.n, MaxBytes-p.n))...)
		}
		m, err := p.s.TryRead(p.buf[p.n:])
		p.n += m
		more := true
		if m > 0 {
			if p.cfg.Pause > 0 {
				p.said = p.s.Socket().Loop().Age()
			}
			p.res, more = Classify(p.buf[:p.n])
		}
		switch {
		case !more:
			return true, nil
		case errors.Is(err, io.EOF):
			p.res.Outcome = undecided(p.n, Ended)
			return true, nil
		case loop.IsWouldBlock(err):
			return p.interrupted(), nil
		case err != nil:
			p.res.Outcome = undecided(p.n, Silent)
			return true, fmt.Errorf("detect: read from the client: %w", err)
		}
	}
}

// interrupted decides what it means that nothing is there.
func (p *peek) interrupted() (done bool) {
	if p.n == 0 {
		firstReads.Put((*[firstRead]byte)(p.buf))
		p.buf = nil
	}
	until := p.until()
	switch {
	case p.cfg.Enough != nil && p.cfg.Enough():
		p.res.Outcome = undecided(p.n, OtherSpoke)
	case !until.IsZero() && !p.s.Socket().Loop().Now().Before(until):
		p.res.Outcome = undecided(p.n, Silent)
	default:
		return false
	}
	return true
}

// undecided is the outcome of a wait that ended too early.
func undecided(bytes int, nothing Outcome) Outcome {
	if bytes > 0 {
		return Incomplete
	}
	return nothing
}
