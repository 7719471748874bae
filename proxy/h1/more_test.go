package h1

import (
	"bufio"
	"bytes"
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

// deaf is a connection to an upstream that answered and takes no more.
type deaf struct {
	*loop.Conn
	answer *bytes.Reader
}

func (d *deaf) Write([]byte) (int, error)     { return 0, io.ErrClosedPipe }
func (d *deaf) Read(b []byte) (int, error)    { return d.answer.Read(b) }
func (d *deaf) TryRead(b []byte) (int, error) { return d.answer.Read(b) }
func (d *deaf) Readable() bool                { return true }

func TestTheLastWordsOfADeafUpstreamAreHeard(t *testing.T) {
	for answer, status := range map[string]int{"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n": 503, "": 502} {
		addr := rawUpstream(t, func(_ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
		p := startProxy(t, addr, func(p *proxy) {
			p.dial = func() (loop.Stream, error) {
				c, err := p.l.Dial(loop.Dialer{}, netip.MustParseAddrPort(addr), time.Time{})
				return &deaf{c, bytes.NewReader([]byte(answer))}, err
			}
		})
		c := dialRaw(t, p.addr())
		for range 2 {
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, body := c.answer("GET"); resp.StatusCode != status || resp.Close {
				t.Errorf("%d %s, want %d", resp.StatusCode, body, status)
			}
		}
		if p.idle() != 0 {
			t.Error("it went to the pool")
		}
	}
}

func TestTheHandlerSeesTheRequest(t *testing.T) {
	type seen struct {
		method, path, accept, host string
		has, chunked               bool
		length, sent               int64
	}
	got := make(chan seen, 1)
	p := startProxy(t, "", func(p *proxy) {
		p.handler = func(x *Exchange) {
			accept, has := x.Req.Get("aCCEPT")
			_, missing := x.Req.Get("X-Missing")
			got <- seen{strings.Clone(x.Req.Method), strings.Clone(x.Req.Path()), strings.Clone(accept), strings.Clone(x.Req.Host),
				has && !missing && !x.Now().IsZero(), x.Req.Chunked(), x.Req.ContentLength, x.Sent()}
			x.AddResponse("X-A", "1")
			x.AddResponse("X-A", "2")
			x.CloseAfter()
			_ = x.Reply(200, []byte("ok"))
			if x.Received() != 2 || x.CanRetry() {
				t.Errorf("received %d, retry %v", x.Received(), x.CanRetry())
			}
		}
	})
	c := dialRaw(t, p.addr())
	c.send("POST /a/b?c=d HTTP/1.1\r\nHost: h:1\r\nAccept:  x/y \r\nAccept: z\r\nContent-Length: 3\r\n\r\nabc")
	if resp, _ := c.answer("POST"); !resp.Close || len(resp.Header["X-A"]) != 2 {
		t.Errorf("%v", resp)
	}
	c.ended()
	if want := (seen{"POST", "/a/b", "x/y", "h:1", true, false, 3, 3}); <-got != want {
		t.Error("the handler saw something else")
	}
}

func TestTheHostIsAlwaysOne(t *testing.T) {
	heads := make(chan string, 1)
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := readHeadText(r)
			if err != nil {
				return
			}
			heads <- head
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	for _, c := range []struct {
		name, line, want string
		change           func(*Exchange)
	}{
		{"as received", "GET / HTTP/1.1\r\nhOST: a\r\n", "hOST: a\r\n", nil},
		{"absolute", "GET http://b/ HTTP/1.1\r\nHost: a\r\n", "Host: b\r\n", nil},
		{"none in 1.0", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n", "Host: \r\n", nil},
		{"set", "GET / HTTP/1.1\r\nHost: a\r\n", "Host: c\r\n", func(x *Exchange) { x.Set("Host", "c") }},
		{"set over absolute", "GET http://b/ HTTP/1.1\r\nHost: a\r\n", "Host: c\r\n", func(x *Exchange) { x.Set("Host", "c") }},
		{"removed", "GET / HTTP/1.1\r\nHost: a\r\n", "Host: \r\n", func(x *Exchange) { x.Del("Host") }},
	} {
		p := startProxy(t, addr, func(p *proxy) {
			p.handler = func(x *Exchange) {
				if c.change != nil {
					c.change(x)
				}
				p.forward(x)
			}
		})
		cl := dialRaw(t, p.addr())
		cl.send(c.line + "\r\n")
		_, _ = cl.answer("GET")
		head := <-heads
		if !strings.Contains(head, c.want) || strings.Count(strings.ToLower(head), "host:") != 1 {
			t.Errorf("%s: %q", c.name, head)
		}
	}
}

func TestWhatWasPeekedIsReadFirst(t *testing.T) {
	for _, size := range []int{0, 10, 9 << 10, 50 << 10} {
		head := "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", size) + "\r\n\r\n"
		addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
			_, _ = io.WriteString(c, head[20:])
			_, _ = io.Copy(io.Discard, r)
		})
		l := turn(t)
		ended := make(chan error, 1)
		on(l, func() {
			c, err := l.Dial(loop.Dialer{}, netip.MustParseAddrPort(addr), time.Time{})
			if err != nil {
				t.Error(err)
				return
			}
			NewServer(Config{}).Serve(c, []byte(head[:20]), never, func(x *Exchange) {
				v, _ := x.Req.Get("X")
				if len(v) != size {
					t.Errorf("%d bytes", len(v))
				}
				x.CloseAfter()
				_ = x.Reply(200, nil)
			}, func(err error) { ended <- err })
		})
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func never() bool { return false }

// Heads without end cost what the limit allows, and no more is read of them.
func TestHeadsWithoutEndAreRefusedEarly(t *testing.T) {
	for name, piece := range map[string]string{
		"fields":           "X-Field: value\r\n",
		"one name":         strings.Repeat("n", 1000),
		"one value":        "X: " + strings.Repeat("v", 1000),
		"empty values":     "A:\r\n",
		"request line":     "",
		"names Connection": "Connection: a, b, c, d, e, f, g, h\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			addr := rawUpstream(t, func(net.Conn, *bufio.Reader) { t.Error("something was forwarded") })
			p := startProxy(t, addr, nil)
			c := dialRaw(t, p.addr())
			sent := 0
			send := func(s string) bool {
				n, err := io.WriteString(c.TCPConn, s)
				sent += n
				return err == nil
			}
			if name == "request line" {
				piece = strings.Repeat("u", 1000)
				send("GET /")
			} else {
				send("GET / HTTP/1.1\r\nHost: a\r\n")
			}
			for i := 0; i < 100_000 && send(piece); i++ {
			}
			if sent > 32<<20 {
				t.Errorf("%d bytes were taken of it", sent)
			}
			// The answer may be lost in the reset that so much unread brings; the
			// connection's end may not.
			e := wantError(t, p.served(1)[0], SideClient, ReadRequest)
			if e.Status != http.StatusRequestHeaderFieldsTooLarge && e.Status != http.StatusRequestURITooLong && e.Status != http.StatusBadRequest {
				t.Errorf("%v", e)
			}
		})
	}
}

func TestTooMuchThatWasPeekedIsRefused(t *testing.T) {
	l := turn(t)
	up, _ := pair(t, l)
	var e *Error
	on(l, func() {
		NewServer(Config{}).Serve(up.Conn(), make([]byte, largeBuffer+1), never, nil, func(err error) {
			if !errors.As(err, &e) || e.Side != SideLocal {
				t.Errorf("too much was taken: %v", err)
			}
		})
	})
	if e == nil {
		t.Error("it was not ended")
	}
}

func TestAStalledBodyIsGivenUp(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	p := startProxy(t, addr, func(p *proxy) { p.cfg.StallTimeout = 50 * time.Millisecond })
	c := dialRaw(t, p.addr())
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
	if resp, _ := c.answer("POST"); resp.StatusCode != 408 || !resp.Close {
		t.Errorf("%v", resp)
	}
	c.ended()
}

func TestASilentStreamIsCutWhenALimitIsSet(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
		_, _ = io.Copy(io.Discard, r)
	})
	p := startProxy(t, addr, func(p *proxy) { p.cfg.StreamIdle = 50 * time.Millisecond })
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "a" {
		t.Errorf("%q %v", b, err)
	}
	if e := wantError(t, p.served(1)[0], SideUpstream, ReadContent); !e.Timeout {
		t.Errorf("%v", e)
	}
}

func TestALongResponseIsNotReadToBeDropped(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 500 Oh\r\nContent-Length: 1000000\r\n\r\n",
		"HTTP/1.1 500 Oh\r\n\r\n",
		"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n" + strings.Repeat("x", 0x20000) + "\r\n",
	} {
		addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
			_, _ = readHeadText(r)
			_, _ = io.WriteString(c, answer)
			_, _ = io.Copy(io.Discard, r)
		})
		p := startProxy(t, addr, func(p *proxy) {
			p.handler = func(x *Exchange) {
				up, _ := p.take()
				if _, err := x.RoundTrip(up, time.Time{}); err != nil {
					t.Error(err)
				}
				x.Discard(up)
				if up.Reusable() {
					t.Error("still reusable")
				}
				p.pool.Put(x.Now(), up)
				_ = x.Reply(503, nil)
			}
		})
		c := dialRaw(t, p.addr())
		for range 2 {
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != 503 || resp.Close {
				t.Errorf("%v", resp)
			}
		}
	}
}

func TestAnIdleConnectionHoldsNoBuffer(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })
	var up *Upstream
	p := startProxy(t, addr, func(p *proxy) {
		p.handler = func(x *Exchange) { p.forward(x); up = p.pool.Get(x.Now()) }
	})
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	_, _ = c.answer("GET")
	p.served(1)
	on(p.l, func() {
		if up == nil || up.buf != nil || !up.Used() || !up.IdleAlive() {
			t.Errorf("%+v", up)
		}
		up.Close()
	})
}
