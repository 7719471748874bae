// Package loop runs connections on an event loop: straight-line code in coroutines, thousands of them on one thread.
// What is said over a connection, and how many loops there are, it leaves to its callers.
//
// A task is a function that runs on a loop until it waits: for bytes, for room,
// for another task. Then the loop goes on with the next. Tasks of one loop never
// run at the same time, so what they share needs no lock. The price is a rule:
// a task must not wait for anything that the loop does not know (a channel, a
// lock that is held for long, a file); what must is put into Block.
//
// A connection with nothing to do is parked: it keeps no stack and no buffer,
// only a function to call when bytes come.
//
// Why not the runtime's poller: a goroutine that has read all there is finds
// that out by one more read, and is woken through the scheduler. Here a read
// that came back short is known to be the last (see Conn.Read), and a task is
// resumed directly, in about 0.1 µs. Together that is a fifth of the cost of a
// small request.
package loop

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Config is what a loop is told at its start.
type Config struct {
	// Panicked is told of a task that panicked, with its stack; the loop goes on.
	// nil lets the panic end the program.
	Panicked func(value any, stack []byte)
}

// Loop is one thread's worth of connections. All its methods, and those of its
// connections, may be called only on the loop, that is by its tasks, but for
// Run, Post and Close.
type Loop struct {
	cfg    Config
	epoll  int
	wakeFD int // an eventfd: somebody posted
	diag   int // a netlink socket for unread; 0 until wanted, -1 when it cannot be had

	turn       uint64
	busy       bool // the last look at the kernel found several events
	now        time.Time
	yielded    time.Time // when the scheduler was last let in
	epoch      time.Time // deadlines are counted from here
	conns      []*Conn   // by descriptor
	spare      []*waits  // that no connection needs
	generation int32     // tells a descriptor's new owner from events of its old one
	events     [128]unix.EpollEvent
	deadlines  heap[*Conn]
	timers     heap[*timer]
	keeps      []*net.KeepAliveConfig // what Conn.keep stands for

	current   *task   // the one that runs
	ready     []*task // to be resumed, in order
	resumed   int     // of ready, those resumed already
	free      []*task // coroutines without a task
	leastFree int     // of them since thin was called last
	thinning  bool    // thin's timer is set
	live      int     // tasks that have begun and not ended
	locals    []local
	pipes     pipes
	closing   bool
	keeping   bool // keepLater's timer is set

	mu      sync.Mutex // guards what follows
	posted  []func()
	ended   bool
	pending atomic.Bool // posted is not empty, or Close was called
}

// Coroutines without a task are kept: to make one, and to let its stack grow, costs a
// microsecond or two. A burst leaves more behind than are needed later, each with a
// stack: of more than a few those are let go that were not needed for a while.
const (
	maxFree   = 1024
	fewFree   = 64
	thinEvery = 2 * time.Second
)

// New makes a loop. The error is the kernel's: most often no descriptor is left.
func New(cfg Config) (*Loop, error) {
	l := &Loop{cfg: cfg, epoch: time.Now()}
	l.now = l.epoch
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make an epoll set: %w", err)
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(l.epoll)
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(l.wakeFD)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.wakeFD, &ev); err != nil {
		unix.Close(l.epoll)
		unix.Close(l.wakeFD)
		return nil, fmt.Errorf("watch an eventfd: %w", err)
	}
	return l, nil
}

// Run runs tasks until Close was called and all of them have ended. It must be
// called once, and alone makes the loop move.
func (l *Loop) Run() {
	for !l.done() {
		l.turn++
		l.poll()
		l.now = time.Now()
		l.fire(l.since(l.now))
		if l.pending.Load() {
			l.takePosted()
		}
		l.runReady()
	}
	for _, t := range l.free {
		t.stop()
	}
	l.free = nil
	l.closePipes()
	unix.Close(l.epoll)
	unix.Close(l.wakeFD)
	if l.diag > 0 {
		unix.Close(l.diag)
	}
}

func (l *Loop) done() bool {
	if !l.closing || l.live > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.posted) > 0 {
		return false
	}
	l.ended = true
	return true
}

// Close ends the loop: connections are closed, tasks find their waits failing
// with net.ErrClosed, and Run returns when the last has ended.
func (l *Loop) Close() {
	l.Post(func() {
		l.closing = true
		for _, c := range l.conns {
			switch {
			case c == nil:
			case c.listening() != nil:
				c.listening().Close()
			default:
				_ = c.Reset()
			}
		}
	})
}

// Each calls f for every connection.
func (l *Loop) Each(f func(*Conn)) {
	for _, c := range l.conns {
		if c != nil && c.listening() == nil {
			f(c)
		}
	}
}

// Closing reports whether Close was called.
func (l *Loop) Closing() bool { return l.closing }

// Post has f run on the loop, soon, outside any task: it must not wait. It may
// be called from anywhere, and reports false when the loop has ended.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.posted = append(l.posted, f)
	if !l.pending.Swap(true) {
		one := [8]byte{1}
		_, _ = unix.Write(l.wakeFD, one[:]) // it cannot be full
	}
	return true
}

func (l *Loop) takePosted() {
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.pending.Store(false)
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// Now is the time at which the task that runs was resumed.
func (l *Loop) Now() time.Time { return l.now }

// Age is Now as the time since the loop was made: a third of a time.Time, for what
// is kept for each connection.
func (l *Loop) Age() time.Duration { return l.since(l.now) }

// At is the time at which the loop was so old.
func (l *Loop) At(age time.Duration) time.Time { return l.epoch.Add(age) }

func (l *Loop) since(t time.Time) time.Duration { return t.Sub(l.epoch) }

// runReady resumes each task that is ready now; those made ready meanwhile wait
// for the next turn, so that no two tasks can keep the loop for themselves.
func (l *Loop) runReady() {
	n := len(l.ready)
	for l.resumed < n {
		t := l.ready[l.resumed]
		l.ready[l.resumed] = nil
		if l.resumed > 0 {
			l.now = time.Now()
		}
		l.resumed++
		l.resume(t)
	}
	left := copy(l.ready, l.ready[l.resumed:])
	clear(l.ready[left:])
	l.ready, l.resumed = l.ready[:left], 0
}

// local is something that users of the loop keep with it.
type local struct{ key, value any }

// Local finds what is kept with the loop under key, made by create at first.
// Keys are compared as interfaces: use a type of your own.
func (l *Loop) Local(key any, create func() any) any {
	for i := range l.locals {
		if l.locals[i].key == key {
			return l.locals[i].value
		}
	}
	v := create()
	l.locals = append(l.locals, local{key, v})
	return v
}

// ErrWouldBlock is returned by TryRead when nothing is there. It is a net.Error
// that says Temporary, so that a tls.Conn which meets it stays usable.
var ErrWouldBlock error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing to read yet" }
func (wouldBlock) Timeout() bool   { return false }
func (wouldBlock) Temporary() bool { return true }

// IsWouldBlock finds ErrWouldBlock in what wraps it.
func IsWouldBlock(err error) bool { return err == ErrWouldBlock || errors.Is(err, ErrWouldBlock) }
