package loop

import (
	"errors"
	"os"
	"testing"
	"time"
)

func TestAWaiterIsWokenOrItsTimeComes(t *testing.T) {
	l := start(t)
	var w Waiter
	do(t, l, func() {
		w.Init(l)
		l.Go(w.Wake)
		if err := w.Wait(time.Time{}); err != nil {
			t.Error("woken:", err)
		}
		w.Wake()
		if err := w.Wait(l.Now().Add(time.Hour)); err != nil {
			t.Error("woken before it waited:", err)
		}
		w.Wake()
		w.Clear()
		if err := w.Wait(l.Now().Add(-time.Second)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the time had passed:", err)
		}
		before := time.Now()
		if err := w.Wait(before.Add(20 * time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(before) < 20*time.Millisecond {
			t.Error("the time came:", err, time.Since(before))
		}
	})
}

// The timer of an early deadline stays when a wait ends before it: a later wait with a
// later deadline is not ended by it.
func TestAWaiterIsNotWokenByADeadlineOfBefore(t *testing.T) {
	l := start(t)
	var w Waiter
	do(t, l, func() {
		w.Init(l)
		l.Go(w.Wake)
		if err := w.Wait(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Error(err)
		}
		began := time.Now()
		if err := w.Wait(began.Add(50 * time.Millisecond)); err == nil || time.Since(began) < 50*time.Millisecond {
			t.Error(err, time.Since(began))
		}
	})
}

func TestAloneKnowsOfOthersThatAreReady(t *testing.T) {
	l := start(t)
	do(t, l, func() {
		if !l.Alone() {
			t.Error("nobody else was begun")
		}
		l.Go(func() {})
		if l.Alone() {
			t.Error("somebody else is ready")
		}
	})
}
