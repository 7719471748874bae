package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

const patience = 20 * time.Second

// running is a Listener whose Run is under way.
type running struct {
	*Listener
	cancel context.CancelFunc
	err    chan error
}

// run serves with one loop.
func run(t testing.TB, l *Listener, handle func(*Conn)) *running {
	t.Helper()
	return runOn(t, 1, l, handle)
}

func runOn(t testing.TB, loops int, l *Listener, handle func(*Conn)) *running {
	t.Helper()
	var lps []*loop.Loop
	var turning sync.WaitGroup
	for range loops {
		lp, err := loop.New(loop.Config{})
		if err != nil {
			t.Fatal(err)
		}
		turning.Go(lp.Run)
		lps = append(lps, lp)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Listener: l, cancel: cancel, err: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.err <- l.Run(ctx, lps, handle)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		for _, lp := range lps {
			lp.Close()
		}
		turning.Wait()
	})
	return r
}

func bindTo(t testing.TB, cfg Config) *Listener {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (r *running) wantEnd(t testing.TB) {
	t.Helper()
	if err := recv(t, r.err, "the end of Run"); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func dial(t testing.TB, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func expect(t testing.TB, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v; want %q", got, err, text)
	}
}

func expectReset(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("read until %v, want a reset", err)
	}
}

func greet(c *Conn) {
	io.WriteString(c, "hello")
	c.Close()
}
