// Package relay copies bytes between two connections of a loop until both directions end.
// It does not dial, choose endpoints or decide policy.
//
// Each direction is a task only while there is something to move. A relay in
// which nothing is said holds about 120 bytes, and 150 more where IdleTimeout was
// asked for: no stack, no buffer, no pipe.
package relay

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Config says how one pair of connections is relayed. The zero value relays
// with no bound on silence.
type Config struct {
	// FromClient and FromUpstream are bytes that were read from that side
	// before the relay began. They are the first to be written to the other
	// side, and must not be changed until the relay has ended.
	FromClient, FromUpstream []byte

	// IdleTimeout ends the relay when no byte moved in either direction for
	// this long. It is coarse: bytes count from when their task was resumed, so
	// the end may come late by what the loop is busy for. 0 means never.
	IdleTimeout time.Duration

	// HalfClosedTimeout takes the place of IdleTimeout once one direction has
	// ended. A side that is gone without a word after its half-close is noticed
	// by nothing else. 0 means IdleTimeout.
	HalfClosedTimeout time.Duration

	// Progress, when set, is called on the loop with the number of bytes just
	// handed on from that side. It must not wait. It is for counters that must
	// move while a long connection lives; Result has the sums.
	Progress func(from Side, n int)
}

// Session is one relay: two connections, two flows, one outcome. It belongs to
// the loop of its connections. The zero Session waits for Begin.
type Session struct {
	ends  [2]loop.Stream // by Side
	flows [2]flowing     // by Side: from where
	done  Done
	half  time.Duration // HalfClosedTimeout
	watch *watch        // nil while silence is not bounded
	extra *extra        // nil where nothing was asked for that it holds

	err      *Error
	reason   Reason
	settled  bool    // reason and err stand
	finished [2]bool // by Side: it was told that no more will come
	left     uint8   // flows that have not ended
}

// extra is what most relays have not, or only at first.
type extra struct {
	first    [2][]byte // by Side: to be written before anything is read
	progress func(Side, int)
}

// Done is told of a relay's end.
type Done interface{ Relayed(Result) }

// doneFunc is a function as a Done.
type doneFunc func(Result)

func (f doneFunc) Relayed(r Result) { f(r) }

const (
	// After a side has failed, what is still on its way to the other one is
	// waited for, until nothing moves for so long. It lets an early answer (HTTP
	// 413, then a reset because the upload was not read) through; the price is a
	// connection that ends later, by flushMost for a peer that reads slowly.
	flushTime = time.Second
	flushMost = 10 * time.Second
	// flushPoll is how often it is looked at: the kernel has no event for "all
	// was acknowledged".
	flushPoll = 5 * time.Millisecond
)

// Start is Begin of a Session of its own, with a function as Done.
func Start(client, upstream loop.Stream, cfg Config, done func(Result)) *Session {
	s := new(Session)
	s.Begin(client, upstream, cfg, doneFunc(done))
	return s
}

// Begin begins to relay between client and upstream, until both have said that
// they are done, one fails, silence lasts too long, or Abort. It is called on
// their loop, in a task or not, and returns at once. done is told once, in a task
// of the loop, when both connections are closed and nothing is left. Deadlines set
// on them before are cleared, and nobody else may read, write or park them
// meanwhile.
//
// The end of one direction is passed on with CloseWrite. Every other end, that
// of the loop included, is passed on with Reset, so that neither side takes a
// cut stream for a whole one. Two bare *loop.Conn are spliced by the kernel
// while a flow is large.
func (s *Session) Begin(client, upstream loop.Stream, cfg Config, done Done) {
	*s = Session{ends: [2]loop.Stream{client, upstream}, done: done, half: cfg.HalfClosedTimeout, left: 2}
	if len(cfg.FromClient) > 0 || len(cfg.FromUpstream) > 0 || cfg.Progress != nil {
		s.extra = &extra{[2][]byte{cfg.FromClient, cfg.FromUpstream}, cfg.Progress}
	}
	for _, end := range s.ends {
		_ = end.SetDeadline(time.Time{}) // one that cannot is about to fail anyway
	}
	s.limit(cfg.IdleTimeout)
	s.from(Client).start()
	s.from(Upstream).start()
}

func (s *Session) from(side Side) flow { return flow{s, side} }

func (s *Session) loop() *loop.Loop { return s.ends[Client].Socket().Loop() }

// Abort cuts both connections with a reset; done is told why unless the outcome
// was settled before. It is called on the loop, in a task or not, and does
// nothing once the relay has ended.
func (s *Session) Abort(why Reason) {
	if !s.settled {
		s.settled, s.reason = true, why
	}
	s.cut()
}

// cut ends both flows: whatever they wait for fails now.
func (s *Session) cut() {
	_ = s.ends[Client].Reset()
	_ = s.ends[Upstream].Reset()
}

// ended is told, by its task, that a flow has ended, and sees to what that means
// for the other side. failed is nil for an orderly end.
func (s *Session) ended(from Side, failed *Error) {
	if failed == nil && s.wasReset(from) {
		failed = &Error{Side: from, Op: "read", Err: unix.ECONNRESET}
	}
	switch {
	case failed == nil:
		s.passEndOn(from.other())
	case failed.Side == from:
		// The source is gone, so nothing can be said to it any more either.
		s.fail(failed)
		s.flush(from.other())
		s.cut()
	default:
		// The sink takes nothing more, but what it had said before may still
		// be on its way through the other flow, which ends by itself soon: a
		// TCP socket that refuses a write gives its last bytes, then the end.
		s.fail(failed)
		s.hurry()
	}
	if s.left--; s.left == 0 {
		s.finish()
	}
}

// passEndOn half-closes a side, unless something failed already: then an end
// would make a cut stream look whole.
func (s *Session) passEndOn(to Side) {
	if s.settled {
		return
	}
	if s.finished[to] = true; s.left == 1 && s.ends[to].Socket() == s.ends[to] {
		return // both have ended: closing, which is next, sends the end too
	}
	if err := ignoreGone(s.ends[to].CloseWrite()); err != nil {
		s.fail(&Error{Side: to, Op: "close write", Err: err})
		s.hurry()
		return
	}
	if s.left == 2 && s.half > 0 {
		s.limit(s.half)
	}
}

// ignoreGone drops the error of a half-close that came after the end: the flow
// of that side tells of it.
func ignoreGone(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

// fail settles the outcome, unless an earlier event has.
func (s *Session) fail(err *Error) {
	switch {
	case s.settled:
	case s.loop().Closing() && errors.Is(err, net.ErrClosed):
		s.settled, s.reason = true, Cancelled // nobody's fault: the loop closed them
	default:
		s.settled, s.reason, s.err = true, Failed, err
	}
}

// flush waits until the peer's kernel has what was written to side, within
// flushTime and flushMost.
func (s *Session) flush(side Side) {
	l := s.loop()
	began := l.Now()
	last := began
	for left := s.unsent(side); left > 0; {
		l.Sleep(flushPoll)
		now, still := l.Now(), s.unsent(side)
		if still < left {
			left, last = still, now
		}
		if now.Sub(last) >= flushTime || now.Sub(began) >= flushMost {
			return
		}
	}
}

// finish closes both connections in the manner of the outcome. Both flows have
// ended.
func (s *Session) finish() {
	s.watch.stop()
	if s.reason == EOF {
		_ = s.ends[Client].Close()
		_ = s.ends[Upstream].Close()
	} else {
		if s.err != nil {
			s.flush(s.err.Side.other())
		}
		s.cut()
	}
	s.done.Relayed(Result{
		ToUpstream: s.flows[Client].moved,
		ToClient:   s.flows[Upstream].moved,
		Reason:     s.reason,
		Err:        s.err,
	})
}
