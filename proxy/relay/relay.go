// Package relay copies bytes between two connections until both directions end.
// It does not dial, choose endpoints or decide policy.
package relay

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config says how one pair of connections is relayed. The zero value relays
// with no bound on silence.
type Config struct {
	// FromClient and FromUpstream are bytes that were read from that side
	// before the relay began. They are the first to be written to the other
	// side, and must not be changed until Run returns.
	FromClient, FromUpstream []byte

	// IdleTimeout ends the relay when no byte moved in either direction for
	// this long. It is coarse: the end comes between one and one and a quarter
	// times the value. 0 means never.
	IdleTimeout time.Duration

	// HalfClosedTimeout takes the place of IdleTimeout once one direction has
	// ended. A side that is gone without a word after its half-close is noticed
	// by nothing else. 0 means IdleTimeout.
	HalfClosedTimeout time.Duration

	// Progress, when set, is called with the number of bytes just handed on
	// from that side, in the goroutine that copies them. It must not block. It
	// is for counters that must move while a long connection lives; Result has
	// the sums.
	Progress func(from Side, n int)
}

// After a side has failed, what is still on its way to the other one is waited
// for this long. It lets an early answer (HTTP 413, then a reset because the
// upload was not read) through; the price is a connection that ends later.
const flushTime = time.Second

// Run copies both ways between client and upstream until both have said that
// they are done, one fails, silence lasts too long, or ctx ends. It blocks, and
// when it returns both connections are closed and nothing it started is left.
// Deadlines set on them before are cleared.
//
// A connection with a method Unwrap() (net.Conn, []byte) is taken apart first:
// the bytes are sent and the connection beneath is used from there on. Two bare
// *net.TCPConn are spliced by the kernel while a flow is large.
//
// The end of one direction is passed on with CloseWrite (on *tls.Conn this is a
// close_notify); a side without CloseWrite is closed instead. Every other end,
// ctx's included, is passed on as a reset, so that neither side takes a cut
// stream for a whole one: by the method Reset() error of the connection at the
// bottom (found through NetConn), which may be called more than once, or else by
// SetLinger(0) and Close.
func Run(ctx context.Context, client, upstream net.Conn, cfg Config) Result {
	s := &session{progress: cfg.Progress, aborted: make(chan struct{})}
	fromClient := s.open(Client, client, cfg.FromClient)
	fromUpstream := s.open(Upstream, upstream, cfg.FromUpstream)

	watch := startWatch(cfg, s)
	s.watch = watch
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		s.abort(Cancelled)
	})

	var downward sync.WaitGroup
	downward.Go(func() { s.direction(Upstream, fromUpstream) })
	s.direction(Client, fromClient)
	downward.Wait()

	watch.stop()
	if !stop() {
		<-cancelled
	}
	return s.finish()
}

// session is one relay: two connections, two flows, one outcome.
type session struct {
	ends     [2]end // by Side
	flows    [2]flow
	progress func(Side, int)
	watch    *watch
	aborted  chan struct{} // closed once: nothing is waited for any more

	mu      sync.Mutex // guards what follows
	settled bool
	reason  Reason
	err     *Error
	cut     bool // aborted is closed
}

// open prepares one side and returns the bytes that come from it first.
func (s *session) open(side Side, c net.Conn, already []byte) [][]byte {
	first := [][]byte{already}
	for {
		w, ok := c.(interface{ Unwrap() (net.Conn, []byte) })
		if !ok {
			break
		}
		var unread []byte
		c, unread = w.Unwrap()
		first = append(first, unread)
	}
	_ = c.SetDeadline(time.Time{}) // a connection that cannot is about to fail anyway
	s.ends[side].init(c)
	return first
}

// direction runs one flow to its end and sees to what the end means.
func (s *session) direction(from Side, first [][]byte) {
	f := &s.flows[from]
	f.init(s, from)
	err := f.run(first)
	if err == nil && f.from.wasReset() {
		err = f.readError(unix.ECONNRESET)
	}
	switch {
	case err == nil || f.from.closed.Load():
		s.passEndOn(from.other())
	case err.Side == from:
		// The source is gone, so nothing can be said to it any more either.
		s.fail(err)
		s.flush(from.other())
		s.resetBoth()
	default:
		// The sink takes nothing more, but what it had said before may still
		// be on its way through the other flow, which ends by itself soon: a
		// TCP socket that refuses a write gives its last bytes, then the end.
		s.fail(err)
		s.watch.hurry()
	}
}

// passEndOn half-closes a side, unless something failed already: then an end
// would make a cut stream look whole.
func (s *session) passEndOn(to Side) {
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	if settled {
		return
	}
	if err := s.ends[to].closeWrite(); err != nil {
		s.fail(&Error{Side: to, Op: "close write", Err: err})
		s.watch.hurry()
		return
	}
	s.watch.halfClosed()
}

// fail settles the outcome, unless an earlier event has.
func (s *session) fail(err *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settled {
		s.settled, s.reason, s.err = true, Failed, err
	}
}

// abort ends both flows at once.
func (s *session) abort(why Reason) {
	s.mu.Lock()
	if !s.settled {
		s.settled, s.reason = true, why
	}
	if !s.cut {
		s.cut = true
		close(s.aborted)
	}
	s.mu.Unlock()
	s.resetBoth()
}

func (s *session) resetBoth() {
	s.ends[Client].reset()
	s.ends[Upstream].reset()
}

// flush waits until the peer's kernel has what was written to side.
func (s *session) flush(side Side) {
	limit := time.NewTimer(flushTime)
	defer limit.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for s.ends[side].unsent() > 0 {
		select {
		case <-poll.C:
		case <-limit.C:
			return
		case <-s.aborted:
			return
		}
	}
}

// finish closes both connections in the manner of the outcome. Both flows have
// ended.
func (s *session) finish() Result {
	res := Result{
		ToUpstream: s.flows[Client].moved.Load(),
		ToClient:   s.flows[Upstream].moved.Load(),
		Reason:     s.reason,
		Err:        s.err,
	}
	if res.Reason == EOF {
		s.ends[Client].close()
		s.ends[Upstream].close()
		return res
	}
	if res.Err != nil {
		s.flush(res.Err.Side.other())
	}
	s.resetBoth()
	return res
}
