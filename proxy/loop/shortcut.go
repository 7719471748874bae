package loop

import (
	"time"

	"golang.org/x/sys/unix"
)

// Where weir-init has installed the short cut, bytes between an app and the proxy
// beside it do not pass through TCP. Three things are then different, of which
// Conn knows: no window bounds what the app has not read, splice(2) does not find
// what came that way, and a read may stop where it ends and TCP's bytes begin.

// shortCutPriority is the SO_PRIORITY by which the short cut marks the proxy's
// sockets; it spells "weir". The kernel uses it for nothing on loopback.
const shortCutPriority = 0x77656972

// What Conn.short says; 0 is that nobody asked. Above isShort it counts how often
// there was no room, less what was forgiven.
const (
	notShort = 1 + iota
	isShort
)

// ShortCut reports whether bytes may come past TCP. The kernel is asked once.
//
// splice(2) must not be used to read from such a connection: it would find only
// what came through TCP, and overtake the rest.
func (c *Conn) ShortCut() bool {
	if c.short == 0 && !c.is(closed) {
		c.short = notShort
		if p, err := unix.GetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_PRIORITY); err == nil && p == shortCutPriority {
			c.short = isShort
		}
	}
	return c.short >= isShort
}

const (
	// How many bytes are written before the kernel is asked what of them the app
	// has not read. A question takes some microseconds, a MiB several hundred.
	// Smaller writes count as a sentPiece: the question is sooner then, and still
	// a hundredth of what they cost.
	askAfter  = 1 << 20
	sentPiece = 8 << 10
	// So many may wait: with askAfter and the last write it is what TCP allows a
	// connection by default (tcp_rmem, 4 to 6 MiB).
	unreadMost = 3 << 20

	// The kernel has no event for "the app has read", so it is asked again, after
	// twice the time at each question in vain. With 3 MiB in store 1 ms holds up
	// no app that reads less than 3 GiB/s; the longest wait means four questions
	// a second for an app that does not read at all.
	crowdedWait = time.Millisecond
	crowdedMost = 9 // 256 ms
)

// HasRoom is to be asked before a write, by other means than Write too: false
// means that the app has much to read already, and WaitWrite helps. It makes a
// system call every MiB.
func (c *Conn) HasRoom() bool {
	if c.sent < askAfter/sentPiece {
		return true
	}
	if !c.is(closed) && c.ShortCut() && c.l.unread(c) > unreadMost {
		c.short = min(c.short+1, isShort+crowdedMost)
		return false
	}
	if c.sent = 0; c.short > isShort {
		c.short -= (c.crowded() + 1) / 2
	}
	return true
}

// Wrote takes down that n bytes were written.
func (c *Conn) Wrote(n int) {
	c.sent = uint8(min(int(c.sent)+(n+sentPiece-1)/sentPiece, askAfter/sentPiece))
}

// crowded is how often there was no room, less what was forgiven.
func (c *Conn) crowded() uint8 { return max(c.short, isShort) - isShort }

// again is when to look for room whatever the kernel says.
func (c *Conn) again() time.Duration {
	if c.crowded() == 0 {
		return noDeadline
	}
	return c.l.since(c.l.now) + crowdedWait<<(c.crowded()-1)
}
