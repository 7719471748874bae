package secure

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestBothSidesShakeHandsAndTalkInEveryVersion(t *testing.T) {
	l := start(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		ours, theirs := serverConfig(), clientConfig()
		theirs.MaxVersion = version
		t.Run("server "+tls.VersionName(version), func(t *testing.T) {
			s, peer := meetWith(t, l, ours, theirs)
			talk(t, l, s, peer)
		})
		t.Run("client "+tls.VersionName(version), func(t *testing.T) {
			c, p := pair(t, l)
			peer := tls.Server(p, ours)
			shaken := shake(peer)
			s := Client(c, theirs)
			do(t, l, func() {
				if err := s.Handshake(time.Time{}); err != nil {
					t.Error(err)
				}
				if got := s.ConnectionState(); got.Version != version || len(got.PeerCertificates) != 1 {
					t.Errorf("agreed on %+v", got)
				}
			})
			if err := <-shaken; err != nil {
				t.Fatal(err)
			}
			talk(t, l, s, peer)
		})
	}
}

// talk says something each way and ends.
func talk(t *testing.T, l *loop.Loop, s *Conn, peer *tls.Conn) {
	t.Helper()
	heard := make(chan string, 1)
	go func() {
		io.WriteString(peer, "from the peer")
		peer.CloseWrite()
		b, _ := io.ReadAll(peer)
		heard <- string(b)
	}()
	do(t, l, func() {
		if b, err := io.ReadAll(s); string(b) != "from the peer" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		if n, err := s.Write([]byte("from us")); n != 7 || err != nil {
			t.Error(n, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if got := <-heard; got != "from us" {
		t.Errorf("the peer read %q", got)
	}
}

func TestWhatWasPeekedComesFirst(t *testing.T) {
	l := start(t)
	for _, size := range []int{1, 5, 6, 100, 1 << 16} {
		c, p := pair(t, l)
		peer := tls.Client(p, clientConfig())
		shaken := shake(peer)
		var s *Conn
		do(t, l, func() {
			peeked := make([]byte, size)
			n, err := c.Read(peeked)
			if err != nil {
				t.Error(err)
			}
			s = Server(c, peeked[:n], serverConfig())
			if err := s.Handshake(time.Time{}); err != nil {
				t.Error(err)
			}
			if s.below.peeked != nil {
				t.Error("what was peeked is kept")
			}
		})
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		talk(t, l, s, peer)
	}
}

func TestAHandshakeThatFailsSaysWhyToBothSides(t *testing.T) {
	l := start(t)
	c, p := pair(t, l)
	theirs := clientConfig()
	theirs.NextProtos = []string{"theirs"}
	ours := serverConfig()
	ours.NextProtos = []string{"ours"}
	shaken := shake(tls.Client(p, theirs))
	do(t, l, func() {
		s := Server(c, nil, ours)
		err := s.Handshake(time.Time{})
		if err == nil || !strings.Contains(err.Error(), "theirs") {
			t.Error(err)
		}
		if again := s.Handshake(time.Time{}); again != err {
			t.Errorf("then %v", again)
		}
		if _, read := s.Read(make([]byte, 1)); read != err {
			t.Errorf("reading says %v", read)
		}
		if _, write := s.Write(make([]byte, 1)); write != err {
			t.Errorf("writing says %v", write)
		}
		if s.below.in != nil || s.below.out != nil {
			t.Error("a buffer is kept")
		}
		s.Close()
	})
	if err := <-shaken; err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("the peer was told %v", err)
	}
}

func TestAHandshakeEndsAtItsDeadlineAndWhenThePeerGoesOrItIsClosed(t *testing.T) {
	l := start(t)
	for name, c := range map[string]struct {
		then func(s *Conn, peer *net.TCPConn)
		want error
	}{
		"the peer goes":   {func(_ *Conn, peer *net.TCPConn) { peer.Close() }, io.ErrUnexpectedEOF},
		"deadline":        {func(*Conn, *net.TCPConn) {}, os.ErrDeadlineExceeded},
		"it is closed":    {func(s *Conn, _ *net.TCPConn) { s.Close() }, net.ErrClosed},
		"it is reset":     {func(s *Conn, _ *net.TCPConn) { s.Reset() }, net.ErrClosed},
		"part of a hello": {func(_ *Conn, peer *net.TCPConn) { peer.Write([]byte{22, 3, 1}); peer.Close() }, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			sock, peer := pair(t, l)
			do(t, l, func() {
				s := Server(sock, nil, serverConfig())
				by := l.Now().Add(time.Minute)
				if c.want == os.ErrDeadlineExceeded {
					by = l.Now().Add(10 * time.Millisecond)
				}
				h := l.Spawn(func() {
					if err := s.Handshake(by); !errors.Is(err, c.want) {
						t.Errorf("got %v, want %v", err, c.want)
					}
				})
				l.Yield()
				if cs := s.ConnectionState(); cs.HandshakeComplete { // would hold up the loop
					t.Error(cs)
				}
				if err := s.Handshake(by); err != errShaking {
					t.Error(err)
				}
				if _, err := s.Read(make([]byte, 1)); err != errNoHandshake {
					t.Error(err)
				}
				c.then(s, peer)
				h.Wait()
				s.Close()
			})
		})
	}
}

func TestWhatDoesNotSpeakTLSIsRefused(t *testing.T) {
	l := start(t)
	c, peer := pair(t, l)
	peer.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	do(t, l, func() {
		s := Server(c, nil, serverConfig())
		var notTLS tls.RecordHeaderError
		if err := s.Handshake(time.Time{}); !errors.As(err, &notTLS) {
			t.Error(err)
		}
		s.Close()
	})
}

func TestNothingIsSaidBeforeTheHandshake(t *testing.T) {
	l := start(t)
	c, _ := pair(t, l)
	do(t, l, func() {
		s := Client(c, clientConfig())
		_, read := s.TryRead(make([]byte, 1))
		_, write := s.Write([]byte("x"))
		if err := s.CloseWrite(); read != errNoHandshake || write != errNoHandshake || err != errNoHandshake {
			t.Error(read, write, err)
		}
	})
}

func TestSessionsAreResumedAndTicketsThatComeLaterDoNotMakeAReadWait(t *testing.T) {
	l := start(t)
	ours := clientConfig()
	ours.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	theirs := serverConfig()
	for round, resumed := range []bool{false, true, true} {
		c, p := pair(t, l)
		peer := tls.Server(p, theirs)
		shaken := shake(peer)
		s := Client(c, ours)
		do(t, l, func() {
			if err := s.Handshake(time.Time{}); err != nil {
				t.Error(err)
			}
			if got := s.ConnectionState().DidResume; got != resumed {
				t.Errorf("round %d: resumed is %v", round, got)
			}
			// The ticket is all that has come.
			if err := s.WaitRead(); err != nil {
				t.Error(err)
			}
			for s.Readable() {
				if n, err := s.TryRead(make([]byte, 1)); n != 0 || err != loop.ErrWouldBlock {
					t.Error(n, err)
				}
			}
		})
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		talk(t, l, s, peer)
	}
}
