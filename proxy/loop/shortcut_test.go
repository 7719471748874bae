package loop

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// With the short cut itself these are tried in test/e2e; here its mark stands on
// plain TCP sockets, of which the kernel tells the same.

func marked(t *testing.T, c *Conn) {
	t.Helper()
	if err := unix.SetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_PRIORITY, shortCutPriority); err != nil {
		// Priorities above 6 want CAP_NET_ADMIN, which also says that nobody else sets them.
		if err == unix.EPERM && os.Geteuid() != 0 {
			t.Skip("CAP_NET_ADMIN is needed to set this priority: ", err)
		}
		t.Fatal(err)
	}
}

func TestAConnectionKnowsItsMark(t *testing.T) {
	l := start(t)
	plain, _ := pair(t, l)
	short, _ := pair(t, l)
	marked(t, short)
	do(t, l, func() {
		if plain.ShortCut() || !short.ShortCut() || !short.ShortCut() {
			t.Errorf("plain %t, short %t", plain.ShortCut(), short.ShortCut())
		}
	})
}

func TestTheKernelTellsWhatTheOtherEndHasNotRead(t *testing.T) {
	l := start(t)
	c, peer := pair(t, l)
	do(t, l, func() {
		if n := l.unread(c); n != 0 {
			t.Errorf("nothing was written, and %d bytes are unread", n)
		}
		if _, err := c.Write(make([]byte, 100<<10)); err != nil {
			t.Error(err)
		}
	})
	await(t, func() bool { n := 0; do(t, l, func() { n = l.unread(c) }); return n >= 100<<10 })
	if _, err := io.ReadFull(peer, make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { n := -1; do(t, l, func() { n = l.unread(c) }); return n == 0 })
	peer.Close()
	do(t, l, func() { // gone, or on its way
		if n := l.unread(c); n != 0 {
			t.Errorf("the other end is closed, and %d bytes are unread", n)
		}
	})
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it did not come true")
		}
	}
}

func TestAWriterWaitsWhileMuchIsUnread(t *testing.T) {
	l := start(t)
	c, peer := pair(t, l)
	marked(t, c)
	// Buffers that take more than the bound, so that TCP does not stop the writer.
	raw, err := peer.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) }); err != nil {
		t.Fatal(err)
	}
	if err == unix.EPERM && os.Geteuid() != 0 {
		t.Skip("CAP_NET_ADMIN is needed for a buffer so large: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 12<<20)
	_, _ = rand.Read(sent)
	wrote := 0
	do(t, l, func() {
		w := l.Spawn(func() {
			for wrote < len(sent) {
				n, err := c.Write(sent[wrote : wrote+64<<10])
				if wrote += n; errors.Is(err, os.ErrDeadlineExceeded) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		for c.crowded() < 3 && !w.Ended() {
			l.Sleep(time.Millisecond)
		}
		if w.Ended() || wrote > unreadMost+askAfter+128<<10 {
			t.Errorf("%d bytes were written though nobody reads", wrote)
		}
		c.SetWriteDeadline(l.Now().Add(time.Millisecond))
		w.Wait()
	})
	if wrote == len(sent) {
		t.Fatal("the deadline did not count")
	}
	got := make([]byte, wrote)
	if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, sent[:wrote]) {
		t.Errorf("what was written is not what came: %v", err)
	}
	do(t, l, func() { // there is room again, and nobody has to say so
		c.SetWriteDeadline(time.Time{})
		if _, err := c.Write(sent[:64<<10]); err != nil {
			t.Error(err)
		}
	})
}

func TestAShortReadAfterAFullOneMayNotBeTheLast(t *testing.T) {
	for _, short := range []bool{false, true} {
		l := start(t)
		c, peer := pair(t, l)
		if short {
			marked(t, c)
		}
		peer.Write([]byte("0123456789"))
		do(t, l, func() {
			if err := c.WaitRead(); err != nil {
				t.Fatal(err)
			}
			for i, want := range []struct {
				n        int
				readable bool
			}{{8, true}, {2, short}} {
				n, err := c.TryRead(make([]byte, 8))
				if n != want.n || err != nil || c.Readable() != want.readable {
					t.Errorf("short cut %t, read %d: %d bytes, %v, readable %t", short, i, n, err, c.Readable())
				}
			}
			if _, err := c.TryRead(make([]byte, 8)); err != ErrWouldBlock {
				t.Errorf("then %v", err)
			}
		})
	}
}

func TestAnAnswerOfTheKernelIsReadWhateverItHolds(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing": nil, "short": make([]byte, 40), "another kind": make([]byte, 200),
		"no attribute":        answer(),
		"an attribute of 0":   answer(attribute(0, diagSKMemInfo)),
		"one too long":        answer(attribute(200, diagSKMemInfo)),
		"another before none": answer(attribute(5, 1, 9, 0, 0, 0)),
	} {
		if n, ok := rmemOf(b); ok {
			t.Errorf("%s: %d", name, n)
		}
	}
	number := binary.NativeEndian.AppendUint32(nil, 513)
	if n, ok := rmemOf(answer(attribute(5, 1, 9, 0, 0, 0), attribute(8, diagSKMemInfo, number...))); n != 513 || !ok {
		t.Errorf("%d, %t", n, ok)
	}
}

func attribute(size, kind uint16, content ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, size)
	return append(binary.NativeEndian.AppendUint16(b, kind), content...)
}

// answer is a kernel's answer with the given attributes.
func answer(attributes ...[]byte) []byte {
	b := make([]byte, diagHeader+diagAnswer)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	return append(b, bytes.Join(attributes, nil)...)
}

func TestTheOriginalDestinationOfWhatWasNotRedirectedIsNone(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if got := originalDst(fd, false); got != (netip.AddrPort{}) {
		t.Error(got)
	}
}
