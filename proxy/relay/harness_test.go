package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds waits that only a bug makes long.
const patience = 20 * time.Second

// tcpPair is a connected pair of real sockets.
func tcpPair(t testing.TB) (dialled, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); a.Close() })
	for _, c := range []net.Conn{d, a} {
		c.SetDeadline(time.Now().Add(patience))
	}
	return d.(*net.TCPConn), a.(*net.TCPConn)
}

// scene is an application and a server with a relay between them.
type scene struct {
	app, server *net.TCPConn
	cancel      context.CancelFunc
	done        chan Result
}

func start(t testing.TB, cfg Config) *scene {
	t.Helper()
	app, client := tcpPair(t)
	upstream, server := tcpPair(t)
	return startWith(t, app, server, client, upstream, cfg)
}

func startWith(t testing.TB, app, server *net.TCPConn, client, upstream net.Conn, cfg Config) *scene {
	ctx, cancel := context.WithCancel(context.Background())
	s := &scene{app: app, server: server, cancel: cancel, done: make(chan Result, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.done <- Run(ctx, client, upstream, cfg)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return s
}

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

func listedPipes() int {
	pipes.mu.Lock()
	defer pipes.mu.Unlock()
	return len(pipes.free)
}

// openPipes counts the descriptors of pipes of our size: the test's own output
// may be a pipe too.
func openPipes(t testing.TB) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err == nil && size == pipeBytes {
			n++
		}
	}
	return n
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
func waitForReset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	var e end
	e.init(c)
	waitFor(t, func() string {
		state := uint8(tcpClose)
		e.control(func(fd int) { state = tcpState(fd) })
		if state != tcpClose {
			return fmt.Sprintf("the socket is in state %d", state)
		}
		return ""
	})
}
