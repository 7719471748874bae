package h1

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Upstream is a connection to an upstream, with its read buffer. One task of its
// loop at a time may use it.
type Upstream struct {
	wire
	used      bool          // has carried an exchange
	ok        bool          // fit for another
	idleSince time.Time     // set by Pool
	life      time.Duration // how long it may be idle, 0 if the upstream did not say

	tls    counter // what is over the socket, nil for nothing
	wrote  uint64  // bytes given to a bare socket, ever
	before uint64  // written before the request at hand
	cut    bool    // a write heard of a reset
}

// NewUpstream wraps c, which has been dialled and, for TLS, has shaken hands.
func NewUpstream(c loop.Stream) *Upstream {
	u := &Upstream{ok: true, idleSince: c.Socket().Loop().Now()}
	u.init(c, largeBuffer, stockOf(c.Socket().Loop()))
	u.tls, _ = c.(counter)
	return u
}

// Conn is the connection inside.
func (u *Upstream) Conn() loop.Stream { return u.conn }

// Used reports whether u has carried an exchange before.
func (u *Upstream) Used() bool { return u.used }

// Reusable reports whether u is fit for another exchange: new, or left so by
// the last one.
func (u *Upstream) Reusable() bool { return u.ok }

// IdleAlive looks, without waiting, whether the upstream closed or spoke out of
// turn. RoundTrip looks too: a caller needs this for its own checks only.
func (u *Upstream) IdleAlive() bool { return u.ok && u.look(longIdle) == quiet }

// silence is what an idle upstream does.
type silence uint8

const (
	quiet  silence = iota
	spoke          // bytes are there that nobody asked for
	hungUp         // or failed
)

// longIdle is when what the loop knows of a connection is no longer new enough:
// then the kernel is asked.
const longIdle = 20 * time.Millisecond

// look tells whether an upstream that has been idle for so long is still there,
// without waiting. Over a fresh TLS connection unasked bytes are its tickets.
func (u *Upstream) look(idle time.Duration) silence {
	switch {
	case u.r != u.w:
		return spoke
	case !u.conn.Readable() && idle < longIdle, !u.used && u.bare == nil:
		return quiet
	}
	n, err := u.peek()
	switch {
	case err == unix.EAGAIN:
		u.conn.Socket().Drained()
		return quiet
	case n > 0:
		return spoke
	}
	return hungUp
}

// Close closes the connection and gives its buffer back.
func (u *Upstream) Close() error {
	u.ok = false
	u.r = u.w
	u.release()
	return u.conn.Close()
}

// unfit takes u out of use without closing: its owner does that.
func (u *Upstream) unfit() {
	u.ok, u.used = false, true
	u.r = u.w
	u.release()
}

// more reads into a body's room or its pipe, or with nil into the buffer.
func (u *Upstream) more(content *body) error {
	switch {
	case content == nil:
		return u.fill()
	case content.pipe != nil:
		return content.fill(content.pipe, u.bare)
	}
	n, err := u.conn.Read(content.room())
	content.took(n)
	return err
}
