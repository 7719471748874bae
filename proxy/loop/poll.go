package loop

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// fire runs what is due at now.
func (l *Loop) fire(now time.Duration) {
	for t, ok := l.timers.take(now); ok; t, ok = l.timers.take(now) {
		t.run()
	}
	for c, ok := l.deadlines.take(now); ok; c, ok = l.deadlines.take(now) {
		c.expire()
	}
}

// yieldEvery is how often a loop ends its turn in the eyes of the Go scheduler,
// whose monitor is after whoever has not done so for 10 ms: it sends signals to
// one that runs, and takes the processor from one that waits in the kernel,
// again after every wait, which costs both threads a wake-up.
const yieldEvery = 5 * time.Millisecond

// poll waits for events and takes them down, all before any task runs: what a
// task sees of another connection is then as new as can be.
func (l *Loop) poll() {
	wait := -1
	if len(l.ready) > l.resumed || l.pending.Load() {
		wait = 0
	} else if due := min(l.timers.next(), l.deadlines.next()); due != noDeadline {
		wait = int(max(0, (due-l.since(l.now)+time.Millisecond-1)/time.Millisecond))
		wait = min(wait, 1<<30)
	}
	if l.now.Sub(l.yielded) >= yieldEvery {
		l.yielded = l.now
		runtime.Gosched()
	}
	n := 0
	if l.busy || wait == 0 { // most likely there is more: the scheduler need not hear of this call
		n = rawEpollWait(l.epoll, l.events[:])
	}
	if n == 0 && wait != 0 {
		var err error
		if n, err = unix.EpollWait(l.epoll, l.events[:], wait); err != nil && err != unix.EINTR {
			panic("loop: epoll_wait: " + err.Error()) // the set is ours: it cannot be
		}
	}
	l.busy = n > 1
	for i := range max(n, 0) {
		ev := &l.events[i]
		if int(ev.Fd) == l.wakeFD {
			continue // edge-triggered: need not be read
		}
		if c := l.conns[ev.Fd]; c != nil && c.generation == ev.Pad {
			c.note(ev.Events)
		}
	}
}
