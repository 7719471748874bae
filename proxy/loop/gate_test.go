package loop

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestAGateLetsAllPassWhoWait(t *testing.T) {
	l := start(t)
	var g Gate
	passed := make(chan bool, 3)
	do(t, l, func() {
		for range 3 {
			l.Go(func() { passed <- g.Wait(l, time.Time{}) })
		}
		l.Yield()
		if g.Waiting() != 3 || len(passed) != 0 {
			t.Error(g.Waiting(), "wait,", len(passed), "have passed")
		}
		g.Open()
	})
	for range 3 {
		if !<-passed {
			t.Error("one did not pass")
		}
	}
}

func TestAGateIsNotWaitedForBeyondTheDeadline(t *testing.T) {
	l := start(t)
	var g Gate
	do(t, l, func() {
		if g.Wait(l, l.Now().Add(time.Millisecond)) {
			t.Error("passed a gate that nobody opened")
		}
		if g.Waiting() != 0 {
			t.Error("still there")
		}
		g.Open()
	})
}

func TestAPairCarriesBytesBothWays(t *testing.T) {
	l := start(t)
	var near *Conn
	var far net.Conn
	do(t, l, func() {
		var err error
		if near, far, err = l.Pair(); err != nil {
			t.Fatal(err)
		}
	})
	defer far.Close()
	if _, err := far.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	do(t, l, func() {
		b := make([]byte, 8)
		if n, err := near.Read(b); err != nil || string(b[:n]) != "ping" {
			t.Error(n, err)
		}
		if _, err := near.Write([]byte("pong")); err != nil {
			t.Error(err)
		}
		if near.ShortCut() {
			t.Error("taken for a connection of the short cut")
		}
		near.Close()
	})
	if b, err := io.ReadAll(far); err != nil || string(b) != "pong" {
		t.Errorf("%q %v", b, err)
	}
}
