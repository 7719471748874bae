package wsframe

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that only a bug makes long.
const patience = 20 * time.Second

// scene is a browser and a server, and a Socket relayed between them.
type scene struct {
	t               *testing.T
	l               *loop.Loop
	browser, server net.Conn
	socket          *Socket
	draining        atomic.Bool
	client          *loop.Conn // the browser's other end
	ended           chan struct{}
}

func start(t *testing.T, change func(*Config)) *scene {
	t.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	turned := make(chan struct{})
	go func() { defer close(turned); l.Run() }()
	t.Cleanup(func() { l.Close(); <-turned })
	s := &scene{t: t, l: l, ended: make(chan struct{})}
	var upstream *loop.Conn
	s.client, s.browser = pair(t, l)
	upstream, s.server = pair(t, l)
	cfg := Config{Draining: s.draining.Load, Patience: time.Hour, Reason: "bye", Mask: func() [4]byte { return [4]byte{1, 2, 3, 4} }}
	if change != nil {
		change(&cfg)
	}
	on(l, func() {
		s.socket = New(s.client, upstream, cfg)
		c, u := s.socket.Ends()
		left := 2
		for _, f := range []*carrier{{from: c, to: u}, {from: u, to: c}} {
			f.done = func() {
				if left--; left == 0 {
					_, _ = c.Close(), u.Close()
					s.socket.Ended()
					close(s.ended)
				}
			}
			f.from.Park(f)
		}
	})
	return s
}

// carrier relays one direction as proxy/relay does: parked while nothing comes.
type carrier struct {
	from, to loop.Stream
	done     func()
}

func (c *carrier) Run() {
	var buf [1 << 15]byte
	for {
		n, err := c.from.TryRead(buf[:])
		_, _ = c.to.Write(buf[:n])
		switch {
		case err == loop.ErrWouldBlock:
			c.from.Park(c)
			return
		case err != nil:
			_ = c.to.CloseWrite()
			c.done()
			return
		case !c.from.Readable():
			c.from.Park(c)
			return
		}
	}
}

func pair(t *testing.T, l *loop.Loop) (*loop.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	var c *loop.Conn
	on(l, func() { c, err = l.Dial(loop.Dialer{}, ln.Addr().(*net.TCPAddr).AddrPort(), time.Time{}) })
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	_ = far.SetDeadline(time.Now().Add(patience))
	return c, far
}

func on(l *loop.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { l.Go(func() { defer close(done); f() }) })
	<-done
}

// drain does what a listener that drains does to connections in silence.
func (s *scene) drain() {
	s.draining.Store(true)
	on(s.l, s.client.Wake)
}

func (s *scene) send(c net.Conn, text string) {
	s.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) expect(c net.Conn, text string) {
	s.t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != text {
		s.t.Fatalf("got %q, %v; want %q", got[:n], err, text)
	}
}

func (s *scene) expectEnd(c net.Conn) {
	s.t.Helper()
	if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
		s.t.Fatalf("got %q, %v; want the end", b, err)
	}
}

func (s *scene) over() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatal("it does not end")
	}
}

var (
	ourClose       = frame(true, opClose, false, "\x03\xe9bye")
	ourMaskedClose = frame(true, opClose, true, "\x03\xe9bye")
	clientsAnswer  = frame(true, opClose, true, "\x03\xe9")
	serversAnswer  = frame(true, opClose, false, "\x03\xe9")
)

func TestASilentWebSocketIsClosedAsByAServerThatGoesAway(t *testing.T) {
	s := start(t, nil)
	s.send(s.browser, frame(true, text, true, "hello"))
	s.expect(s.server, frame(true, text, true, "hello"))
	s.drain()
	s.expect(s.browser, ourClose)
	// What the client says before its answer still arrives, and the answer tells
	// the server.
	s.send(s.browser, frame(true, text, true, "last words")+clientsAnswer)
	s.expect(s.server, frame(true, text, true, "last words")+clientsAnswer)
	s.send(s.server, frame(true, text, false, "too late")+serversAnswer)
	s.expectEnd(s.browser)
	s.expectEnd(s.server)
	s.over()
}

func TestACloseWaitsForTheEndOfAMessage(t *testing.T) {
	s := start(t, nil)
	first, rest := frame(false, text, false, "one half"), frame(true, ping, false, "")+frame(true, cont, false, " and the other")
	s.send(s.server, first+rest[:5])
	s.expect(s.browser, first+rest[:5])
	s.drain()
	s.send(s.server, rest[5:]+frame(true, text, false, "never seen"))
	s.expect(s.browser, rest[5:]+ourClose)
	s.send(s.browser, clientsAnswer)
	s.expect(s.server, clientsAnswer)
	s.send(s.server, serversAnswer)
	s.expectEnd(s.browser)
	s.over()
}

func TestAClientThatDoesNotAnswerIsNotWaitedForLong(t *testing.T) {
	s := start(t, func(c *Config) { c.Patience = 20 * time.Millisecond })
	s.drain()
	s.expect(s.browser, ourClose)
	s.expect(s.server, ourMaskedClose)
	s.expectEnd(s.server) // which need not answer either
	s.expectEnd(s.browser)
	s.over()
}

// A message that goes on and on is interrupted between two of its frames.
func TestAMessageWithoutEndIsInterrupted(t *testing.T) {
	s := start(t, func(c *Config) { c.Patience = 20 * time.Millisecond })
	s.send(s.server, frame(false, text, false, "on"))
	s.send(s.browser, frame(false, text, true, "and"))
	s.expect(s.browser, frame(false, text, false, "on"))
	s.expect(s.server, frame(false, text, true, "and"))
	s.drain()
	s.expect(s.browser, ourClose)
	s.expect(s.server, ourMaskedClose)
	s.expectEnd(s.server)
	s.expectEnd(s.browser)
	s.over()
}

// In the middle of a frame nothing can be said; whoever drains cuts it in the end.
func TestAFrameIsNeverInterrupted(t *testing.T) {
	s := start(t, func(c *Config) { c.Patience = 10 * time.Millisecond })
	half := frame(true, text, false, "a frame that does not end")[:9]
	s.send(s.server, half)
	s.expect(s.browser, half)
	s.drain()
	s.expect(s.server, ourMaskedClose) // the other direction can be ended
	s.expectEnd(s.server)
	_ = s.browser.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := s.browser.Read(make([]byte, 1)); n > 0 || !isTimeout(err) {
		t.Errorf("into the frame came %d bytes, %v", n, err)
	}
	_ = s.browser.SetReadDeadline(time.Now().Add(patience))
	_ = s.server.Close()
	s.expectEnd(s.browser)
	_ = s.browser.Close()
	s.over()
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestACloseUnderWayIsLeftAlone(t *testing.T) {
	s := start(t, nil)
	own := frame(true, opClose, false, "\x03\xe8done")
	s.send(s.server, own)
	s.expect(s.browser, own)
	s.drain()
	s.send(s.browser, frame(true, opClose, true, "\x03\xe8"))
	s.expect(s.server, frame(true, opClose, true, "\x03\xe8"))
	s.expectEnd(s.browser) // no second Close
	s.expectEnd(s.server)
	s.over()
}

func TestWithoutADrainBytesPassAsTheyAre(t *testing.T) {
	early, greeting := frame(true, text, true, "early"), frame(true, text, false, "welcome")
	s := start(t, func(c *Config) { c.FromClient, c.FromUpstream = []byte(early), []byte(greeting) })
	s.expect(s.server, early)
	s.expect(s.browser, greeting)
	big := frame(true, text, true, strings.Repeat("0123456789", 300_000))
	go func() { _, _ = io.WriteString(s.browser, big) }()
	s.expect(s.server, big)
	odd := "these are no frames at all, but a protocol that calls itself websocket\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
	s.send(s.server, odd)
	s.expect(s.browser, odd)
	_ = s.browser.(*net.TCPConn).CloseWrite()
	s.expectEnd(s.server)
	s.send(s.server, "x")
	_ = s.server.Close()
	s.expect(s.browser, "x")
	s.expectEnd(s.browser)
	s.over()
}

// A server that talks without pause is interrupted, and what it says afterwards is
// dropped without holding up the loop.
func TestABusyServerIsClosedBetweenTwoMessages(t *testing.T) {
	s := start(t, nil)
	message := frame(true, 2, false, strings.Repeat("x", 1000))
	enough, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-enough:
				return
			default:
				_, _ = io.WriteString(s.server, message)
			}
		}
	}()
	s.expect(s.browser, message)
	s.drain()
	got := make([]byte, len(message))
	for {
		if _, err := io.ReadFull(s.browser, got[:len(ourClose)]); err != nil {
			t.Fatal(err)
		}
		if string(got[:len(ourClose)]) == ourClose {
			break
		}
		if _, err := io.ReadFull(s.browser, got[len(ourClose):]); err != nil || string(got) != message {
			t.Fatalf("got %.20q, %v", got, err)
		}
	}
	s.send(s.browser, clientsAnswer)
	s.expect(s.server, clientsAnswer)
	close(enough)
	<-stopped
	s.send(s.server, serversAnswer)
	s.expectEnd(s.browser)
	s.expectEnd(s.server)
	s.over()
}
