package relay

import (
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// What a relay costs in which nothing is said, beside its two connections.
func TestAnIdleRelayIsSmall(t *testing.T) {
	for name, is := range map[string]struct {
		cfg  Config
		most int
	}{
		"no bound on silence": {Config{HalfClosedTimeout: time.Minute}, 160},
		"timeouts":            {Config{IdleTimeout: time.Hour, HalfClosedTimeout: time.Minute}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			const relays = 500
			l := startLoop(t)
			conns, peers := adoptPairs(t, l, 2*relays)
			sessions := make([]*Session, relays)
			// None is begun as a task before there is something to read: many tasks
			// at once would leave their coroutines in the loop.
			do(t, l, func() {
				for _, c := range conns {
					_, _ = c.TryRead(make([]byte, 1))
				}
			})
			before := heap(t, l)
			do(t, l, func() {
				for i := range sessions {
					sessions[i] = Start(conns[2*i], conns[2*i+1], is.cfg, func(Result) {})
				}
			})
			for i := range sessions { // each has been a task
				if _, err := unix.Write(peers[2*i], []byte("x")); err != nil {
					t.Fatal(err)
				}
				waitFor(t, func() (wrong string) {
					if _, err := unix.Read(peers[2*i+1], make([]byte, 1)); err != nil {
						wrong = err.Error()
					}
					return wrong
				})
			}
			each := (heap(t, l) - before) / relays
			t.Logf("%d bytes of heap for each", each)
			if each > is.most {
				t.Errorf("an idle relay holds %d bytes, more than %d", each, is.most)
			}
			runtime.KeepAlive(sessions)
		})
	}
}

// adoptPairs makes connections whose peers are plain descriptors: nothing on the heap.
func adoptPairs(t *testing.T, l *loop.Loop, n int) (conns []*loop.Conn, peers []int) {
	t.Helper()
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[1]) })
		peers = append(peers, fds[1])
		do(t, l, func() { conns = append(conns, l.Adopt(fds[0])) })
	}
	return conns, peers
}

func heap(t *testing.T, l *loop.Loop) int {
	t.Helper()
	var m runtime.MemStats
	for range 3 { // pools are emptied by the second
		runtime.GC()
	}
	do(t, l, func() { runtime.ReadMemStats(&m) })
	return int(m.HeapAlloc)
}

func TestAMessageAllocatesNothing(t *testing.T) {
	const messages = 2000
	s := start(t, Config{IdleTimeout: time.Hour, Progress: func(Side, int) {}})
	msg := make([]byte, 100)
	exchange := func(n int) {
		for range n {
			pingPong(t, s.app, s.server, msg)
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would empty the pools
	exchange(100)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	exchange(messages / 2)
	runtime.ReadMemStats(&after)
	got := float64(after.Mallocs-before.Mallocs) / messages
	t.Logf("%.3f allocations a message", got)
	if got > mostAllocations {
		t.Errorf("%.2f allocations a message", got)
	}
	s.l.Post(func() { s.session.Abort(Cancelled) })
	s.result(t)
}

func pingPong(t testing.TB, app, server net.Conn, msg []byte) {
	for _, way := range [...]struct{ from, to net.Conn }{{app, server}, {server, app}} {
		if _, err := way.from.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way.to, msg); err != nil {
			t.Fatal(err)
		}
	}
}
