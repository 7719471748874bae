package loop

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernel is the loop's epoll set, and the wait for it.
//
// The wait is the runtime's own: its poller watches the set as it would a socket,
// so a loop with nothing to do is a parked goroutine. A blocking epoll_wait costs
// the same call less, but to the scheduler it is a goroutine that never ends its
// turn: after 10 ms the runtime's monitor is after it at each of its waits, wakes
// every 20 µs or with each request to take the processor from it, and moves it from
// thread to thread. At 5 000 requests a second that was nearly half of all CPU time.
type kernel struct {
	set   *os.File
	epoll int // its descriptor
	raw   syscall.RawConn
	look  func(uintptr) bool // bound once

	events [128]unix.EpollEvent
	found  int           // of events, at the last look
	until  time.Duration // the age at which the runtime ends a wait; noDeadline: never
}

func (k *kernel) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an epoll set: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or os.File would block on it
		_ = unix.Close(fd)
		return fmt.Errorf("make an epoll set: %w", err)
	}
	k.epoll, k.set, k.until = fd, os.NewFile(uintptr(fd), "epoll set"), noDeadline
	if err := k.set.SetReadDeadline(time.Time{}); err != nil {
		_ = k.set.Close()
		return fmt.Errorf("have the runtime watch an epoll set: %w", err)
	}
	if k.raw, err = k.set.SyscallConn(); err != nil {
		_ = k.set.Close()
		return fmt.Errorf("have the runtime watch an epoll set: %w", err)
	}
	k.look = func(uintptr) bool { return k.glance() > 0 }
	return nil
}

// glance takes what events there are.
func (k *kernel) glance() int {
	k.found = rawEpollWait(k.epoll, k.events[:])
	return k.found
}

// wait is a glance that waits for an event, until the loop that began at epoch has
// the age due. The runtime's timer is moved for an earlier time only, so it may end
// a wait too early: that is a turn in vain, not an error.
func (k *kernel) wait(epoch time.Time, now, due time.Duration) int {
	if due < k.until || k.until <= now {
		k.until = due
		var at time.Time
		if due != noDeadline {
			at = epoch.Add(due)
		}
		if err := k.set.SetReadDeadline(at); err != nil {
			panic("loop: wait for an epoll set: " + err.Error()) // the set is ours: it cannot be
		}
	}
	k.found = 0
	switch err := k.raw.Read(k.look); {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		k.until = 0 // it has to be set anew
	default:
		panic("loop: wait for an epoll set: " + err.Error())
	}
	return k.found
}

// fire runs what is due at now.
func (l *Loop) fire(now time.Duration) {
	for t, ok := l.timers.take(now); ok; t, ok = l.timers.take(now) {
		t.run()
	}
	for c, ok := l.deadlines.take(now); ok; c, ok = l.deadlines.take(now) {
		c.expire()
	}
}

// poll waits for events and takes them down, all before any task runs: what a
// task sees of another connection is then as new as can be.
func (l *Loop) poll() {
	var n int
	now := l.since(l.now)
	due := min(l.timers.next(), l.deadlines.next())
	if len(l.ready) > l.resumed || l.pending.Load() || due <= now {
		n = l.kernel.glance()
	} else {
		n = l.kernel.wait(l.epoch, now, due)
	}
	for i := range n {
		ev := &l.kernel.events[i]
		if int(ev.Fd) == l.wakeFD {
			continue // edge-triggered: need not be read
		}
		if c := l.conns[ev.Fd]; c != nil && c.generation == ev.Pad {
			c.note(ev.Events)
		}
	}
}
