package shortcut

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream gives the same bytes for the same seed.
func stream(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

// talk writes n bytes of a stream in pieces of any size, and ends.
func talk(c *net.TCPConn, seed uint64, n int) error {
	src, size := stream(seed), rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 200<<10)
	for n > 0 {
		b := buf[:min(n, 1+size.IntN(1<<size.IntN(18)))]
		_, _ = src.Read(b)
		if _, err := c.Write(b); err != nil {
			return fmt.Errorf("%d bytes before the end: %w", n, err)
		}
		n -= len(b)
	}
	return c.CloseWrite()
}

// attend reads to the end and wants the n bytes of a stream.
func attend(c *net.TCPConn, seed uint64, n int) error {
	want, size := stream(seed), rand.New(rand.NewPCG(seed, 2))
	got, expected := make([]byte, 200<<10), make([]byte, 200<<10)
	for done := 0; ; {
		m, err := c.Read(got[:1+size.IntN(1<<size.IntN(18))])
		_, _ = want.Read(expected[:m])
		if string(got[:m]) != string(expected[:m]) {
			return fmt.Errorf("other bytes among the %d after %d", m, done)
		}
		done += m
		if err == io.EOF && done == n {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%d of %d bytes, then %w", done, n, err)
		}
	}
}

// Both sides speak at once from the first moment, so that nothing may be sent by
// TCP first and be overtaken.
func TestManyConnectionsCarryTheirOwnBytesBothWaysInOrder(t *testing.T) {
	f := newFixture(t)
	l := f.listen("127.0.0.1:15001")
	const conns, each = 60, 200 << 10
	errs := make(chan error, 4*conns)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range conns {
			p, err := l.AcceptTCP()
			if err != nil {
				errs <- err
				return
			}
			_ = p.SetDeadline(time.Now().Add(patience))
			var ends sync.WaitGroup
			ends.Go(func() { errs <- talk(p, uint64(port(p.RemoteAddr()))+1<<32, each) }) // speaks first
			ends.Go(func() { errs <- attend(p, uint64(port(p.RemoteAddr())), each) })
			wg.Go(func() { ends.Wait(); p.Close() })
		}
	})
	_ = l.SetDeadline(time.Now().Add(patience))
	for range conns {
		c, err := f.host.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		app := c.(*net.TCPConn)
		_ = app.SetDeadline(time.Now().Add(patience))
		var ends sync.WaitGroup
		ends.Go(func() { errs <- talk(app, uint64(port(app.LocalAddr())), each) })
		ends.Go(func() { errs <- attend(app, uint64(port(app.LocalAddr()))+1<<32, each) })
		wg.Go(func() { ends.Wait(); app.Close() })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if got := f.figures(); got.Paired < conns*9/10 {
		t.Errorf("only %d of %d connections took the short cut", got.Paired, conns)
	}
}

func TestAReaderThatStallsBoundsWhatWaitsAndGetsItAllInOrder(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	const n = 48 << 20
	sent := make(chan error, 1)
	go func() { sent <- talk(app, 7, n) }()
	// Until nothing moves any more: the sender waits for TCP's window.
	most, still := 0, 0
	for last := -1; still < 20; {
		now := charged(t, proxy)
		if most = max(most, now); now != last {
			still = 0
		}
		still, last = still+1, now
		time.Sleep(10 * time.Millisecond)
	}
	if most < Unread || most > 2*Unread+1<<20 {
		t.Errorf("%d bytes wait, want some more than %d", most, Unread)
	}
	if err := attend(proxy, 7, n); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if got := f.figures(); got.Last == 0 {
		t.Errorf("%+v", got)
	}
	if left := charged(t, proxy); left != 0 {
		t.Errorf("all was read, and the socket is charged for %d bytes", left)
	}
}

func TestAnEndAfterBytesComesAfterThem(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	say(t, app, "last words")
	if err := app.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	hear(t, proxy, "last words")
	if n, err := proxy.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("then %d, %v", n, err)
	}
	say(t, proxy, "and the other way")
	proxy.Close()
	hear(t, app, "and the other way")
	if n, err := app.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("then %d, %v", n, err)
	}
}

func TestAResetAfterBytesComesAfterThem(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	say(t, app, "last words")
	if err := app.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	app.Close()
	hear(t, proxy, "last words")
	if _, err := proxy.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("then %v", err)
	}
}

func TestWritingToWhoIsGoneFailsAsWithTCP(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	say(t, app, "x")
	hear(t, proxy, "x")
	app.Close()
	var err error
	for until := time.Now().Add(patience); err == nil && time.Now().Before(until); {
		_, err = proxy.Write([]byte("to nobody"))
	}
	if !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("writing gives %v", err)
	}
}

// What programs see that take the short cut, where it is not what TCP does. The
// README says so; where a kernel does better these fail and it can be taken out.
func TestWhatDiffersFromTCP(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	t.Run("a close with bytes unread is an end, not a reset", func(t *testing.T) {
		app, proxy := f.outbound()
		say(t, app, "never read")
		proxy.Close()
		if _, err := app.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the sender sees %v", err)
		}
	})
	t.Run("splice finds nothing", func(t *testing.T) {
		say(t, app, "x")
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[0])
		defer unix.Close(p[1])
		err := fd(t, proxy, func(fd int) (error, error) {
			_, err := unix.Splice(fd, nil, p[1], nil, 1, unix.SPLICE_F_NONBLOCK)
			return err, nil
		})
		if err != unix.EAGAIN {
			t.Errorf("splice gives %v", err)
		}
		hear(t, proxy, "x")
	})
	t.Run("MSG_WAITALL does not wait", func(t *testing.T) {
		say(t, app, "half")
		if n := fd(t, proxy, func(fd int) (int, error) {
			n, _, err := unix.Recvfrom(fd, make([]byte, 8), unix.MSG_WAITALL)
			return n, err
		}); n != 4 {
			t.Errorf("%d bytes", n)
		}
	})
	t.Run("MSG_TRUNC wants a buffer", func(t *testing.T) {
		say(t, app, "x")
		err := fd(t, proxy, func(fd int) (error, error) {
			_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 1, unix.MSG_TRUNC, 0, 0)
			return errno, nil
		})
		if err != unix.EFAULT {
			t.Errorf("it gives %v", err)
		}
		hear(t, proxy, "x")
	})
}

// What programs see that is as with TCP, though the kernel does it by other code.
func TestWhatIsAsWithTCP(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	say(t, app, "1234567890")
	t.Run("MSG_PEEK leaves the bytes", func(t *testing.T) {
		b := make([]byte, 4)
		if n := fd(t, proxy, func(fd int) (int, error) { n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK); return n, err }); string(b[:n]) != "1234" {
			t.Errorf("%q", b[:n])
		}
	})
	t.Run("FIONREAD counts them", func(t *testing.T) {
		if n := fd(t, proxy, func(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.TIOCINQ) }); n != 10 {
			t.Errorf("%d", n)
		}
	})
	t.Run("a read may take a part", func(t *testing.T) {
		hear(t, proxy, "123")
		hear(t, proxy, "4567890")
	})
	t.Run("poll tells of bytes, and of the end", func(t *testing.T) {
		events := func() int16 {
			return fd(t, proxy, func(fd int) (int16, error) {
				p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
				_, err := unix.Poll(p, 0)
				return p[0].Revents, err
			})
		}
		if e := events(); e != 0 {
			t.Errorf("with nothing there %#x", e)
		}
		say(t, app, "x")
		if e := events(); e != unix.POLLIN {
			t.Errorf("with a byte there %#x", e)
		}
		if err := app.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for until := time.Now().Add(patience); events() != unix.POLLIN|unix.POLLRDHUP; time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("after the end %#x", events())
			}
		}
		hear(t, proxy, "x")
	})
}

// A program may wait with edge-triggered epoll and take a short read to mean that
// nothing is left.
func TestAnEdgeTriggeredReaderMissesNothing(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	const n = 3 << 20 // below what changes its way
	sent := make(chan error, 1)
	go func() { sent <- talk(proxy, 9, n) }()
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(set)
	got := fd(t, app, func(fd int) (int, error) {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET}
		if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return 0, err
		}
		buf, total, ended := make([]byte, 16<<10), 0, false
		for {
			ready := make([]unix.EpollEvent, 1)
			k, err := unix.EpollWait(set, ready, int(patience/time.Millisecond))
			if err == unix.EINTR {
				continue
			}
			if err != nil || k == 0 {
				return total, fmt.Errorf("no event after %d of %d bytes: %w", total, n, errors.Join(err, os.ErrDeadlineExceeded))
			}
			ended = ended || ready[0].Events&unix.EPOLLRDHUP != 0
			for {
				m, err := unix.Read(fd, buf)
				if err == unix.EAGAIN {
					break
				}
				if m == 0 || err != nil {
					return total, err
				}
				total += m
				if m < len(buf) && !ended {
					break // as epoll(7) allows
				}
			}
		}
	})
	if got != n {
		t.Errorf("%d of %d bytes", got, n)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// With TCP Fast Open (RFC 7413) the first bytes are in the SYN.
func TestBytesInTheSYNAreNotOvertaken(t *testing.T) {
	f := newFixture(t)
	f.do(f.host, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("1027"), 0) }) // both sides, no cookie
	l := f.listen("127.0.0.1:15001")
	if err := withListener(l, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_FASTOPEN, 16) }); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		var c int
		f.do(f.host, func() (err error) {
			c, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			return err
		})
		defer unix.Close(c)
		to := &unix.SockaddrInet4{Port: 15001, Addr: [4]byte{127, 0, 0, 1}}
		if err := unix.Sendto(c, []byte("in the SYN,"), unix.MSG_FASTOPEN, to); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(c, []byte(" and after")); err != nil {
			t.Fatal(err)
		}
		p, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		_ = p.SetDeadline(time.Now().Add(patience))
		hear(t, p, "in the SYN, and after")
		say(t, p, "answer")
		b := make([]byte, 6)
		if n, err := unix.Read(c, b); string(b[:max(0, n)]) != "answer" {
			t.Errorf("connection %d: %q, %v", i, b[:max(0, n)], err)
		}
	}
}

func withListener(l *net.TCPListener, what func(int) error) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = what(int(fd)) })
	return errors.Join(err, inner)
}
