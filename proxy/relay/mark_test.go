package relay

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func lowMark(t *testing.T, c *loop.Conn) int {
	n, err := unix.GetsockoptInt(c.FD(), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
	if err != nil {
		t.Error(err)
	}
	return n
}

// Bytes below the mark wake nobody, but for the deadline.
func TestWhatStaysBelowTheMarkIsFetched(t *testing.T) {
	l := startLoop(t)
	c, peer := pair(t, l)
	m := mark{steady: markAfter}
	begun := make(chan struct{})
	do(t, l, func() {
		m.drained(c)
		if got := lowMark(t, c); !m.raised || got < markBytes/2 {
			t.Errorf("the mark is %d", got)
		}
		peer.Write([]byte("tail"))
		c.Park(loop.Func(func() { close(begun) }))
	})
	<-begun
	do(t, l, func() {
		m.woken(c)
		if got := lowMark(t, c); got != 1 || m.raised {
			t.Errorf("the mark is still %d", got)
		}
		c.WaitRead()
		m.filled(4)
		if m.drained(c); m.raised || m.waits != 1 || m.steady != 0 {
			t.Errorf("that it waited is not remembered: %+v", m)
		}
		m.steady = markAfter<<1 - 1
		if m.drained(c); m.raised {
			t.Error("the flow need not move twice as much")
		}
		m.steady++
		if m.drained(c); !m.raised {
			t.Error("the mark does not come back")
		}
		m.steady += markAfter << 1
		if m.drained(c); m.waits != 0 {
			t.Error("nothing is forgiven")
		}
	})
}

func TestAPauseWithNothingBelowTheMarkIsNotHeldAgainstIt(t *testing.T) {
	l := startLoop(t)
	c, _ := pair(t, l)
	m := mark{steady: markAfter}
	begun := make(chan struct{})
	do(t, l, func() { m.drained(c); c.Park(loop.Func(func() { close(begun) })) })
	<-begun
	do(t, l, func() {
		m.woken(c)
		if m.drained(c); m.raised || m.waits != 0 || lowMark(t, c) != 1 {
			t.Errorf("after a pause: %+v", m)
		}
		if m.drained(c); !m.raised {
			t.Error("the mark does not come back")
		}
	})
}

func TestAnEndBelowTheMarkIsSeen(t *testing.T) {
	l := startLoop(t)
	c, peer := pair(t, l)
	begun := make(chan struct{})
	do(t, l, func() {
		if err := unix.SetsockoptInt(c.FD(), unix.SOL_SOCKET, unix.SO_RCVLOWAT, markBytes); err != nil {
			t.Error(err)
		}
		c.Park(loop.Func(func() { close(begun) }))
	})
	send(t, peer, "tail")
	peer.CloseWrite()
	<-begun
}

// Bursts of every size, each waited for by its sender: none may get stuck.
func TestBurstsAfterBulkArrive(t *testing.T) {
	s := start(t, Config{})
	bulk := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{3}).Read(bulk)
	got := make([]byte, len(bulk))
	for size := len(bulk); size > 0; size /= 3 {
		for range 3 {
			go s.app.Write(bulk[:size])
			if _, err := io.ReadFull(s.server, got[:size]); err != nil {
				t.Fatalf("a burst of %d bytes: %v", size, err)
			}
			if sha256.Sum256(got[:size]) != sha256.Sum256(bulk[:size]) {
				t.Fatalf("a burst of %d bytes arrived changed", size)
			}
		}
	}
	s.app.Close()
	s.server.Close()
	if r := s.result(t); r.Reason != EOF {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}
