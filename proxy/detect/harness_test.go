package detect

import (
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
	"weak"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// rig is a loop that accepts.
type rig struct {
	*loop.Loop
	addr     string
	accepted chan *loop.Conn
}

// start runs a loop until the test ends.
func start(t testing.TB) *rig {
	t.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	t.Cleanup(func() { l.Close(); <-ended })

	r := &rig{Loop: l, accepted: make(chan *loop.Conn, 1)}
	fd := r.listen(t)
	r.do(func() {
		_, err = l.Accept(fd, func(fd int, _ netip.AddrPort) { r.accepted <- l.Adopt(fd) },
			func(err error) time.Duration { t.Error(err); return time.Second })
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// listen makes a socket that is the caller's alone.
func (r *rig) listen(t testing.TB) (fd int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r.addr = ln.Addr().String()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return fd
}

// do runs f as a task, after all that was posted or woken before, and waits for
// it. It reports false when the loop has ended.
func (r *rig) do(f func()) bool {
	done := make(chan struct{})
	if !r.Post(func() { r.Go(func() { defer close(done); f() }) }) {
		return false
	}
	<-done
	return true
}

// pair is a client and the loop's end of its connection.
func (r *rig) pair(t testing.TB) (client *net.TCPConn, c *loop.Conn) {
	t.Helper()
	d, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d.(*net.TCPConn), <-r.accepted
}

// say writes what must go out.
func say(t testing.TB, client *net.TCPConn, what string) {
	t.Helper()
	if _, err := io.WriteString(client, what); err != nil {
		t.Fatal(err)
	}
}

// arrived waits until the kernel has this to tell of the connection.
func (r *rig) arrived(t testing.TB, c *loop.Conn, events int16) {
	t.Helper()
	r.do(func() {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.FD()), Events: events}}, int(patience/time.Millisecond))
			if err == unix.EINTR {
				continue
			}
			if n != 1 || err != nil {
				t.Errorf("nothing arrives: %d, %v", n, err)
			}
			return
		}
	})
}

// spied is a connection that tells what Peek does with it.
type spied struct {
	*loop.Conn
	took     chan int // the size of each read
	buffer   weak.Pointer[[firstRead]byte]
	deadline time.Time // the last that was set
}

func (s *spied) TryRead(b []byte) (int, error) {
	if len(b) == firstRead {
		s.buffer = weak.Make((*[firstRead]byte)(b))
	}
	n, err := s.Conn.TryRead(b)
	if n > 0 {
		s.took <- n
	}
	return n, err
}

func (s *spied) SetReadDeadline(t time.Time) error {
	s.deadline = t
	return s.Conn.SetReadDeadline(t)
}

// peeking is a Peek under way.
type peeking struct {
	r      *rig
	s      *spied
	client *net.TCPConn
	called atomic.Int32
	then   chan peeked
}

type peeked struct {
	Result
	bytes string
	err   error
}

// peek begins a Peek, which must call then once before the test ends, with no
// deadline left on the stream.
func (r *rig) peek(t testing.TB, client *net.TCPConn, c *loop.Conn, cfg Config) *peeking {
	t.Helper()
	k := &peeking{r: r, s: &spied{Conn: c, took: make(chan int, 100)}, client: client, then: make(chan peeked, 1)}
	then := func(res Result, b []byte, err error) {
		if k.called.Add(1) > 1 {
			t.Error("then is called again")
			return
		}
		if !k.s.deadline.IsZero() {
			t.Errorf("the deadline %v is left on the stream", k.s.deadline)
		}
		r.Yield() // a task may wait, and the bytes are still there then
		k.then <- peeked{res, string(b), err}
	}
	r.Post(func() { c.Go(func() { Peek(k.s, cfg, then) }) })
	r.do(func() {}) // until it has looked once
	t.Cleanup(func() {
		if r.do(func() {}); k.called.Load() != 1 {
			t.Errorf("then was called %d times", k.called.Load())
		}
	})
	return k
}

// wait is for then.
func (k *peeking) wait(t testing.TB) peeked {
	t.Helper()
	select {
	case p := <-k.then:
		return p
	case <-time.After(patience):
		t.Fatal("Peek does not end")
		return peeked{}
	}
}

// wantTaken waits until Peek has read so many bytes more.
func (k *peeking) wantTaken(t testing.TB, n int) {
	t.Helper()
	for n > 0 {
		select {
		case m := <-k.s.took:
			n -= m
		case <-time.After(patience):
			t.Fatalf("%d bytes more should have been read", n)
		}
	}
	if n < 0 {
		t.Errorf("%d bytes too many were read", -n)
	}
}

// wantParked: Peek has not ended, and nothing waits in its place.
func (k *peeking) wantParked(t testing.TB) {
	t.Helper()
	k.r.do(func() {
		if !k.s.Parked() {
			t.Error("the stream is not parked")
		}
	})
	if n := k.called.Load(); n != 0 {
		t.Error("then was called already")
	}
}

// interrupt sets a flag that Enough looks at, and wakes the stream.
func (k *peeking) interrupt(enough *bool) {
	k.r.Post(func() {
		*enough = true
		k.s.Wake()
	})
}

// wantStream: what was peeked and what can still be read are exactly this, to
// the end of the stream.
func (k *peeking) wantStream(t testing.TB, p peeked, want string) {
	t.Helper()
	k.r.do(func() {
		rest, err := io.ReadAll(iotest.OneByteReader(k.s.Conn))
		if got := p.bytes + string(rest); err != nil || got != want {
			t.Errorf("%d bytes peeked, in all %d %.60q, %v; want %d %.60q", len(p.bytes), len(got), got, err, len(want), want)
		}
		k.s.Close()
	})
}

// is compares what was found, but for the hello, and the error.
func (p peeked) is(t testing.TB, kind Kind, outcome Outcome) {
	t.Helper()
	if p.Kind != kind || p.Outcome != outcome || p.err != nil {
		t.Errorf("got %v, %v, %v of %.60q; want %v, %v", p.Kind, p.Outcome, p.err, p.bytes, kind, outcome)
	}
}
