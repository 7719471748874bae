package relay

import (
	"testing"
	"time"
)

func TestSilenceResetsBothSides(t *testing.T) {
	s := start(t, Config{IdleTimeout: 40 * time.Millisecond})
	expectReset(t, s.app)
	expectReset(t, s.server)
	if r := s.result(t); r.Reason != Idle || r.Err != nil {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

func TestSilenceCountsFromTheLastByte(t *testing.T) {
	s := start(t, Config{IdleTimeout: time.Hour})
	long := func() { s.session.watch.last = s.l.Now().Add(-time.Hour) }
	do(t, s.l, long)
	send(t, s.app, "x")
	expect(t, s.server, "x")
	do(t, s.l, func() {
		s.session.watch.stop() // as if it had fired
		s.session.look()
		if s.session.settled || s.session.watch.cancel == nil {
			t.Error("a byte a moment ago did not count")
		}
		s.session.watch.stop()
		long()
		s.session.look()
	})
	if r := s.result(t); r.Reason != Idle || r.ToUpstream != 1 {
		t.Errorf("got %+v (%v)", r, r.Err)
	}
}

func TestNoTimeoutMeansNoTimer(t *testing.T) {
	s := start(t, Config{})
	do(t, s.l, func() {
		if s.session.watch != nil {
			t.Error("a timer is set")
		}
		s.session.Abort(Cancelled)
	})
	s.result(t)
}

func TestHalfClosedTimeoutTakesOver(t *testing.T) {
	for _, idle := range []time.Duration{0, time.Hour} {
		s := start(t, Config{IdleTimeout: idle, HalfClosedTimeout: 40 * time.Millisecond})
		s.app.CloseWrite()
		expectEnd(t, s.server)
		if r := s.result(t); r.Reason != Idle {
			t.Errorf("got %v: %v", r.Reason, r.Err)
		}
		expectReset(t, s.app)
	}
}

func TestIdleTimeoutHoldsAfterAHalfClose(t *testing.T) {
	s := start(t, Config{IdleTimeout: 40 * time.Millisecond})
	s.app.CloseWrite()
	if r := s.result(t); r.Reason != Idle {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}
