package secure

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand"
	"net"
	"os"
	"testing"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return b
}

// lateConn lets through, once told, what a crypto/tls peer writes when the test
// says, in the pieces the test wants.
type lateConn struct {
	net.Conn
	held bytes.Buffer
	hold bool
}

// SetWriteDeadline does nothing: crypto/tls ends writing by it after CloseWrite.
func (c *lateConn) SetWriteDeadline(time.Time) error { return nil }

func (c *lateConn) Write(b []byte) (int, error) {
	if c.hold {
		return c.held.Write(b)
	}
	return c.Conn.Write(b)
}

// meetLate is meet with the peer's records in the hands of the test.
func meetLate(t *testing.T, l *loop.Loop) (*Conn, *tls.Conn, *lateConn) {
	t.Helper()
	c, p := pair(t, l)
	late := &lateConn{Conn: p}
	peer := tls.Client(late, clientConfig())
	shaken := shake(peer)
	s := Server(c, nil, serverConfig())
	do(t, l, func() {
		if err := s.Handshake(time.Time{}); err != nil {
			t.Error(err)
		}
	})
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	late.hold = true
	return s, peer, late
}

func TestRecordsThatComeByteByByteAreReadWithoutWaiting(t *testing.T) {
	l := start(t)
	s, peer, late := meetLate(t, l)
	peer.Write([]byte("first"))
	peer.Write([]byte("second"))
	peer.CloseWrite()
	sent := late.held.Bytes()
	do(t, l, func() {
		var got []byte
		b := make([]byte, 100)
		for i := range sent {
			late.Conn.Write(sent[i : i+1])
			if err := s.WaitRead(); err != nil {
				t.Error(err)
				return
			}
			n, err := s.TryRead(b)
			got = append(got, b[:n]...)
			if last := i == len(sent)-1; last && err != io.EOF || !last && err != nil && err != loop.ErrWouldBlock {
				t.Errorf("after %d of %d bytes: %v", i+1, len(sent), err)
				return
			}
			if _, err := s.TryRead(b); i < len(sent)-1 && err != loop.ErrWouldBlock {
				t.Errorf("after %d of %d bytes, again: %v", i+1, len(sent), err)
				return
			}
			if s.below.in != nil {
				t.Error("a buffer is held while there is nothing to read")
				return
			}
		}
		if string(got) != "firstsecond" {
			t.Errorf("got %q", got)
		}
		if !s.Readable() {
			t.Error("an end is readable")
		}
	})
}

func TestWhatIsLeftOfARecordIsReadable(t *testing.T) {
	l := start(t)
	s, peer, late := meetLate(t, l)
	peer.Write([]byte("abcdef"))
	peer.Write([]byte("gh"))
	late.Conn.Write(late.held.Bytes())
	do(t, l, func() {
		for _, want := range []string{"abcd", "ef", "gh"} {
			if err := s.WaitRead(); err != nil {
				t.Error(err)
				return
			}
			b := make([]byte, 4)
			n, err := s.TryRead(b)
			if string(b[:n]) != want || err != nil {
				t.Errorf("got %q, %v, want %q", b[:n], err, want)
			}
		}
		if s.Readable() {
			t.Error("everything was read")
		}
	})
}

func TestBulkBothWaysWithASlowReader(t *testing.T) {
	l := start(t)
	s, peer := meet(t, l)
	sent, echoed := random(9<<20+123), make(chan []byte, 1)
	go func() { // slow: it sends everything before it reads anything
		peer.Write(sent)
		peer.CloseWrite()
		b, _ := io.ReadAll(peer)
		echoed <- b
	}()
	var got []byte
	do(t, l, func() {
		r := l.Spawn(func() {
			b, err := io.ReadAll(s)
			if err != nil {
				t.Error(err)
			}
			got = b
		})
		w := l.Spawn(func() {
			if n, err := s.Write(sent); n != len(sent) || err != nil {
				t.Error(n, err)
			}
			if err := s.CloseWrite(); err != nil {
				t.Error(err)
			}
			if _, err := s.Write([]byte("x")); err != errEnded {
				t.Error(err)
			}
			if err := s.CloseWrite(); err != nil {
				t.Error("ended twice:", err)
			}
		})
		r.Wait()
		w.Wait()
		if s.below.in != nil || s.below.out != nil {
			t.Error("a buffer is kept")
		}
		s.Close()
	})
	if !bytes.Equal(got, sent) || !bytes.Equal(<-echoed, sent) {
		t.Error("the bytes are not those sent")
	}
}

func TestEitherSideMayEndFirst(t *testing.T) {
	l := start(t)
	t.Run("theirs", func(t *testing.T) {
		s, peer := meet(t, l)
		talk(t, l, s, peer)
	})
	t.Run("ours", func(t *testing.T) {
		s, peer := meet(t, l)
		go func() {
			b, _ := io.ReadAll(peer)
			peer.Write(append(b, "-reply"...))
			peer.CloseWrite()
		}()
		do(t, l, func() {
			s.Write([]byte("request"))
			if err := s.CloseWrite(); err != nil {
				t.Error(err)
			}
			if b, err := io.ReadAll(s); string(b) != "request-reply" || err != nil {
				t.Errorf("read %q, %v", b, err)
			}
			s.Close()
		})
	})
}

func TestADeadlineLeavesReadingPossibleEvenInsideARecord(t *testing.T) {
	l := start(t)
	s, peer, late := meetLate(t, l)
	peer.Write([]byte("late"))
	record := late.held.Bytes()
	do(t, l, func() {
		b := make([]byte, 10)
		for i, piece := range [][]byte{nil, record[:3], record[3:9]} {
			late.Conn.Write(piece)
			s.SetReadDeadline(l.Now().Add(10 * time.Millisecond))
			if _, err := s.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("piece %d: %v", i, err)
				return
			}
		}
		s.SetReadDeadline(time.Time{})
		late.Conn.Write(record[9:])
		if n, err := s.Read(b); string(b[:n]) != "late" || err != nil {
			t.Errorf("read %q, %v", b[:n], err)
		}
		s.Close()
	})
}

func TestAWriteThatWasCutShortByItsDeadlineWasTheLast(t *testing.T) {
	l := start(t)
	s, _ := meet(t, l)
	do(t, l, func() {
		s.SetWriteDeadline(l.Now().Add(10 * time.Millisecond))
		n, err := s.Write(make([]byte, tooMuch))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n == tooMuch || n%maxChunk != 0 {
			t.Error(n, err)
		}
		s.SetWriteDeadline(time.Time{})
		if _, again := s.Write([]byte("x")); again != err {
			t.Error(again)
		}
		if again := s.CloseWrite(); again != err {
			t.Error(again)
		}
		if s.below.out != nil {
			t.Error("a buffer is kept")
		}
		s.Close()
	})
}

func TestAParkedConnectionIsBegunByBytes(t *testing.T) {
	l := start(t)
	s, peer := meet(t, l)
	begun := make(chan string, 1)
	do(t, l, func() {
		s.Park(loop.Func(func() {
			b := make([]byte, 10)
			n, err := s.TryRead(b)
			if err != nil {
				t.Error(err)
			}
			begun <- string(b[:n])
		}))
		if !s.Socket().Parked() {
			t.Error("it did not stay parked")
		}
	})
	peer.Write([]byte("wake"))
	if got := <-begun; got != "wake" {
		t.Errorf("read %q", got)
	}
}

func TestParkingWhatIsReadableBeginsAtOnce(t *testing.T) {
	l := start(t)
	s, peer, late := meetLate(t, l)
	peer.Write([]byte("ab"))
	peer.Write([]byte("cd"))
	peer.Write([]byte("ef"))
	late.Conn.Write(late.held.Bytes())
	begun := make(chan string, 3)
	do(t, l, func() {
		var read func()
		read = func() {
			b := make([]byte, 2)
			n, _ := s.TryRead(b)
			begun <- string(b[:n])
			if n == 2 && string(b) != "ef" {
				s.Park(loop.Func(read))
			}
		}
		s.Park(loop.Func(read))
	})
	for _, want := range []string{"ab", "cd", "ef"} {
		if got := <-begun; got != want {
			t.Errorf("read %q, want %q", got, want)
		}
	}
}
