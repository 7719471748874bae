package relay

import (
	"sync"
	"time"
)

// ticks divides the timeout: the timer fires this often per timeout, and the
// relay is idle when nothing moved between so many firings. One timer for each
// connection and none for each read: setting a deadline before every read cost
// up to 16 % of a small message.
const ticks = 4

// watch ends a session in which nothing moves. A timeout of 0 never does.
type watch struct {
	s    *session
	half time.Duration // HalfClosedTimeout

	mu      sync.Mutex // guards what follows
	timeout time.Duration
	timer   *time.Timer
	running bool // a firing is due or under way
	ended   bool
	last    int64 // bytes moved at the last firing
	quiet   int   // firings since then that saw no change
	gone    chan struct{}
}

func startWatch(cfg Config, s *session) *watch {
	w := &watch{s: s, half: cfg.HalfClosedTimeout, gone: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setLocked(cfg.IdleTimeout)
	return w
}

// setLocked begins to count towards a new timeout.
func (w *watch) setLocked(timeout time.Duration) {
	if timeout <= 0 || w.ended {
		return
	}
	w.timeout, w.quiet = timeout, 0
	if w.timer == nil {
		w.running = true
		w.timer = time.AfterFunc(timeout/ticks, w.fire)
		return
	}
	if w.running && w.timer.Stop() {
		w.timer.Reset(timeout / ticks)
	}
	// Else a firing is on its way and sees the new timeout.
}

func (w *watch) fire() {
	w.mu.Lock()
	moved := w.s.flows[Client].moved.Load() + w.s.flows[Upstream].moved.Load()
	w.quiet++
	if moved != w.last {
		w.last, w.quiet = moved, 0
	}
	idle := w.quiet >= ticks
	if !idle && !w.ended {
		w.timer.Reset(w.timeout / ticks)
		w.mu.Unlock()
		return
	}
	ended := w.ended
	w.running = false
	w.mu.Unlock()
	if !ended {
		w.s.abort(Idle)
	}
	close(w.gone)
}

// halfClosed is told that one direction has ended.
func (w *watch) halfClosed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setLocked(w.half)
}

// hurry is told that one side has failed: what is left may go on while bytes
// move, and ends after flushTime without any.
func (w *watch) hurry() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timeout == 0 || w.timeout > flushTime {
		w.setLocked(flushTime)
	}
}

// stop ends the watch and waits for a firing under way.
func (w *watch) stop() {
	w.mu.Lock()
	w.ended = true
	fired := w.timer != nil && (!w.running || !w.timer.Stop())
	w.mu.Unlock()
	if fired {
		<-w.gone
	}
}
