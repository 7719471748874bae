package h1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// recorder is an upstream that keeps what it is sent and answers with it.
func recorder(t *testing.T) (addr string, seen chan *http.Request) {
	seen = make(chan *http.Request, 16)
	return backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(b)))
		seen <- r
		_, _ = w.Write(b)
	}), seen
}

// mirroring forwards a request and tells a copy to the same upstream, when its
// body is there: before, or else after the answer.
func (p *proxy) mirroring(told chan<- error) Handler {
	return func(x *Exchange) {
		x.Set("X-Changed", "yes")
		x.SetTarget("/changed")
		text, ok := x.AppendCopy(nil, "X-Copy", "1")
		if ok != (x.Whole() && x.Req.Upgrade() == "") {
			p.t.Errorf("copied %v, whole %v", ok, x.Whole())
		}
		p.forward(x)
		if !ok {
			text, ok = x.AppendCopy(nil, "X-Copy", "1")
		}
		if !ok {
			told <- errors.New("no copy")
			return
		}
		up, err := p.take()
		if err == nil {
			_, err = p.server.Tell(up, text, strings.Clone(x.Req.Method), x.Now().Add(10*time.Second))
		}
		if err == nil {
			p.pool.Put(x.Now(), up)
		}
		told <- err
	}
}

func TestACopyIsTheRequestWithOneFieldMore(t *testing.T) {
	for name, pieces := range map[string][]string{
		"without a body":          {"GET /a HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n"},
		"by length":               {"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"},
		"by length, later":        {"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-Wait: 1\r\n\r\nhe", "llo"},
		"by chunks":               {"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		"by chunks, later":        {"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", "3\r\nllo\r\n0\r\n\r\n"},
		"HEAD":                    {"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n"},
		"of an old client":        {"GET /a HTTP/1.0\r\n\r\n"},
		"larger than one segment": {"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n" + strings.Repeat("x", 10000), strings.Repeat("y", 30000)},
	} {
		t.Run(name, func(t *testing.T) {
			addr, seen := recorder(t)
			told := make(chan error, 1)
			p := startProxy(t, addr, func(p *proxy) { p.handler = p.mirroring(told) })
			c := dialRaw(t, p.addr())
			for i, piece := range pieces {
				if i > 0 {
					for p.dialsMade() == 0 { // the first piece is on its way
						time.Sleep(time.Millisecond)
					}
				}
				c.send(piece)
			}
			method, _, _ := strings.Cut(pieces[0], " ")
			_, body := c.answer(method)
			if err := <-told; err != nil {
				t.Fatal(err)
			}
			first, copied := <-seen, <-seen
			a, _ := io.ReadAll(first.Body)
			b, _ := io.ReadAll(copied.Body)
			if string(a) != string(b) || method == "POST" && string(a) != body {
				t.Errorf("bodies of %d and %d bytes, answer of %d", len(a), len(b), len(body))
			}
			if copied.Header.Get("X-Copy") != "1" || first.Header.Get("X-Copy") != "" {
				t.Errorf("heads %v and %v", first.Header, copied.Header)
			}
			copied.Header.Del("X-Copy")
			if first.Method != copied.Method || copied.RequestURI != "/changed" || first.Host != copied.Host || len(first.Header) != len(copied.Header) || copied.Header.Get("X-Changed") != "yes" {
				t.Errorf("sent   %v %v\ncopied %v %v", first.RequestURI, first.Header, copied.RequestURI, copied.Header)
			}
			if p.dialsMade() != 1 { // the copy went on the connection of the request
				t.Errorf("%d connections", p.dialsMade())
			}
		})
	}
}

func TestWhatCannotBeCopied(t *testing.T) {
	addr, _ := recorder(t)
	told := make(chan error, 1)
	p := startProxy(t, addr, func(p *proxy) { p.handler = p.mirroring(told) })
	c := dialRaw(t, p.addr())
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + strings.Repeat("x", 200_000))
	if resp, body := c.answer("POST"); resp.StatusCode != 200 || len(body) != 200_000 {
		t.Errorf("%v, %d bytes", resp.Status, len(body))
	}
	if err := <-told; err == nil {
		t.Error("a body beyond ReplayBytes was copied")
	}
	c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
	_, _ = c.answer("GET")
	if err := <-told; err == nil {
		t.Error("a request to switch protocols was copied")
	}
}

func TestAnswersThatNobodyWants(t *testing.T) {
	for name, c := range map[string]struct {
		answer   string
		status   int // 0 is an error
		reusable bool
	}{
		"by length":            {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, true},
		"by chunks":            {"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 500, true},
		"without a body":       {"HTTP/1.1 204 None\r\n\r\n", 204, true},
		"after an interim one": {"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hint\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n", 201, true},
		"to be closed":         {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 200, false},
		"until close":          {"HTTP/1.0 200 OK\r\n\r\nhello\x00", 200, false},
		"very long":            {"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + strings.Repeat("x", 2_000_000), 200, false},
		"more than it said":    {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhello", 200, false},
		"cut short":            {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello\x00", 0, false},
		"malformed":            {"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 0, false},
		"unasked":              {"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 0, false},
		"none":                 {"\x00", 0, false},
		"bad chunks":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			addr := rawUpstream(t, func(conn net.Conn, r *bufio.Reader) {
				_, _ = readHeadText(r)
				text, closes := strings.CutSuffix(c.answer, "\x00")
				if _, _ = io.WriteString(conn, text); !closes {
					_, _ = io.Copy(io.Discard, r)
				}
			})
			p := startProxy(t, addr, nil)
			on(p.l, func() {
				up, err := p.take()
				if err != nil {
					t.Fatal(err)
				}
				status, err := p.server.Tell(up, []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "GET", time.Now().Add(10*time.Second))
				if status != c.status || (err == nil) != (status != 0) || up.Reusable() != c.reusable {
					t.Errorf("%d %v, reusable %v", status, err, up.Reusable())
				}
				var e *Error
				if err != nil && (!errors.As(err, &e) || e.Side != SideUpstream || e.Timeout || !e.Sent) {
					t.Errorf("%v", err)
				}
				if up.buf != nil {
					t.Error("a buffer is held")
				}
				_ = up.Close()
			})
		})
	}
}

func TestACopyWaitsForItsDeadlineOnly(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	p := startProxy(t, addr, nil)
	on(p.l, func() {
		up, err := p.take()
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.server.Tell(up, []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "GET", time.Now().Add(20*time.Millisecond))
		var e *Error
		if !errors.As(err, &e) || !e.Timeout || !e.Sent {
			t.Errorf("%v", err)
		}
	})
}

func TestAClosedConnectionIsFoundBeforeACopyIsSent(t *testing.T) {
	answered := make(chan struct{})
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		<-answered
	})
	p := startProxy(t, addr, nil)
	tell := func(up *Upstream) (err error) {
		on(p.l, func() {
			_, err = p.server.Tell(up, []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "GET", time.Now().Add(10*time.Second))
		})
		return err
	}
	var up *Upstream
	on(p.l, func() { up, _ = p.take() })
	err := tell(up)
	close(answered) // and with it the connection
	if err != nil {
		t.Fatal(err)
	}
	on(p.l, func() {
		for up.IdleAlive() {
			p.l.Sleep(time.Millisecond)
		}
	})
	var e *Error
	if err := tell(up); !errors.As(err, &e) || !e.Stale() || e.Sent {
		t.Errorf("%v", err)
	}
}

func TestAnExchangeHasAnIdleLimitOfItsOwn(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := readHeadText(r)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
			if strings.Contains(head, "/slow") {
				_, _ = io.Copy(io.Discard, r)
				return
			}
			_, _ = io.WriteString(c, "b")
		}
	})
	p := startProxy(t, addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			if x.Req.Target == "/slow" {
				x.SetStreamIdle(30 * time.Millisecond)
			} else if x.streamIdle() != forever {
				p.t.Errorf("what one exchange set holds for the next: %v", x.streamIdle())
			}
			p.forward(x)
		}
	})
	c := dialRaw(t, p.addr())
	for _, target := range []string{"/quick", "/slow"} {
		c.send("GET " + target + " HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); target == "/slow" && (err == nil || string(b) != "a") || target == "/quick" && string(b) != "ab" {
			t.Errorf("%s: %q %v", target, b, err)
		}
	}
	if e := wantError(t, p.served(1)[0], SideUpstream, ReadContent); !e.Timeout {
		t.Errorf("%v", e)
	}
}
