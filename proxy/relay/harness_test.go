package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// patience bounds waits that only a bug makes long.
const patience = 20 * time.Second

// startLoop runs a loop until the test ends.
func startLoop(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// do runs f as a task and waits for it.
func do(t testing.TB, l *loop.Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { l.Go(func() { defer close(done); f() }) }) {
		t.Fatal("the loop has ended")
	}
	<-done
}

// pair is a connection on the loop and its other end, a real socket.
func pair(t testing.TB, l *loop.Loop) (*loop.Conn, *net.TCPConn) {
	t.Helper()
	return pairWith(t, l, loop.Dialer{})
}

func pairWith(t testing.TB, l *loop.Loop, d loop.Dialer) (c *loop.Conn, peer *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	do(t, l, func() {
		c, err = l.Dial(d, ln.Addr().(*net.TCPAddr).AddrPort(), time.Time{})
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	a.SetDeadline(time.Now().Add(patience))
	return c, a.(*net.TCPConn)
}

// sendBuffer makes the relay's own socket take so much.
func sendBuffer(bytes int) loop.Dialer {
	return loop.Dialer{Control: func(fd int, _ netip.AddrPort) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bytes)
	}}
}

// scene is an application and a server with a relay between them.
type scene struct {
	l           *loop.Loop
	app, server *net.TCPConn
	session     *Session
	done        chan Result
}

func start(t testing.TB, cfg Config) *scene {
	t.Helper()
	l := startLoop(t)
	client, app := pair(t, l)
	upstream, server := pair(t, l)
	return startWith(t, l, app, server, client, upstream, cfg)
}

func startWith(t testing.TB, l *loop.Loop, app, server *net.TCPConn, client, upstream loop.Stream, cfg Config) *scene {
	t.Helper()
	s := &scene{l: l, app: app, server: server, done: make(chan Result, 2)}
	do(t, l, func() {
		s.session = Start(client, upstream, cfg, func(r Result) {
			if !client.Socket().Closed() || !upstream.Socket().Closed() {
				t.Error("done was called with a connection open")
			}
			s.done <- r
		})
	})
	t.Cleanup(func() {
		if len(s.done) > 0 {
			t.Error("done was called, and nobody asked or it was twice")
		}
	})
	return s
}

func (s *scene) abort() { s.l.Post(func() { s.session.Abort(Cancelled) }) }

func (s *scene) result(t testing.TB) Result {
	t.Helper()
	select {
	case r := <-s.done:
		return r
	case <-time.After(patience):
		buf := make([]byte, 1<<16)
		t.Fatalf("the relay did not end\n%s", buf[:runtime.Stack(buf, true)])
		return Result{}
	}
}

func (s *scene) wantEOF(t testing.TB, toUpstream, toClient int64) {
	t.Helper()
	want := Result{ToUpstream: toUpstream, ToClient: toClient, Reason: EOF}
	if r := s.result(t); r != want {
		t.Errorf("got %+v (%v), want %+v", r, r.Err, want)
	}
}

func send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("write %.20q: %v", text, err)
	}
}

func expect(t testing.TB, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read %.40q and %v, want %.40q", got, err, text)
	}
}

func expectEnd(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes and %v, want the end", n, err)
	}
}

func expectReset(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("read until %v, want a reset", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// waitFor polls until what tells of nothing wrong.
func waitFor(t testing.TB, what func() string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		wrong := what()
		if wrong == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal(wrong)
		}
	}
}

// pipes are those of the story's loop: lent to a flow, and free.
func (s *scene) pipes(t testing.TB) (lent, free int) {
	t.Helper()
	do(t, s.l, func() { lent, free = s.l.Pipes() })
	return lent, free
}

func openFiles(t testing.TB) (targets []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}

// waitForReset waits until the kernel has taken in the peer's reset.
func waitForReset(t testing.TB, l *loop.Loop, c *loop.Conn) {
	t.Helper()
	waitFor(t, func() string {
		state := uint8(tcpClose)
		do(t, l, func() {
			if fd := c.FD(); fd >= 0 {
				state = tcpState(fd)
			}
		})
		if state != tcpClose {
			return fmt.Sprintf("the socket is in state %d", state)
		}
		return ""
	})
}

// blockWriter writes to a peer until nothing has moved for a while.
func blockWriter(t testing.TB, w io.Writer) {
	t.Helper()
	c := w.(*net.TCPConn)
	c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := io.Copy(c, zeros{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote to a peer that reads nothing until %v", err)
	}
}
