package loop

import (
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Acceptor takes connections from a listening socket, a few at each turn of the loop.
type Acceptor struct {
	l        *Loop
	fd       int
	watching Conn // the socket's entry on the loop
	accepted func(fd int, peer netip.AddrPort)
	failed   func(error) (retry time.Duration)
	paused   bool
	closed   bool
	last     uint64 // the turn in which somebody came last
	resume   func() // stops the timer of a pause
}

// Accept begins to accept from a listening, non-blocking socket, which becomes
// the Acceptor's; other loops may accept from the same socket by descriptors of
// their own, and one of them is woken for each newcomer. accepted runs outside
// any task and owns what it is given: it has this loop, or another, Adopt it.
// failed is told of an accept that failed and says when to try again.
func (l *Loop) Accept(fd int, accepted func(fd int, peer netip.AddrPort), failed func(error) time.Duration) (*Acceptor, error) {
	a := &Acceptor{l: l, fd: fd, accepted: accepted, failed: failed}
	l.newConn(&a.watching, fd)
	a.watching.owner = a
	if err := a.watch(); err != nil {
		l.conns[fd] = nil
		return nil, err
	}
	return a, nil
}

// Adopt makes an accepted, non-blocking socket a connection of the loop.
func (l *Loop) Adopt(fd int) *Conn {
	c := new(Conn)
	l.AdoptInto(c, fd)
	return c
}

// AdoptInto is Adopt for a Conn that is part of something larger.
func (l *Loop) AdoptInto(c *Conn, fd int) {
	l.newConn(c, fd)
	c.set(readable) // it may be: who connects most often speaks at once
}

// watch is exclusive: a newcomer wakes one loop, not all.
func (a *Acceptor) watch() error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: int32(a.fd), Pad: a.watching.generation}
	if err := rawEpollCtl(a.l.epoll, unix.EPOLL_CTL_ADD, a.fd, &ev); err != 0 {
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// Pause leaves newcomers to other loops, and in the kernel's backlog, until Resume.
func (a *Acceptor) Pause() {
	if !a.paused && !a.closed {
		a.paused = true
		_ = rawEpollCtl(a.l.epoll, unix.EPOLL_CTL_DEL, a.fd, nil) // exclusive ones cannot be modified
	}
}

// Resume accepts again.
func (a *Acceptor) Resume() {
	if a.paused && !a.closed {
		a.paused = false
		_ = a.watch() // it could be watched before
	}
}

// Close takes who has come, and closes the socket. A newcomer wakes one of those
// that share the socket: if that was this one, the others would not hear of it.
func (a *Acceptor) Close() {
	if a.closed {
		return
	}
	a.Pause()
	for a.take() {
	}
	a.closed = true
	a.l.conns[a.fd] = nil
	if a.resume != nil {
		a.resume()
	}
	_ = rawClose(a.fd)
}

// burst is how many newcomers are taken at a turn when they come at every turn:
// with one at each turn there would be more turns than needed, and with all of
// them at once nobody else would have his.
const burst = 8

// accept takes who has come. The socket is watched level-triggered, so the rest
// comes at the next turn.
func (a *Acceptor) accept() {
	if a.closed {
		return
	}
	n := 1
	if a.last == a.l.turn-1 {
		n = burst
	}
	for range n {
		if a.paused || !a.take() {
			return
		}
		a.last = a.l.turn
	}
}

// take accepts one, if one is there.
func (a *Acceptor) take() bool {
	var sa sockaddr
	fd, err := rawAccept(a.fd, &sa)
	switch err {
	case 0:
		a.accepted(fd, sa.addrPort())
		return true
	case unix.EINTR, unix.ECONNABORTED:
		return true
	case unix.EAGAIN:
		return false
	}
	if wait := a.failed(os.NewSyscallError("accept", err)); !a.paused {
		a.Pause()
		a.resume = a.l.AfterFunc(wait, func() { a.resume = nil; a.Resume() })
	}
	return false
}
