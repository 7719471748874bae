package loop

import (
	"net"
	"os"
	"time"
)

// noDeadline is later than any.
const noDeadline = time.Duration(1<<63 - 1)

// waits is what a connection needs only while a task waits for it or it has a
// deadline. Those of one loop are lent out again and again.
type waits struct {
	reader, writer  *task // who waits
	readBy, writeBy time.Duration
}

// nothing is what a waits says that is not needed.
var nothing = waits{readBy: noDeadline, writeBy: noDeadline}

// maxSpare is how many are kept that nobody needs: a task needs one only while
// it waits.
const maxSpare = 256

// needs is c.waits, lent if need be.
func (c *Conn) needs() *waits {
	if c.waits != nil {
		return c.waits
	}
	if n := len(c.l.spare); n > 0 {
		c.waits, c.l.spare = c.l.spare[n-1], c.l.spare[:n-1]
	} else {
		c.waits = new(waits)
		*c.waits = nothing
	}
	return c.waits
}

// rest gives c.waits back when there is no more need of it.
func (c *Conn) rest() {
	if c.waits == nil || *c.waits != nothing {
		return
	}
	if len(c.l.spare) < maxSpare {
		c.l.spare = append(c.l.spare, c.waits)
	}
	c.waits = nil
}

// late reports whether the read deadline has passed.
func (c *Conn) late() bool {
	return c.waits != nil && c.waits.readBy <= c.l.since(c.l.now)
}

// WaitRead waits until there is something to read, without a buffer to read it
// to. It fails at the read deadline and when the connection is closed.
func (c *Conn) WaitRead() error {
	defer c.rest()
	for {
		switch {
		case c.is(closed):
			return net.ErrClosed
		case c.late():
			return os.ErrDeadlineExceeded
		case c.is(readable):
			return nil
		}
		if err := c.watch(); err != nil {
			return err
		}
		w := c.needs()
		c.arm(w.readBy)
		w.reader = c.l.current
		c.l.pause()
		w.reader = nil
	}
}

// WaitWrite waits until the kernel says that there is room, after a write or a
// splice that found none.
func (c *Conn) WaitWrite() error {
	if c.is(closed) {
		return net.ErrClosed
	}
	if err := c.watch(); err != nil {
		return err
	}
	defer c.rest()
	w, again := c.needs(), c.again()
	for c.unset(room); ; {
		now := c.l.since(c.l.now)
		switch {
		case c.is(closed):
			return net.ErrClosed
		case c.is(room):
			return nil
		case w.writeBy <= now:
			return os.ErrDeadlineExceeded
		case again <= now:
			return nil
		}
		c.arm(min(again, w.writeBy))
		w.writer = c.l.current
		c.l.pause()
		w.writer = nil
	}
}

// arm sees that the deadline is noticed. A connection is among the deadlines
// once, however often its own moves: it is put there anew only for an earlier
// time, and looks at the deadline of now when that comes. So a busy connection
// touches the heap once in a while, not once per read.
func (c *Conn) arm(by time.Duration) {
	if by != noDeadline && (c.timer == 0 || by < c.l.deadlines.due(c)) {
		c.l.deadlines.set(c, by)
	}
}

// expire is called when the time at which c is among the deadlines has come:
// some deadline may have passed, or have been moved.
func (c *Conn) expire() {
	w := c.waits
	if w == nil {
		return
	}
	now := c.l.since(c.l.now)
	if w.reader != nil || c.idle != nil {
		if w.readBy > now {
			c.arm(w.readBy)
		} else {
			c.Wake()
		}
	}
	if w.writer != nil {
		if w.writeBy > now && c.crowded() == 0 {
			c.arm(w.writeBy)
		} else {
			c.l.wake(w.writer)
		}
	}
}

// SetReadDeadline implements net.Conn. Zero is none; one that has passed wakes
// who waits.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.is(closed) {
		return net.ErrClosed
	}
	by := c.l.deadline(t)
	if by == noDeadline && c.waits == nil {
		return nil
	}
	w := c.needs()
	if w.readBy = by; w.reader != nil || c.idle != nil {
		if c.late() {
			c.Wake()
		} else {
			c.arm(by)
		}
	}
	c.rest()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.is(closed) {
		return net.ErrClosed
	}
	by := c.l.deadline(t)
	if by == noDeadline && c.waits == nil {
		return nil
	}
	w := c.needs()
	if w.writeBy = by; w.writer != nil {
		if by <= c.l.since(c.l.now) {
			c.l.wake(w.writer)
		} else {
			c.arm(by)
		}
	}
	c.rest()
	return nil
}

// SetDeadline implements net.Conn. Without any the connection leaves the heap at
// once: most likely it is to be idle for long.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	if t.IsZero() {
		c.l.deadlines.drop(c)
	}
	return c.SetWriteDeadline(t)
}

func (l *Loop) deadline(t time.Time) time.Duration {
	if t.IsZero() {
		return noDeadline
	}
	return l.since(t)
}
