package h1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// side is an upstream that answers when it is told to.
type side struct {
	addr   string
	asked  chan string   // what it was sent
	answer chan string   // what it is to say; "" closes
	ended  chan struct{} // the proxy closed the connection
}

func newSide(t *testing.T) *side {
	s := &side{asked: make(chan string, 4), answer: make(chan string, 4), ended: make(chan struct{}, 4)}
	s.addr = rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		s.asked <- req.Method + " " + req.RequestURI + " " + string(body)
		gone := make(chan struct{})
		go func() { defer close(gone); _, _ = r.ReadByte() }()
		select {
		case text := <-s.answer:
			if text == "" {
				_ = c.Close()
				<-gone
				return
			}
			_, _ = io.WriteString(c, text)
		case <-gone:
			s.ended <- struct{}{}
			return
		}
		<-gone
		s.ended <- struct{}{}
	})
	return s
}

func says(body string) string {
	return "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + string(rune('0'+len(body))) + "\r\n\r\n" + body
}

// hedged serves requests that are sent to first and, after a moment, to second.
// dialing, if there is one, holds the second connection up.
func hedged(t *testing.T, first, second *side, deadline time.Duration, dialing <-chan struct{}) *proxy {
	return startProxy(t, first.addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			up, err := p.take()
			if err != nil {
				t.Error(err)
				return
			}
			by := time.Time{}
			if deadline > 0 {
				by = time.Now().Add(deadline)
			}
			_, won, err := x.RoundTripHedged(up, by, 10*time.Millisecond, func() func() (*Upstream, error) {
				if second == nil {
					return nil
				}
				return func() (*Upstream, error) {
					if dialing != nil {
						p.l.Block(func() { <-dialing })
					}
					c, err := p.l.Dial(loop.Dialer{}, netip.MustParseAddrPort(second.addr), time.Time{})
					if err != nil {
						return nil, err
					}
					return NewUpstream(c), nil
				}
			})
			if err != nil {
				var e *Error
				if !errors.As(err, &e) {
					t.Errorf("%T %v", err, err)
					return
				}
				_ = x.Reply(e.Status, nil)
				return
			}
			_ = x.Relay(won)
			p.pool.Put(x.Now(), won)
		}
	})
}

func TestTheFirstToAnswerWins(t *testing.T) {
	const request = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
	for name, c := range map[string]struct {
		play   func(first, second *side)
		status int
		body   string
		loser  int // 1 or 2: whose connection is cut; 0 is none
	}{
		"the second": {func(_, second *side) {
			<-second.asked
			second.answer <- says("two")
		}, 200, "two", 1},
		"the first, though late": {func(first, second *side) {
			<-second.asked
			first.answer <- says("one")
		}, 200, "one", 2},
		"the first, in time": {func(*side, *side) {}, 200, "one", 0},
		"the second, as the first breaks": {func(first, second *side) {
			<-second.asked
			first.answer <- ""
			second.answer <- says("two")
		}, 200, "two", 0},
		"the first, as the second breaks": {func(first, second *side) {
			<-second.asked
			second.answer <- ""
			first.answer <- says("one")
		}, 200, "one", 0},
		"nobody": {func(first, second *side) {
			<-second.asked
			second.answer <- ""
			first.answer <- ""
		}, 502, "", 0},
		"the second, with an interim answer": {func(_, second *side) {
			<-second.asked
			second.answer <- "HTTP/1.1 103 Hint\r\n\r\n" + says("two")
		}, 200, "two", 1},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newSide(t), newSide(t)
			p := hedged(t, first, second, 0, nil)
			conn := dialRaw(t, p.addr())
			conn.send(request)
			if got := <-first.asked; got != "POST /x abc" {
				t.Errorf("the first got %q", got)
			}
			if name == "the first, in time" {
				first.answer <- says("one")
			}
			played := make(chan struct{})
			go func() { defer close(played); c.play(first, second) }()
			resp, body := conn.answer("POST")
			if resp.StatusCode != c.status || body != c.body {
				t.Errorf("%d %q, want %d %q", resp.StatusCode, body, c.status, c.body)
			}
			<-played
			switch c.loser {
			case 1:
				<-first.ended
			case 2:
				<-second.ended
			}
		})
	}
}

func TestTheSecondGetsTheSameRequest(t *testing.T) {
	first, second := newSide(t), newSide(t)
	p := hedged(t, first, second, 0, nil)
	c := dialRaw(t, p.addr())
	c.send("PUT /y?z HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	if a, b := <-first.asked, <-second.asked; a != b || a != "PUT /y?z abc" {
		t.Errorf("%q and %q", a, b)
	}
	second.answer <- says("two")
	if _, body := c.answer("PUT"); body != "two" {
		t.Errorf("%q", body)
	}
}

// A second connection that is long in coming holds up neither the answer nor the
// next request, and is closed once it is there.
func TestNobodyWaitsForTheSecond(t *testing.T) {
	first, second, dialing := newSide(t), newSide(t), make(chan struct{})
	p := hedged(t, first, second, 0, dialing)
	c := dialRaw(t, p.addr())
	for range 2 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-first.asked
		on(p.l, func() { p.l.Sleep(20 * time.Millisecond) }) // the second try has begun
		first.answer <- says("one")
		if _, body := c.answer("GET"); body != "one" {
			t.Errorf("%q", body)
		}
	}
	close(dialing)
	select {
	case got := <-second.asked:
		t.Errorf("%q was sent, though it was over", got)
	default:
	}
}

func TestTheDeadlineEndsBoth(t *testing.T) {
	first, second := newSide(t), newSide(t)
	p := hedged(t, first, second, 60*time.Millisecond, nil)
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != 504 {
		t.Errorf("%d", resp.StatusCode)
	}
	<-first.ended
	<-second.ended
}

func TestWithoutASecondTheFirstIsWaitedFor(t *testing.T) {
	first := newSide(t)
	p := hedged(t, first, nil, 0, nil)
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-first.asked
	on(p.l, func() { p.l.Sleep(20 * time.Millisecond) })
	first.answer <- says("one")
	if _, body := c.answer("GET"); body != "one" {
		t.Errorf("%q", body)
	}
	// Nor is what cannot be sent twice.
	second := newSide(t)
	p = hedged(t, newSideThatEchoes(t), second, 0, nil)
	c = dialRaw(t, p.addr())
	c.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 50_000))
	on(p.l, func() { p.l.Sleep(20 * time.Millisecond) })
	c.send(strings.Repeat("x", 50_000))
	if _, body := c.answer("PUT"); body != "all" {
		t.Errorf("%q", body)
	}
	if len(second.asked) != 0 {
		t.Error("a body that was still coming went to two")
	}
}

// newSideThatEchoes is an upstream that answers once it has the whole request.
func newSideThatEchoes(t *testing.T) *side {
	return &side{addr: rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		if req, err := http.ReadRequest(r); err == nil {
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(c, says("all"))
		}
	})}
}
