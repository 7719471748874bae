package h1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func wantError(t *testing.T, err error, side Side, step Step) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %T %v, want an *Error", err, err)
	}
	if e.Side != side || e.Step != step {
		t.Errorf("got %v, want %v: %v", e, side, step)
	}
	return e
}

func TestMalformedRequestsAreAnsweredAndNothingIsForwarded(t *testing.T) {
	addr := backend(t, func(http.ResponseWriter, *http.Request) { t.Error("it was forwarded") })
	p := startProxy(t, addr, nil)
	for in, status := range map[string]int{
		"GET / HTTP/1.1\nHost: a\r\n\r\n":                                                                        400,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab":                         400,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n":                  400,
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 80<<10):                                         431,
		"GET /" + strings.Repeat("a", 80<<10):                                                                    414,
		"GET / HTTP/3.0\r\nHost: a\r\n\r\n":                                                                      505,
		"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n":                                                                501,
		"GET / HTTP/1.1\r\nHost: a\r\n : b\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n":                     400,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /x\r": 400,
	} {
		c := dialRaw(t, p.addr())
		c.send(in)
		if resp, _ := c.answer("GET"); resp.StatusCode != status || !resp.Close {
			t.Errorf("%.60q: %d, close %v, want %d", in, resp.StatusCode, resp.Close, status)
		}
		c.ended()
	}
}

func TestASlowHeadIsGivenUp(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.cfg.HeadTimeout = 50 * time.Millisecond })
	c := dialRaw(t, p.addr())
	c.send("GET / HT")
	if resp, _ := c.answer("GET"); resp.StatusCode != 408 || !resp.Close {
		t.Errorf("%v", resp)
	}
	c.ended()
	if e := wantError(t, p.served(1)[0], SideClient, ReadRequest); !e.Timeout {
		t.Error("not a timeout")
	}
}

func TestAnIdleConnectionIsClosedQuietly(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.cfg.IdleTimeout = 50 * time.Millisecond })
	c := dialRaw(t, p.addr())
	c.ended()
	if err := p.served(1)[0]; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestDrainFinishesTheExchangeAtHand(t *testing.T) {
	reached, release := make(chan bool), make(chan bool)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			reached <- true
			<-release
		}
	})
	p := startProxy(t, addr, nil)
	idle, busy, half := dialRaw(t, p.addr()), dialRaw(t, p.addr()), dialRaw(t, p.addr())
	for _, c := range []*client{idle, half} {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.answer("GET"); resp.Close {
			t.Error("closed before the drain")
		}
	}
	busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-reached
	p.drain()
	idle.ended()
	half.ended()
	close(release)
	if resp, _ := busy.answer("GET"); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("%v", resp)
	}
	busy.ended()
	for _, err := range p.served(3) {
		if err != nil {
			t.Errorf("Serve returned %v", err)
		}
	}
}

func TestNoAnswerCutsTheConnection(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) { p.handler = func(*Exchange) {} })
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.ended()
	wantError(t, p.served(1)[0], SideLocal, WriteResponse)
}

func TestAShortBodyIsNeverTakenForAWholeOne(t *testing.T) {
	for _, c := range []struct{ name, answer, version string }{
		{"by length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "1.1"},
		{"in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "1.1"},
		{"in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30\r\nabc", "1.1"},
		{"in the trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n", "1.1"},
		{"in chunks to HTTP/1.0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "1.0"},
		{"malformed chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "1.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := rawUpstream(t, func(conn net.Conn, r *bufio.Reader) {
				_, _ = readHeadText(r)
				_, _ = io.WriteString(conn, c.answer)
			})
			p := startProxy(t, addr, nil)
			cl := dialRaw(t, p.addr())
			cl.send("GET / HTTP/" + c.version + "\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(cl.r, nil)
			if err == nil {
				if _, err = io.ReadAll(resp.Body); err == nil {
					t.Error("the client took the body for whole")
				}
			}
			if e := wantError(t, p.served(1)[0], SideUpstream, ReadContent); !errors.Is(e, ErrTruncated) {
				t.Errorf("%v", e)
			}
		})
	}
}

// roundTripFault runs one exchange against an upstream and returns the error of RoundTrip.
func roundTripFault(t *testing.T, addr string, limit time.Duration) (*Error, *http.Response) {
	t.Helper()
	fault := make(chan error, 1)
	p := startProxy(t, addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			up, err := p.take()
			if err != nil {
				t.Error(err)
				return
			}
			deadline := time.Time{}
			if limit > 0 {
				deadline = time.Now().Add(limit)
			}
			_, err = x.RoundTrip(up, deadline)
			fault <- err
			var e *Error
			if errors.As(err, &e) {
				_ = x.Reply(e.Status, nil)
			}
		}
	})
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, _ := c.answer("GET")
	var e *Error
	if err := <-fault; !errors.As(err, &e) {
		t.Fatalf("RoundTrip gave %v", err)
	}
	return e, resp
}

func TestFaultsOfTheUpstreamAreToldApart(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer string
		step   Step
		is     error
		got    bool
	}{
		{"closes without a word", "", ReadResponse, ErrTruncated, false},
		{"closes inside the head", "HTTP/1.1 200 OK\r\nA: b", ReadResponse, ErrTruncated, true},
		{"talks something else", "220 smtp.example ESMTP\r\n", ReadResponse, ErrMalformed, true},
		{"frames twice", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", ReadResponse, ErrMalformed, true},
		{"chunks badly", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ReadContent, ErrMalformed, true},
		{"switches unasked", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n", ReadResponse, errUnasked, true},
		{"large head", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", 70<<10) + "\r\n\r\n", ReadResponse, ErrTooLarge, true},
		{"hints for ever", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", maxInterim+1), ReadResponse, errInterim, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := rawUpstream(t, func(conn net.Conn, r *bufio.Reader) {
				_, _ = readHeadText(r)
				_, _ = io.WriteString(conn, c.answer)
			})
			e, resp := roundTripFault(t, addr, 0)
			wantError(t, e, SideUpstream, c.step)
			if !errors.Is(e, c.is) || !e.Sent || e.Got != c.got || e.Reused || e.Timeout || resp.StatusCode != 502 {
				t.Errorf("%+v, answered %d", e, resp.StatusCode)
			}
		})
	}
}

func TestTheDeadlinePasses(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	e, resp := roundTripFault(t, addr, 50*time.Millisecond)
	wantError(t, e, SideUpstream, ReadResponse)
	if !e.Timeout || !e.Sent || e.Got || resp.StatusCode != 504 {
		t.Errorf("%+v, answered %d", e, resp.StatusCode)
	}
}

func TestAServerThatSpeaksFirstIsHeard(t *testing.T) {
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, "HTTP/1.1 503 Full\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, r)
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for range 5 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.answer("GET"); resp.StatusCode != 503 {
			t.Errorf("%d", resp.StatusCode)
		}
	}
}

// The keep-alive race: the upstream closes a pooled connection while it is idle,
// or on receiving the next request.
func TestAStaleConnectionIsNoticed(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late %v", late), func(t *testing.T) {
			closed := make(chan bool, 8)
			addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
				_, _ = readHeadText(r)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				if late {
					_, _ = readHeadText(r)
				}
				c.Close()
				closed <- true
			})
			var faults []*Error
			p := startProxy(t, addr, func(p *proxy) {
				p.handler = func(x *Exchange) {
					for {
						up, _ := p.take()
						_, err := x.RoundTrip(up, time.Time{})
						if err == nil {
							_ = x.Relay(up)
							p.pool.Put(time.Now(), up)
							return
						}
						var e *Error
						errors.As(err, &e)
						faults = append(faults, e)
						if !x.CanRetry() {
							t.Errorf("no retry after %v", err)
							return
						}
					}
				}
			})
			c := dialRaw(t, p.addr())
			for i := range 2 {
				c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
				if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "ok" {
					t.Errorf("%d %q", resp.StatusCode, body)
				}
				if i == 0 && !late {
					<-closed
				}
			}
			on(p.l, func() {
				if len(faults) != 1 || !faults[0].Stale() || faults[0].Sent != late {
					t.Errorf("faults %+v", faults)
				}
			})
		})
	}
}

func TestBytesAfterTheResponseSpoilTheConnection(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
		"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
		"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
	} {
		addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
			for {
				if _, err := readHeadText(r); err != nil {
					return
				}
				_, _ = io.WriteString(c, answer)
			}
		})
		p := startProxy(t, addr, nil)
		c := dialRaw(t, p.addr())
		for range 2 {
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if _, body := c.answer("GET"); body != "ok" && body != "" {
				t.Errorf("%.40q: body %q", answer, body)
			}
		}
		if p.dialsMade() != 2 {
			t.Errorf("%.40q: %d dials, want one per exchange", answer, p.dialsMade())
		}
	}
}

func TestAClientThatLeavesInItsBodyTakesTheUpstreamAlong(t *testing.T) {
	for _, reset := range []bool{false, true} {
		ended := make(chan error, 1)
		addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
			_, _ = readHeadText(r)
			_, err := io.ReadAll(io.LimitReader(r, 1000))
			ended <- err
		})
		faults := make(chan error, 1)
		p := startProxy(t, addr, func(p *proxy) {
			p.handler = func(x *Exchange) {
				up, _ := p.take()
				_, err := x.RoundTrip(up, time.Time{})
				faults <- err
			}
		})
		c := dialRaw(t, p.addr())
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
		if reset {
			_ = c.SetLinger(0)
		}
		c.Close()
		wantError(t, <-faults, SideClient, ReadBody)
		<-ended // the upstream saw its connection end
		wantError(t, p.served(1)[0], SideClient, ReadBody)
	}
}

func TestABodyThatGoesBadIsAnsweredAndTheUpstreamCut(t *testing.T) {
	started, ended := make(chan bool), make(chan string, 1)
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		close(started)
		b, _ := io.ReadAll(r)
		ended <- string(b)
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	<-started
	c.send("3\nabc\r\n0\r\n\r\n")
	if resp, _ := c.answer("POST"); resp.StatusCode != 400 || !resp.Close {
		t.Errorf("%v", resp)
	}
	if body := <-ended; body != "3\r\nabc\r\n" {
		t.Errorf("the upstream got %q", body)
	}
}

func TestAClientThatLeavesWhileWaiting(t *testing.T) {
	for _, reset := range []bool{false, true} {
		started := make(chan bool)
		ended := make(chan bool)
		addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
			_, _ = readHeadText(r)
			close(started)
			_, _ = io.Copy(io.Discard, r)
			close(ended)
		})
		faults := make(chan error, 1)
		p := startProxy(t, addr, func(p *proxy) {
			p.cfg.HalfCloseGrace = 30 * time.Millisecond
			p.handler = func(x *Exchange) {
				up, _ := p.take()
				_, err := x.RoundTrip(up, time.Time{})
				faults <- err
			}
		})
		c := dialRaw(t, p.addr())
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-started
		if reset {
			_ = c.SetLinger(0)
		}
		c.Close()
		if e := wantError(t, <-faults, SideClient, ReadResponse); !errors.Is(e, ErrGone) {
			t.Errorf("%v", e)
		}
		<-ended
	}
}

func TestAHalfClosedClientGetsItsAnswer(t *testing.T) {
	release := make(chan bool)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		<-release
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})
	p := startProxy(t, addr, func(p *proxy) { p.cfg.HalfCloseGrace = -1 })
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
	} {
		c := dialRaw(t, p.addr())
		c.send(in)
		_ = c.CloseWrite()
		select {
		case release <- true:
		case <-time.After(10 * time.Second):
			t.Fatal("the request did not arrive")
		}
		if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
			t.Errorf("%v", resp)
		}
		c.ended()
	}
}

func TestAStalledReaderIsCutOffAndHoldsBoundedMemory(t *testing.T) {
	var wrote atomic.Int64
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
		b := make([]byte, 64<<10)
		for {
			n, err := c.Write(b)
			wrote.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	p := startProxy(t, addr, func(p *proxy) { p.cfg.StallTimeout = 300 * time.Millisecond })
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if e := wantError(t, p.served(1)[0], SideClient, WriteResponse); !e.Timeout {
		t.Errorf("%v", e)
	}
	if n := wrote.Load(); n > 64<<20 { // what the kernel's socket buffers may take
		t.Errorf("the upstream could write %d bytes that nobody read", n)
	}
}

func TestASlowReaderGetsAll(t *testing.T) {
	const size = 32 << 20 // more than the kernel holds
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, size)) })
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	b := make([]byte, 999)
	for {
		n, err := resp.Body.Read(b)
		total += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if total != size {
		t.Errorf("%d bytes", total)
	}
}

// flaky refuses the first request after reading its body, and echoes from then on.
func flaky(t *testing.T, first string) string {
	var n atomic.Int64
	return rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			if n.Add(1) == 1 {
				_, _ = io.WriteString(c, first)
				if first == "" {
					return
				}
				continue
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
}

func TestABodyIsSentAgain(t *testing.T) {
	for _, first := range []string{"", "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"} {
		for _, size := range []int{0, 10, 7 << 10, 30 << 10, 63 << 10, 200 << 10} {
			for _, chunked := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d bytes, chunked %v, %.12s", size, chunked, first), func(t *testing.T) {
					sendAgain(t, first, size, chunked)
				})
			}
		}
	}
}

func sendAgain(t *testing.T, first string, size int, chunked bool) {
	can := make(chan bool, 1)
	p := startProxy(t, flaky(t, first), func(p *proxy) {
		p.dial = func() (loop.Stream, error) {
			cut := loop.Dialer{Control: func(fd int, _ netip.AddrPort) error { // so that a write is cut short
				return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10)
			}}
			return p.l.Dial(cut, netip.MustParseAddrPort(p.upstream), time.Time{})
		}
		p.handler = func(x *Exchange) {
			for try := 0; ; try++ {
				up, _ := p.take()
				resp, err := x.RoundTrip(up, time.Time{})
				if err == nil && resp.Status == 503 {
					before := x.CanRetry()
					x.Discard(up)
					p.pool.Put(time.Now(), up)
					if after := x.CanRetry(); before && !after || size <= 10 && !before {
						t.Errorf("CanRetry %v with the response at hand, %v without it", before, after)
					}
				} else if err == nil {
					_ = x.Relay(up)
					p.pool.Put(time.Now(), up)
					return
				}
				if try == 0 {
					can <- x.CanRetry()
				}
				if !x.CanRetry() {
					_ = x.Reply(502, nil)
					return
				}
			}
		}
	})
	body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
	in := fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", size, body)
	if chunked {
		in = fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n", appendChunk(nil, []byte(body)))
	}
	c := dialRaw(t, p.addr())
	for range 2 { // the second time round shows that everything is still in step
		c.send(in)
	}
	want := 200
	if fits := size < 64<<10; <-can != fits {
		t.Errorf("CanRetry, want %v", fits)
	} else if !fits {
		want = 502
	}
	if resp, got := c.answer("POST"); resp.StatusCode != want || want == 200 && got != body {
		t.Fatalf("%d, %d bytes", resp.StatusCode, len(got))
	}
	if resp, got := c.answer("POST"); resp.StatusCode != 200 || got != body {
		t.Errorf("next request: %d, %d bytes", resp.StatusCode, len(got))
	}
	if first != "" && size < 64<<10 && p.dialsMade() != 1 {
		t.Errorf("%d dials: the discarded response spoiled its connection", p.dialsMade())
	}
}

func TestRepliesMadeHere(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) {
		p.handler = func(x *Exchange) {
			x.SetResponse("X-Request-ID", "5")
			if err := x.Reply(200, []byte("bad"), "X", "a\r\nb: c"); err == nil {
				t.Error("a line break in a field was taken")
			}
			if err := x.Reply(503, []byte("sorry"), "Content-Type", "text/plain"); err != nil {
				t.Error(err)
			}
			if err := x.Reply(200, nil); err == nil {
				t.Error("a second answer was taken")
			}
		}
	})
	c := dialRaw(t, p.addr())
	for _, method := range []string{"GET", "HEAD", "GET"} {
		c.send(method + " / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, body := c.answer(method)
		if resp.StatusCode != 503 || resp.ContentLength != 5 || resp.Header.Get("Date") == "" ||
			resp.Header.Get("Content-Type") != "text/plain" || resp.Header.Get("X-Request-Id") != "5" || (body == "sorry") != (method == "GET") {
			t.Errorf("%s: %v %q", method, resp, body)
		}
	}
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	for range 2 {
		if resp, _ := c.answer("GET"); resp.StatusCode != 503 || resp.Close {
			t.Errorf("the body was there: %v", resp)
		}
	}
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\nabc")
	if resp, _ := c.answer("POST"); resp.StatusCode != 503 || !resp.Close {
		t.Errorf("the body was not there: %v", resp)
	}
	c.ended()
}

func TestAnUpstreamThatStopsReading(t *testing.T) {
	over := make(chan bool)
	defer close(over)
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		<-over
	})
	faults := make(chan error, 1)
	p := startProxy(t, addr, func(p *proxy) {
		p.handler = func(x *Exchange) {
			up, _ := p.take()
			_, err := x.RoundTrip(up, time.Now().Add(200*time.Millisecond))
			faults <- err
			_ = x.Reply(504, nil)
		}
	})
	c := dialRaw(t, p.addr())
	written := make(chan bool)
	go func() {
		defer close(written)
		_, _ = fmt.Fprintf(c.TCPConn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", 64<<20)
		_, _ = c.TCPConn.Write(make([]byte, 64<<20))
	}()
	var e *Error
	if err := <-faults; !errors.As(err, &e) || e.Side != SideUpstream || !e.Timeout {
		t.Errorf("%v", err)
	}
	if resp, _ := c.answer("POST"); resp.StatusCode != 504 {
		t.Errorf("%v", resp)
	}
	<-written
}
