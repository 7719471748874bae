package relay

import "time"

// watch is what a session knows of silence. One timer for each session and none
// for each read: the timer looks when the last byte moved, and is set anew for
// what is left of the timeout.
type watch struct {
	last    time.Time     // when the last byte moved, or the timeout was set
	timeout time.Duration // 0: silence is not bounded
	half    time.Duration // HalfClosedTimeout
	cancel  func()        // stops the timer; nil when none is set
}

// limit ends the session after timeout without a byte from now on; 0 changes
// nothing.
func (s *Session) limit(timeout time.Duration) {
	if timeout <= 0 {
		return
	}
	s.watch.stop()
	s.watch.last, s.watch.timeout = s.l.Now(), timeout
	s.watch.cancel = s.l.AfterFunc(timeout, s.look)
}

// look is the timer's.
func (s *Session) look() {
	w := &s.watch
	w.cancel = nil
	if left := w.timeout - s.l.Now().Sub(w.last); left > 0 {
		w.cancel = s.l.AfterFunc(left, s.look)
		return
	}
	s.Abort(Idle)
}

// hurry is told that one side has failed: what is left may go on while bytes
// move, and ends after flushTime without any.
func (s *Session) hurry() {
	if s.flowing == 2 && (s.watch.timeout == 0 || s.watch.timeout > flushTime) {
		s.limit(flushTime)
	}
}

func (w *watch) stop() {
	if w.cancel != nil {
		w.cancel()
		w.cancel = nil
	}
}
