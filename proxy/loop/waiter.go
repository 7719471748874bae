package loop

import (
	"os"
	"time"
)

// Waiter is where one task waits for others of its loop, or for a time. It may be
// used again and again: its timer stays among the loop's when a wait ends, and is
// moved only for an earlier one, so that most waits touch no heap.
type Waiter struct {
	l       *Loop
	waiting *task
	woken   bool // since the last wait
	until   time.Duration
	timer   timer
}

// Init makes w ready for use; it must not be copied afterwards.
func (w *Waiter) Init(l *Loop) {
	w.l = l
	w.timer.run = w.due
}

// Wait waits until Wake, of now or since the last Wait, or until the deadline; zero
// is none. Its error is os.ErrDeadlineExceeded.
func (w *Waiter) Wait(deadline time.Time) error {
	w.until = w.l.deadline(deadline)
	for !w.woken {
		if w.until <= w.l.since(w.l.now) {
			return os.ErrDeadlineExceeded
		}
		if w.until != noDeadline && (w.timer.place == 0 || w.until < w.l.timers.due(&w.timer)) {
			w.l.timers.set(&w.timer, w.until)
		}
		w.waiting = w.l.current
		w.l.pause()
		w.waiting = nil
	}
	w.woken = false
	return nil
}

// Wake ends the wait of now, or the next one before it begins.
func (w *Waiter) Wake() {
	if w.woken = true; w.waiting != nil {
		w.l.wake(w.waiting)
	}
}

// Clear forgets a Wake that nobody waited for.
func (w *Waiter) Clear() { w.woken = false }

// due is called when the time has come for which the timer was set, by this wait
// or by one before.
func (w *Waiter) due() {
	switch {
	case w.waiting == nil || w.until == noDeadline:
	case w.until <= w.l.since(w.l.now):
		w.l.wake(w.waiting)
	default:
		w.l.timers.set(&w.timer, w.until)
	}
}

// Alone reports whether no task but the one that runs is ready: what could be
// gathered from several at once can be done now.
func (l *Loop) Alone() bool { return len(l.ready) == l.resumed }
