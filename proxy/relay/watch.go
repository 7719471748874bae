package relay

import "time"

// watch is what a session knows of silence. One timer for each session and none
// for each read: the timer looks when the last byte moved, and is set anew for
// what is left of the timeout.
type watch struct {
	last    time.Time // when the last byte moved, or the timeout was set
	timeout time.Duration
	cancel  func() // stops the timer; nil when none is set
}

// limit ends the session after timeout without a byte from now on; 0 changes
// nothing.
func (s *Session) limit(timeout time.Duration) {
	if timeout <= 0 {
		return
	}
	if s.watch == nil {
		s.watch = new(watch)
	}
	l := s.loop()
	s.watch.stop()
	s.watch.last, s.watch.timeout = l.Now(), timeout
	s.watch.cancel = l.AfterFunc(timeout, s.look)
}

// look is the timer's.
func (s *Session) look() {
	w, l := s.watch, s.loop()
	w.cancel = nil
	if left := w.timeout - l.Now().Sub(w.last); left > 0 {
		w.cancel = l.AfterFunc(left, s.look)
		return
	}
	s.Abort(Idle)
}

// hurry is told that one side has failed: what is left may go on while bytes
// move, and ends after flushTime without any.
func (s *Session) hurry() {
	if s.left == 2 && (s.watch == nil || s.watch.timeout > flushTime) {
		s.limit(flushTime)
	}
}

func (w *watch) stop() {
	if w != nil && w.cancel != nil {
		w.cancel()
		w.cancel = nil
	}
}
