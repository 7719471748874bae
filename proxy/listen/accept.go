package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// After a failed accept the loop waits, longer each time. Nobody is lost by it:
// the connection stays in the backlog, and is served once a descriptor is free.
// (Accepting it on a descriptor kept in reserve, only to close it, would turn a
// wait into a refusal.)
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// acceptLoop hands on what one socket accepts, until the listener drains (nil)
// or the socket fails for good.
func (l *Listener) acceptLoop(s socket, handlers *sync.WaitGroup, handle func(context.Context, *Conn)) error {
	pause := firstPause
	for l.drain.Err() == nil {
		tcp, err := s.AcceptTCP()
		switch {
		case err == nil:
			l.accepted.Add(1)
			if pause > firstPause {
				l.log.Info("accepting again", zap.Stringer("address", s.Addr()))
				pause = firstPause
			}
			if !l.takeSlot() {
				_ = tcp.Close()
				continue // the hard end: the next accept finds the socket closed
			}
			handlers.Go(func() { l.serve(s, tcp, handle) })
		case l.drain.Err() != nil:
			return nil
		case !passes(err):
			return fmt.Errorf("listen: accept on %s: %w", s.Addr(), err)
		default:
			l.acceptErrors.Add(1)
			if pause == firstPause { // once for each spell
				l.log.Warn("cannot accept for now", zap.Stringer("address", s.Addr()), zap.Error(err))
			}
			l.sleep(pause)
			pause = min(2*pause, lastPause)
		}
	}
	return nil
}

// passes tells an accept error that goes away from one of a socket that is no
// good any more. accept(2) also returns what had gone wrong on the network for
// the new connection, so the list is of what does not pass.
func passes(err error) bool {
	for _, lasting := range []error{net.ErrClosed, unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EOPNOTSUPP, unix.EFAULT} {
		if errors.Is(err, lasting) {
			return false
		}
	}
	return true
}

func (l *Listener) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.drain.Done():
	}
}

// takeSlot waits for room below MaxConns; false is the hard end.
func (l *Listener) takeSlot() bool {
	if l.slots == nil {
		return true
	}
	select {
	case l.slots <- struct{}{}:
		return true
	default:
	}
	l.waits.Add(1)
	select {
	case l.slots <- struct{}{}:
		return true
	case <-l.hard.Done():
		return false
	}
}

// serve runs the handler for one connection and clears up after it.
func (l *Listener) serve(s socket, tcp *net.TCPConn, handle func(context.Context, *Conn)) {
	c := &Conn{TCPConn: tcp, Draining: l.drain.Done()}
	defer l.done(c)
	if !s.inherits {
		// An error means that the connection is gone, as its handler will see.
		_ = tcp.SetKeepAliveConfig(l.cfg.keepAlive())
	}
	c.describe(l.cfg.OriginalDst)
	l.mu.Lock()
	late := l.ended
	l.active[c] = struct{}{}
	l.mu.Unlock()
	if late { // too late for endHard to see it
		l.cut.Add(1)
		c.reset()
		return
	}
	handle(l.hard, c)
}

// done is deferred, so it also sees a handler that panicked.
func (l *Listener) done(c *Conn) {
	if p := recover(); p != nil {
		l.panics.Add(1)
		l.log.Error("a handler panicked; its connection is closed", zap.Stringer("peer", c.Peer),
			zap.Stringer("original destination", c.OriginalDst), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
		c.reset() // not an end: what it was sending may be half sent
	}
	if l.hard.Err() != nil {
		c.reset()
	}
	_ = c.Close()
	l.mu.Lock()
	delete(l.active, c)
	l.mu.Unlock()
	if l.slots != nil {
		<-l.slots
	}
}
