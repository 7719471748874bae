package loop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// pipesOpen counts descriptors of pipes, of this process.
func pipesOpen(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "pipe:") {
			n++
		}
	}
	return n
}

func TestBytesGoThroughAPipeInPieces(t *testing.T) {
	l := start(t)
	from, sender := pair(t, l)
	to, receiver := pair(t, l)
	whole := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB: more than a pipe, and than the kernel takes at once
	go func() {
		_, _ = sender.Write(whole)
		_ = sender.CloseWrite()
	}()
	done := make(chan error, 1)
	do(t, l, func() {
		from.Go(func() { done <- pump(l, from, to, 100_000) })
	})
	got := make([]byte, len(whole))
	if _, err := io.ReadFull(receiver, got); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("what arrived is not what was sent: %v", err)
	}
	if err := <-done; err != io.EOF {
		t.Errorf("ended with %v", err)
	}
}

// pump moves all through pipes, never more at a time than most.
func pump(l *Loop, from, to *Conn, most int) error {
	for {
		if err := from.WaitRead(); err != nil {
			return err
		}
		p, err := l.Pipe()
		if err != nil {
			return err
		}
		n, err := p.Fill(from, most)
		if err == nil && (n > most || n != p.Held()) {
			err = errors.New("more was taken than asked for")
		}
		for err == nil && p.Held() > 0 {
			_, err = p.Pour(to)
		}
		p.Free()
		if err != nil && err != ErrWouldBlock {
			return err
		}
	}
}

func TestPipesAreBoundedAndEndWithTheLoop(t *testing.T) {
	before := pipesOpen(t)
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	var lent []*Pipe
	do(t, l, func() {
		for {
			p, err := l.Pipe()
			if err != nil {
				if err != ErrNoPipe {
					t.Errorf("refused with %v", err)
				}
				break
			}
			lent = append(lent, p)
		}
		for _, p := range lent {
			p.Free()
		}
		if n, free := l.Pipes(); n != 0 || free != idlePipes {
			t.Errorf("all were given back: %d are lent, %d are kept", n, free)
		}
	})
	if len(lent) != lentPipes {
		t.Errorf("%d pipes were lent", len(lent))
	}
	l.Close()
	<-ended
	if after := pipesOpen(t); after != before {
		t.Errorf("%d descriptors of pipes before the loop, %d after", before, after)
	}
}

func TestAPipeWithBytesInItIsNotLentAgain(t *testing.T) {
	l := start(t)
	from, sender := pair(t, l)
	if _, err := sender.Write([]byte("of somebody else")); err != nil {
		t.Fatal(err)
	}
	do(t, l, func() {
		if err := from.WaitRead(); err != nil {
			t.Error(err)
		}
		p, err := l.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		if n, err := p.Fill(from, 7); n != 7 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		p.Free()
		if lent, free := l.Pipes(); lent != 0 || free != 0 {
			t.Errorf("%d are lent and %d are kept", lent, free)
		}
	})
}

func TestAPipeKnowsClosedConnections(t *testing.T) {
	l := start(t)
	c, _ := pair(t, l)
	do(t, l, func() {
		p, err := l.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		defer p.Free()
		_ = c.Close()
		if _, err := p.Fill(c, 1); !errors.Is(err, net.ErrClosed) {
			t.Errorf("filled from a closed connection: %v", err)
		}
		if _, err := p.Pour(c); !errors.Is(err, net.ErrClosed) {
			t.Errorf("poured into a closed connection: %v", err)
		}
	})
}

func TestPouringEndsAtTheDeadline(t *testing.T) {
	l := start(t)
	from, sender := pair(t, l)
	to, _ := pair(t, l)
	go func() { _, _ = io.Copy(sender, endless{}) }()
	done := make(chan error, 1)
	do(t, l, func() {
		from.Go(func() {
			_ = to.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			done <- pump(l, from, to, pipeBytes)
		})
	})
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
	_ = sender.Close()
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
