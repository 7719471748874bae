// Package wsframe follows the frames of a WebSocket that passes, and ends it between two of them by a Close of its own.
// The handshake, what messages say and when it is to end it leaves to others.
//
// The bytes are not changed before that, nor copied: only headers are looked at,
// as they pass through the buffer of whoever relays. The price is that the kernel
// cannot splice such a connection.
package wsframe

import (
	"io"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// GoingAway is the status code of an endpoint that shuts down, RFC 6455 section 7.4.1.
const GoingAway = 1001

// Config says when and how a WebSocket is ended.
type Config struct {
	// FromClient and FromUpstream were read from that side before, behind the
	// handshake. They are what the ends give first.
	FromClient, FromUpstream []byte
	// Draining is asked whenever an end is read or parked; true begins the end.
	// Somebody must wake the client's socket for it to be asked in a silence.
	Draining func() bool
	// Patience is how long the client has to answer the Close with its own before
	// the upstream gets one without, and again how long both have from then on.
	// It must be more than zero.
	Patience time.Duration
	// Reason stands in the Close, beside code 1001: at most 123 bytes.
	Reason string
	// Mask gives the key that a frame to a server has to be masked with: chance.
	Mask func() [4]byte
}

// Socket is one WebSocket between two connections, which are relayed by its ends.
// It belongs to their loop.
//
// It ends like a server that goes away: the client gets a Close (1001) as soon as
// a message from the upstream has ended, and nothing of the upstream's after it.
// What the client still says passes, up to its own Close, which the upstream
// hears from it. Only if that does not come within Patience the upstream gets one
// too, masked, and nothing after it. A message that never ends is interrupted
// between two frames then. Both ends are over (io.EOF) once both peers have sent
// their Close, so that no FIN comes before it; or after another Patience without.
type Socket struct {
	cfg              Config
	client, upstream end
	draining         bool
	late             bool   // the first Patience is over
	given            bool   // so is the second
	stop             func() // the timer, once draining
}

// New makes a Socket of two connections on one loop. It starts nothing: its ends
// are to be relayed in their place.
func New(client, upstream loop.Stream, cfg Config) *Socket {
	s := &Socket{cfg: cfg}
	s.client = end{Stream: client, s: s, unread: cfg.FromClient}
	s.upstream = end{Stream: upstream, s: s, unread: cfg.FromUpstream}
	s.cfg.FromClient, s.cfg.FromUpstream = nil, nil
	return s
}

// Ends are the connections as they are to be relayed.
func (s *Socket) Ends() (client, upstream loop.Stream) { return &s.client, &s.upstream }

// Ended is to be called when the relay has ended.
func (s *Socket) Ended() {
	if s.stop != nil {
		s.stop()
	}
}

// look begins the end if it is time.
func (s *Socket) look() {
	if s.draining || !s.cfg.Draining() {
		return
	}
	s.draining, s.upstream.ask = true, true
	s.after(func() {
		s.late, s.client.ask = true, true
		s.after(func() { s.given = true })
	})
	s.wake()
}

// after has f done, and both ends look at it, once Patience has passed.
func (s *Socket) after(f func()) {
	s.stop = s.client.Socket().Loop().AfterFunc(s.cfg.Patience, func() { f(); s.wake() })
}

func (s *Socket) wake() {
	s.client.Socket().Wake()
	s.upstream.Socket().Wake()
}

// end is a connection whose peer's frames are followed as they are read.
type end struct {
	loop.Stream
	s      *Socket
	f      follower
	unread []byte
	out    []byte // of our Close, what is still to be given
	ask    bool   // our Close is to be put in here
	said   bool   // it was: the peer's bytes are dropped from there on
}

// TryRead implements loop.Stream.
func (e *end) TryRead(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	e.s.look()
	if e.due() {
		e.say()
	}
	if len(e.out) > 0 {
		return e.give(b), nil
	}
	if e.over() {
		return 0, io.EOF
	}
	n, err := e.take(b)
	kept := e.follow(b[:n])
	if kept == 0 && n > 0 && err == nil { // all was dropped; the caller comes back if there is more
		if len(e.out) > 0 {
			return e.give(b), nil
		}
		if err = loop.ErrWouldBlock; e.over() {
			err = io.EOF
		}
	}
	return kept, err
}

// take reads, first what was read before.
func (e *end) take(b []byte) (int, error) {
	if len(e.unread) == 0 {
		return e.Stream.TryRead(b)
	}
	n := copy(b, e.unread)
	if e.unread = e.unread[n:]; len(e.unread) == 0 {
		e.unread = nil
	}
	return n, nil
}

// follow takes b down and says how much of it is to be passed on: all, unless our
// Close belongs somewhere in it.
func (e *end) follow(b []byte) (kept int) {
	before := e.f.closed
	for at := 0; at < len(b); {
		at += e.f.next(b[at:])
		if !e.said {
			if kept = at; e.due() {
				e.say()
			}
		}
	}
	if e.f.closed && !before {
		e.s.wake() // the other may be over too
	}
	return kept
}

// due tells whether our Close is to be put in where the stream stands: not after
// the peer's own, which says as much.
func (e *end) due() bool {
	return e.ask && !e.said && !e.f.closed && e.f.between() && (!e.f.within || e.s.late)
}

func (e *end) say() {
	var key *[4]byte
	if e == &e.s.client {
		k := e.s.cfg.Mask()
		key = &k
	}
	e.said, e.out = true, closeFrame(GoingAway, e.s.cfg.Reason, key)
}

func (e *end) give(b []byte) int {
	n := copy(b, e.out)
	e.out = e.out[n:]
	return n
}

// over tells whether nothing more is to be passed on: the other side has a Close,
// and both peers have sent theirs or had their time.
func (e *end) over() bool {
	s := e.s
	return s.draining && (e.said || e.f.closed) && len(e.out) == 0 && (s.given || s.client.f.closed && s.upstream.f.closed)
}

// Readable implements loop.Stream.
func (e *end) Readable() bool {
	return len(e.unread) > 0 || len(e.out) > 0 || e.due() || e.over() || e.Stream.Readable()
}

// Park implements loop.Stream.
func (e *end) Park(t loop.Task) {
	if e.s.look(); e.Readable() {
		e.Socket().Begin(t)
		return
	}
	e.Stream.Park(t)
}

// WaitRead implements loop.Stream.
func (e *end) WaitRead() error {
	if e.Readable() {
		return nil
	}
	return e.Stream.WaitRead()
}

// Read implements net.Conn.
func (e *end) Read(b []byte) (int, error) {
	for {
		n, err := e.TryRead(b)
		if err != loop.ErrWouldBlock {
			return n, err
		}
		if err := e.WaitRead(); err != nil {
			return 0, err
		}
	}
}

// Beneath is the connection itself, whose end is this one's.
func (e *end) Beneath() loop.Stream { return e.Stream }
