package secure

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestACutIsNoEnd(t *testing.T) {
	l := start(t)
	for name, c := range map[string]struct {
		cut  func(peer *tls.Conn, late *lateConn)
		want error
	}{
		"at once": {func(_ *tls.Conn, late *lateConn) { late.Conn.Close() }, io.ErrUnexpectedEOF},
		"between two records": {func(peer *tls.Conn, late *lateConn) {
			peer.Write([]byte("whole"))
			late.Conn.Write(late.held.Bytes())
			late.Conn.Close()
		}, io.ErrUnexpectedEOF},
		"inside a header": {func(peer *tls.Conn, late *lateConn) {
			peer.Write([]byte("whole"))
			late.Conn.Write(late.held.Next(3))
			late.Conn.Close()
		}, io.ErrUnexpectedEOF},
		"inside a record": {func(peer *tls.Conn, late *lateConn) {
			peer.Write([]byte("whole"))
			late.Conn.Write(late.held.Next(12))
			late.Conn.Close()
		}, io.ErrUnexpectedEOF},
		"by a reset": {func(_ *tls.Conn, late *lateConn) {
			late.Conn.(*net.TCPConn).SetLinger(0)
			late.Conn.Close()
		}, unix.ECONNRESET},
		"no cut": {func(peer *tls.Conn, late *lateConn) {
			peer.Write([]byte("whole"))
			peer.CloseWrite()
			late.Conn.Write(late.held.Bytes())
			late.Conn.Close()
		}, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			s, peer, late := meetLate(t, l)
			do(t, l, func() { s.Park(loop.Func(func() {})) }) // so that the end is seen as an event, too
			c.cut(peer, late)
			do(t, l, func() {
				var err error
				for err == nil {
					_, err = s.Read(make([]byte, 100))
				}
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if _, again := s.TryRead(make([]byte, 1)); again != err {
					t.Errorf("then %v", again)
				}
				if s.below.in != nil || !s.Readable() {
					t.Error("a buffer is kept, or the end is not seen")
				}
				s.Close()
			})
		})
	}
}

func TestARecordThatWasTamperedWithIsAnErrorAndThePeerIsTold(t *testing.T) {
	l := start(t)
	s, peer, late := meetLate(t, l)
	peer.Write([]byte("honest"))
	record := late.held.Bytes()
	record[8] ^= 1
	late.Conn.Write(record)
	do(t, l, func() {
		if _, err := s.Read(make([]byte, 100)); err == nil || err == io.EOF {
			t.Error(err)
		}
		if _, err := s.Write([]byte("x")); err == nil {
			t.Error("writing goes on")
		}
		s.Close()
	})
	var alert *net.OpError
	if _, err := peer.Read(make([]byte, 1)); !errors.As(err, &alert) || alert.Op != "remote error" {
		t.Errorf("the peer was told %v", err)
	}
}

func TestCloseTellsThePeerUnlessThatWouldWait(t *testing.T) {
	l := start(t)
	t.Run("room", func(t *testing.T) {
		s, peer := meet(t, l)
		do(t, l, func() { s.Close() })
		if b, err := io.ReadAll(peer.NetConn()); err != nil || len(b) < headerBytes {
			t.Errorf("got %x, %v", b, err) // the ticket, and close_notify
		}
		do(t, l, func() {
			if err := s.Close(); !errors.Is(err, net.ErrClosed) {
				t.Error("closed twice:", err)
			}
			if _, err := s.TryRead(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
			if err := s.WaitRead(); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
	})
	t.Run("a write is under way", func(t *testing.T) {
		s, peer := meet(t, l)
		do(t, l, func() {
			w := l.Spawn(func() {
				if n, err := s.Write(make([]byte, tooMuch)); !errors.Is(err, net.ErrClosed) || n == tooMuch {
					t.Error(n, err)
				}
			})
			r := l.Spawn(func() {
				if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			})
			l.Yield()
			if _, err := s.Write([]byte("x")); err != errTwoWriters {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			w.Wait()
			r.Wait()
			if s.below.out != nil {
				t.Error("a buffer is kept")
			}
		})
		if _, err := io.Copy(io.Discard, peer); err == nil {
			t.Error("the peer takes the cut for an end")
		}
	})
}

func TestResetIsSeenAsACut(t *testing.T) {
	l := start(t)
	s, peer := meet(t, l)
	do(t, l, func() {
		w := l.Spawn(func() { s.Write(make([]byte, tooMuch)) })
		l.Yield()
		s.Reset()
		w.Wait()
	})
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestCloseWriteBesideAWriteEndsItAndIsSentAfterWhatIsUnderWay(t *testing.T) {
	l := start(t)
	s, peer := meet(t, l)
	written := 0
	got := make(chan []byte, 1)
	do(t, l, func() {
		w := l.Spawn(func() {
			var err error
			if written, err = s.Write(random(64 << 20)); err != errEnded {
				t.Error(err)
			}
		})
		l.Yield()
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
		go func() {
			b, err := io.ReadAll(peer)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
		w.Wait()
	})
	if b := <-got; len(b) != written {
		t.Errorf("wrote %d, the peer read %d", written, len(b))
	}
}

func TestASocketThatOthersClosedIsNotReadOn(t *testing.T) {
	l := start(t)
	s, _ := meet(t, l)
	begun := make(chan error)
	do(t, l, func() {
		s.Park(loop.Func(func() { _, err := s.TryRead(make([]byte, 1)); begun <- err }))
		s.Socket().Close()
	})
	if err := <-begun; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	do(t, l, func() {
		if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

func TestTheLoopsEndEndsWhoWaits(t *testing.T) {
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	s, _ := meet(t, l)
	got := make(chan error, 1)
	do(t, l, func() { l.Go(func() { _, err := s.Read(make([]byte, 1)); got <- err }) })
	l.Close()
	<-ended
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestDeadlinesAndAddressesAreTheSockets(t *testing.T) {
	l := start(t)
	s, peer := meet(t, l)
	do(t, l, func() {
		if s.LocalAddr().String() != peer.RemoteAddr().String() || s.RemoteAddr().String() != peer.LocalAddr().String() {
			t.Error(s.LocalAddr(), s.RemoteAddr())
		}
		s.SetDeadline(time.Unix(1, 0))
		if err := s.WaitRead(); err == nil {
			t.Error("the deadline did not count")
		}
		s.SetDeadline(time.Time{})
	})
}
