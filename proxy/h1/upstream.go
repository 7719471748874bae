package h1

import (
	"net"
	"time"
)

// Upstream is a connection to an upstream, with its read buffer. One goroutine
// at a time may use it.
type Upstream struct {
	wire
	used      bool      // has carried an exchange
	ok        bool      // fit for another
	idleSince time.Time // set by Pool
}

// NewUpstream wraps c, which has been dialled and, for TLS, has shaken hands.
func NewUpstream(c net.Conn) *Upstream {
	u := &Upstream{ok: true}
	u.init(c, largeBuffer)
	return u
}

// Conn is the connection inside.
func (u *Upstream) Conn() net.Conn { return u.conn }

// Used reports whether u has carried an exchange before.
func (u *Upstream) Used() bool { return u.used }

// Reusable reports whether u is fit for another exchange: new, or left so by
// the last one.
func (u *Upstream) Reusable() bool { return u.ok }

// IdleAlive looks, without waiting, whether the upstream closed or spoke out of
// turn. RoundTrip looks too: a caller needs this for its own checks only.
func (u *Upstream) IdleAlive() bool { return u.ok && u.silent() }

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

// more reads into a body's room, or with nil into the buffer.
func (u *Upstream) more(content *body) error {
	if content == nil {
		return u.fill()
	}
	n, err := u.read(content.room())
	content.took(n)
	return err
}
