package loop

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a loop until the test ends.
func start(t testing.TB) *Loop {
	t.Helper()
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// do runs f as a task and waits for it.
func do(t testing.TB, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { l.Go(func() { defer close(done); f() }) }) {
		t.Fatal("the loop has ended")
	}
	<-done
}

// listener is an ordinary one, for the other side.
func listener(t testing.TB) (net.Listener, netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln, ln.Addr().(*net.TCPAddr).AddrPort()
}

// pair is a connection on the loop and its other end.
func pair(t testing.TB, l *Loop) (c *Conn, peer *net.TCPConn) {
	t.Helper()
	ln, addr := listener(t)
	do(t, l, func() {
		var err error
		if c, err = l.Dial(Dialer{}, addr, time.Time{}); err != nil {
			t.Error(err)
		}
	})
	p, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return c, p.(*net.TCPConn)
}

func TestBytesComeAsTheyWereSentInAnyPieces(t *testing.T) {
	l := start(t)
	c, peer := pair(t, l)
	sent := make([]byte, 1<<20)
	rand.New(rand.NewSource(1)).Read(sent)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+rand.Intn(5000))
			peer.Write(rest[:n])
			rest = rest[n:]
		}
		peer.CloseWrite()
	}()
	var got []byte
	do(t, l, func() {
		b := make([]byte, 3000)
		for {
			n, err := c.Read(b)
			got = append(got, b[:n]...)
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	if !bytes.Equal(got, sent) {
		t.Fatalf("got %d bytes, not the %d that were sent", len(got), len(sent))
	}
}

func TestDataAndEndThatComeTogetherAreBothRead(t *testing.T) {
	l := start(t)
	for range 50 {
		c, peer := pair(t, l)
		peer.Write([]byte("last words"))
		peer.Close()
		do(t, l, func() {
			if b, err := io.ReadAll(c); err != nil || string(b) != "last words" {
				t.Errorf("got %q, %v", b, err)
			}
			c.Close()
		})
	}
}

func TestAWriteWaitsForASlowReader(t *testing.T) {
	l := start(t)
	c, peer := pair(t, l)
	sent := make([]byte, 16<<20)
	rand.New(rand.NewSource(2)).Read(sent)
	got := make(chan []byte)
	others := 0
	do(t, l, func() {
		w := l.Spawn(func() {
			if n, err := c.Write(sent); n != len(sent) || err != nil {
				t.Error(n, err)
			}
			c.CloseWrite()
		})
		l.Yield()
		for !w.Ended() && others < 100 { // the loop is free meanwhile
			others++
			l.Yield()
		}
		if w.Ended() {
			t.Error("16 MiB went without a reader")
		}
		go func() { b, _ := io.ReadAll(peer); got <- b }()
		w.Wait()
	})
	if !bytes.Equal(<-got, sent) {
		t.Error("the bytes are not those sent")
	}
}

func TestADeadlineThatPassedWakesWhoReads(t *testing.T) {
	l := start(t)
	c, _ := pair(t, l)
	do(t, l, func() {
		c.SetReadDeadline(l.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		c.SetReadDeadline(time.Time{})
		r := l.Spawn(func() {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		})
		l.Yield()
		c.SetReadDeadline(time.Unix(1, 0))
		r.Wait()
	})
}

func TestADeadlineMayBeMovedWhileItRuns(t *testing.T) {
	l := start(t)
	c, peer := pair(t, l)
	do(t, l, func() {
		c.SetReadDeadline(l.Now().Add(20 * time.Millisecond))
		r := l.Spawn(func() {
			if n, err := c.Read(make([]byte, 1)); n != 1 {
				t.Error(n, err)
			}
		})
		l.Yield()
		c.SetReadDeadline(l.Now().Add(time.Minute))
		l.Sleep(50 * time.Millisecond)
		if r.Ended() {
			t.Error("the old deadline counted")
		}
		peer.Write([]byte("x"))
		r.Wait()
	})
}

func TestCloseWakesWhoReadsAndWhoWrites(t *testing.T) {
	l := start(t)
	c, _ := pair(t, l)
	do(t, l, func() {
		r := l.Spawn(func() {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
		w := l.Spawn(func() {
			if _, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
		l.Yield()
		c.Close()
		r.Wait()
		w.Wait()
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Error("closed twice:", err)
		}
		if _, err := c.TryRead(make([]byte, 1)); !c.Readable() || !errors.Is(err, net.ErrClosed) {
			t.Error("a closed connection has nothing to say:", err)
		}
	})
}

func TestAParkedConnectionIsBegunByBytesByItsDeadlineAndByClose(t *testing.T) {
	l := start(t)
	for name, what := range map[string]func(c *Conn, peer *net.TCPConn){
		"bytes":    func(_ *Conn, peer *net.TCPConn) { peer.Write([]byte("x")) },
		"end":      func(_ *Conn, peer *net.TCPConn) { peer.Close() },
		"deadline": func(c *Conn, _ *net.TCPConn) { c.SetReadDeadline(c.l.now.Add(time.Millisecond)) },
		"close":    func(c *Conn, _ *net.TCPConn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c, peer := pair(t, l)
			begun := make(chan struct{})
			do(t, l, func() {
				c.Park(Func(func() { close(begun) }))
				if !c.Parked() {
					t.Error("it did not stay parked")
				}
				what(c, peer)
			})
			<-begun
			do(t, l, func() { c.Close() })
		})
	}
}

func TestParkingWhatIsReadableBeginsAtOnce(t *testing.T) {
	l := start(t)
	c, peer := pair(t, l)
	peer.Write([]byte("xy"))
	begun := make(chan struct{})
	do(t, l, func() {
		c.Read(make([]byte, 1)) // filled: there may be more
		c.Park(Func(func() { close(begun) }))
	})
	<-begun
}

func TestDialFailsWithWhatTheKernelSays(t *testing.T) {
	l := start(t)
	ln, addr := listener(t)
	ln.Close()
	do(t, l, func() {
		if _, err := l.Dial(Dialer{}, addr, time.Time{}); !errors.Is(err, unix.ECONNREFUSED) {
			t.Error(err)
		}
	})
	if err := errors.Join(func() (err error) {
		do(t, l, func() {
			_, err = l.Dial(Dialer{Control: func(int, netip.AddrPort) error { return os.ErrPermission }}, addr, time.Time{})
		})
		return err
	}()); !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}

func TestBlockLetsOthersRun(t *testing.T) {
	l := start(t)
	do(t, l, func() {
		c := make(chan int)
		other := l.Spawn(func() { l.Block(func() { c <- 1 }) })
		l.Block(func() { <-c })
		other.Wait()
	})
}

func TestAPanicEndsItsTaskOnly(t *testing.T) {
	var value any
	l, err := New(Config{Panicked: func(v any, _ []byte) { value = v }})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	done := make(chan struct{})
	l.Post(func() {
		l.Go(func() { panic("one") })
		l.Go(func() { l.Yield(); close(done) })
	})
	<-done
	l.Close()
	<-ended
	if value != "one" {
		t.Errorf("told of %v", value)
	}
	if l.Post(func() {}) {
		t.Error("a loop that has ended takes posts")
	}
}

func TestCloseEndsWhatWaits(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	c, peer := pair(t, l)
	got := make(chan error, 1)
	l.Post(func() { l.Go(func() { _, err := c.Read(make([]byte, 1)); got <- err }) })
	do(t, l, func() {})
	l.Close()
	<-ended
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := peer.Read(make([]byte, 1)); err == nil {
		t.Error("the peer was not told")
	}
}

func TestManyConnectionsAcceptedAndEchoed(t *testing.T) {
	l := start(t)
	ln, addr := listener(t)
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	f.Close()
	ln.Close()
	open := 0
	do(t, l, func() {
		_, err := l.Accept(fd, func(fd int, peer netip.AddrPort) {
			c := l.Adopt(fd)
			open++
			c.Park(Func(func() { echo(c, &open) }))
		}, func(error) time.Duration { return time.Millisecond })
		if err != nil {
			t.Error(err)
		}
	})
	const conns, rounds = 200, 20
	errs := make(chan error, conns)
	for range conns {
		go func() { errs <- ping(addr, rounds) }()
	}
	for range conns {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for {
		n := 0
		do(t, l, func() { n = open })
		if n == 0 {
			break
		}
	}
	do(t, l, func() {
		if len(l.free) > maxFree {
			t.Errorf("%d coroutines are kept", len(l.free))
		}
	})
}

// echo serves what is there and parks the connection again.
func echo(c *Conn, open *int) {
	b := make([]byte, 100)
	for {
		n, err := c.TryRead(b)
		if err == ErrWouldBlock {
			c.Park(Func(func() { echo(c, open) }))
			return
		}
		if err != nil {
			c.Close()
			*open--
			return
		}
		c.Write(b[:n])
	}
}

func ping(addr netip.AddrPort, rounds int) error {
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 4)
	for range rounds {
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
	}
	return nil
}

// A burst of tasks leaves coroutines behind, which are used again, and let go once they
// are not.
func TestCoroutinesOfABurstAreKeptForAWhile(t *testing.T) {
	l := start(t)
	burst := func() {
		var w Waiter
		do(t, l, func() {
			w.Init(l)
			left := 300
			for range left {
				l.Go(func() {
					l.Yield()
					if left--; left == 0 {
						w.Wake()
					}
				})
			}
			_ = w.Wait(time.Time{})
		})
	}
	free := func() (n int) {
		do(t, l, func() { n = len(l.free) })
		return n
	}
	burst()
	if n := free(); n < 295 {
		t.Errorf("%d are kept", n)
	}
	before := runtime.NumGoroutine()
	burst()
	if n := runtime.NumGoroutine(); n > before+5 {
		t.Errorf("%d goroutines became %d", before, n)
	}
	for range 2 { // as if the time had passed, twice
		do(t, l, l.thin)
	}
	if n := free(); n > fewFree {
		t.Errorf("%d are kept though nobody needs them", n)
	}
}
