package h1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// text is so long, and no two parts of it are alike.
func text(size int) []byte { return longText()[:size:size] }

var longText = sync.OnceValue(func() []byte {
	b := make([]byte, 0, 5<<20)
	for i := 0; len(b) < cap(b); i++ {
		b = fmt.Appendf(b, "%07x\n", i)
	}
	return b
})

// pipes are those of the proxy's loop.
func (p *proxy) pipes() (lent, free int) {
	on(p.l, func() { lent, free = p.l.Pipes() })
	return lent, free
}

// holdPipes takes all the pipes there are.
func (p *proxy) holdPipes() (n int, free func()) {
	var held []*loop.Pipe
	on(p.l, func() {
		for {
			pipe, err := p.l.Pipe()
			if err != nil {
				return
			}
			held = append(held, pipe)
		}
	})
	return len(held), func() {
		on(p.l, func() {
			for _, pipe := range held {
				pipe.Free()
			}
		})
	}
}

// wantPipes checks that bodies went through a pipe, and that none is held.
func (p *proxy) wantPipes() {
	p.t.Helper()
	switch lent, free := p.pipes(); {
	case lent > 0:
		p.t.Errorf("%d pipes are held with nothing under way", lent)
	case free == 0:
		p.t.Error("no pipe was ever made: nothing was spliced")
	}
}

func TestLargeAndSmallBodiesInTurn(t *testing.T) {
	sizes := []int{48 << 10, 0, 5, spliceLeast - 1, spliceLeast, spliceLeast + 1, firstPiece, 5, largeBuffer, 1 << 20, 1<<20 + 1}
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := readHeadText(r)
			if err != nil {
				return
			}
			var n int
			_, _ = fmt.Sscanf(head[strings.Index(head, "/"):], "/%d", &n)
			answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n)
			switch method, _, _ := strings.Cut(head, " "); method {
			case "HEAD":
				_, err = io.WriteString(c, answer)
			case "OPTIONS":
				_, err = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			case "PATCH": // an answer in between, then one that repeats what is known
				_, err = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 304 Not Modified\r\nContent-Length: 99999\r\n\r\n")
			case "DELETE":
				_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", n, text(n))
			default:
				_, err = c.Write(append([]byte(answer), text(n)...))
			}
			if err != nil {
				return
			}
		}
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for _, n := range sizes {
		for _, method := range []string{"GET", "GET", "HEAD", "GET", "OPTIONS", "GET", "PATCH", "GET", "DELETE", "GET"} {
			if method == "DELETE" && n == 0 {
				continue // no chunk is empty
			}
			c.send(method + fmt.Sprintf(" /%d HTTP/1.1\r\nHost: a\r\n\r\n", n))
			resp, body := c.answer(method)
			want := text(n)
			if method == "HEAD" || method == "OPTIONS" || method == "PATCH" {
				want = nil
			}
			if body != string(want) {
				t.Fatalf("%s /%d: %s with %d bytes, not as they were sent", method, n, resp.Status, len(body))
			}
		}
	}
	if n := p.dialsMade(); n != 1 {
		t.Errorf("%d connections to the upstream: one was out of step", n)
	}
	p.wantPipes()
}

func TestWhatFollowsALargeBodyStaysBehind(t *testing.T) {
	const size = 100 << 10
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := readHeadText(r); err != nil {
				return
			}
			good := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, text(size))
			_, _ = c.Write(append(good, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"...))
		}
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for i := range 3 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, body := c.answer("GET"); body != string(text(size)) {
			t.Fatalf("answer %d: %d bytes, not those that were sent", i, len(body))
		}
		if c.r.Buffered() > 0 {
			t.Fatal("more came than the answer")
		}
	}
	if n := p.dialsMade(); n != 3 {
		t.Errorf("%d connections for 3 answers, each with something behind it", n)
	}
	p.wantPipes()
}

// cutUpstream answers each connection's first request whole and the second with
// half of what it promised, then cuts.
func cutUpstream(t *testing.T, head string, reset bool) string {
	return rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 200<<10, text(200<<10))
		_, _ = readHeadText(r)
		_, _ = io.WriteString(c, head)
		_, _ = c.Write(text(100 << 10))
		if reset {
			// A reset may overtake what was sent before it: wait until it is taken.
			_, _ = readHeadText(r)
			_ = c.(*net.TCPConn).SetLinger(0)
		}
	})
}

func TestALargeBodyThatIsCutShort(t *testing.T) {
	for _, version := range []string{"1.1", "1.0"} {
		t.Run("HTTP/"+version, func(t *testing.T) {
			p := startProxy(t, cutUpstream(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", 200<<10), false), nil)
			c := dialRaw(t, p.addr())
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			c.answer("GET")
			c.send("GET / HTTP/" + version + "\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); err == nil || !bytes.HasPrefix(text(100<<10), body) {
				t.Errorf("%d bytes and %v: the client took half for the whole", len(body), err)
			}
			if e := wantError(t, p.served(1)[0], SideUpstream, ReadContent); !errors.Is(e, ErrTruncated) {
				t.Errorf("%v", e)
			}
			p.wantPipes()
		})
	}
}

func TestABodyThatEndsWithItsConnectionIsSplicedToHTTP10(t *testing.T) {
	p := startProxy(t, cutUpstream(t, "HTTP/1.1 200 OK\r\n\r\n", false), nil)
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.answer("GET")
	c.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
	if _, body := c.answer("GET"); body != string(text(100<<10)) {
		t.Errorf("%d bytes", len(body))
	}
	p.served(1)
	p.wantPipes()
}

func TestAResetIsNotTheEndOfABody(t *testing.T) {
	taken := make(chan struct{})
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = readHeadText(r)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n\r\n%s", text(100<<10))
		<-taken
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	c.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err == nil {
		_, err = io.ReadFull(resp.Body, make([]byte, 100<<10))
	}
	if err != nil {
		t.Fatal(err)
	}
	close(taken)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the client took a cut body for a whole one")
	}
	wantError(t, p.served(1)[0], SideUpstream, ReadContent)
	p.wantPipes()
}

func TestAClientThatLeavesInALargeBody(t *testing.T) {
	for _, reset := range []bool{false, true} {
		ended := make(chan error, 1)
		addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
			_, _ = readHeadText(r)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
			_, err := io.Copy(c, zeros{})
			ended <- err
		})
		p := startProxy(t, addr, nil)
		c := dialRaw(t, p.addr())
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, err := io.CopyN(io.Discard, c.r, 3<<20); err != nil {
			t.Fatal(err)
		}
		if reset {
			_ = c.SetLinger(0)
		}
		c.Close()
		if err := <-ended; err == nil {
			t.Error("the upstream could send all of it")
		}
		wantError(t, p.served(1)[0], SideClient, WriteResponse)
		if lent, _ := p.pipes(); lent > 0 {
			t.Errorf("%d pipes are held", lent)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestPiecesOfALargeBodyArriveAsTheyCome(t *testing.T) {
	const pieces, piece = 40, 2 << 10
	whole := text(pieces * piece)
	seen := make(chan struct{})
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := readHeadText(r); err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(whole))
			<-seen
			for i := range pieces {
				_, _ = c.Write(whole[i*piece : (i+1)*piece])
				<-seen
			}
		}
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for range 2 { // the second time the proxy reads small pieces at first
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen <- struct{}{}
		b := make([]byte, piece)
		for i := range pieces {
			if _, err := io.ReadFull(resp.Body, b); err != nil || !bytes.Equal(b, whole[i*piece:(i+1)*piece]) {
				t.Fatalf("piece %d: %v", i, err)
			}
			if lent, _ := p.pipes(); i > smallFills && lent > 0 {
				t.Fatalf("after %d small pieces the body is still spliced", i)
			}
			seen <- struct{}{}
		}
		if _, err := resp.Body.Read(b); err != io.EOF {
			t.Fatalf("after the body: %v", err)
		}
	}
	p.wantPipes()
}

func TestWithoutAPipeBodiesAreCopied(t *testing.T) {
	whole := text(300 << 10)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b)
	})
	p := startProxy(t, addr, nil)
	held, free := p.holdPipes()
	defer free()
	c := httpClient(t)
	for range 3 {
		if _, body := do(t, c, newRequest(t, "POST", p.url(), bytes.NewReader(whole))); body != string(whole) {
			t.Fatalf("%d bytes came back", len(body))
		}
	}
	if lent, _ := p.pipes(); held == 0 || lent != held {
		t.Errorf("%d pipes are lent, %d of them to the test", lent, held)
	}
}

func TestALargeUploadAndWhatFollowsIt(t *testing.T) {
	const size = 5 << 20
	addr := rawUpstream(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := readHeadText(r)
			if err != nil {
				return
			}
			b := make([]byte, size)
			if strings.HasPrefix(head, "GET") {
				b = b[:0]
			}
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			verdict := "whole"
			if len(b) > 0 && !bytes.Equal(b, text(size)) {
				verdict = "wrong"
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%s", verdict)
		}
	})
	p := startProxy(t, addr, nil)
	c := dialRaw(t, p.addr())
	for range 2 {
		go func() { // the next request comes with the end of the body
			_, _ = c.Write(fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%sGET / HTTP/1.1\r\nHost: a\r\n\r\n", size, text(size)))
		}()
		for range 2 {
			if _, body := c.answer("GET"); body != "whole" {
				t.Fatalf("the upstream found the body %s", body)
			}
		}
	}
	if n := p.dialsMade(); n != 1 {
		t.Errorf("%d connections to the upstream", n)
	}
	p.wantPipes()
}

func TestALargeUploadThatBreaks(t *testing.T) {
	const size = 1 << 30
	for _, c := range []struct {
		name   string
		client func(*client)
		server func(net.Conn)
		side   Side
		steps  []Step
	}{
		{"the client sends FIN", func(c *client) { _ = c.CloseWrite() }, func(net.Conn) {}, SideClient, []Step{ReadBody}},
		{"the client resets", func(c *client) { _ = c.SetLinger(0); c.Close() }, func(net.Conn) {}, SideClient, []Step{ReadBody}},
		{"the upstream resets", func(*client) {}, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); c.Close() }, SideUpstream, []Step{WriteBody, ReadResponse}},
	} {
		t.Run(c.name, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan error, 1)
			addr := rawUpstream(t, func(conn net.Conn, r *bufio.Reader) {
				_, _ = readHeadText(r)
				_, err := io.CopyN(io.Discard, r, 4<<20)
				close(begun)
				c.server(conn)
				if err == nil {
					_, err = io.Copy(io.Discard, r)
				}
				ended <- err
			})
			faults := make(chan error, 1)
			again := make(chan bool, 1)
			p := startProxy(t, addr, func(p *proxy) {
				p.handler = func(x *Exchange) {
					up, _ := p.take()
					_, err := x.RoundTrip(up, time.Time{})
					again <- x.CanRetry()
					faults <- err
					_ = x.Reply(http.StatusBadGateway, nil)
				}
			})
			cl := dialRaw(t, p.addr())
			cl.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size))
			written := make(chan struct{})
			go func() {
				defer close(written)
				_, _ = io.Copy(cl.TCPConn, io.LimitReader(zeros{}, 8<<20))
			}()
			<-begun
			if c.side == SideClient {
				<-written
			}
			c.client(cl)
			if <-again {
				t.Error("a body that was spliced may be sent again")
			}
			var e *Error
			if err := <-faults; !errors.As(err, &e) || e.Side != c.side || e.Step != c.steps[0] && e.Step != c.steps[len(c.steps)-1] {
				t.Errorf("got %v, want a fault of the %v", err, c.side)
			}
			<-ended
			cl.Close()
			<-written
			p.served(1)
			if lent, _ := p.pipes(); lent > 0 {
				t.Errorf("%d pipes are held", lent)
			}
		})
	}
}

// BenchmarkUpload is a body of 8 MiB, spliced and not. CPU is that of the whole
// process: client, proxy and server.
func BenchmarkUpload(b *testing.B) {
	for _, how := range []string{"spliced", "copied"} {
		b.Run(how, func(b *testing.B) {
			upload(b, how == "copied")
		})
	}
}

func upload(b *testing.B, copied bool) {
	const size = 8 << 20
	ln := listen(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for r := bufio.NewReaderSize(c, 256<<10); ; {
			if _, err := readHeadText(r); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, r, size); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	}()
	p := startProxy(b, ln.Addr().String(), nil)
	if copied {
		_, free := p.holdPipes()
		defer free()
	}
	c, err := net.Dial("tcp", p.addr())
	if err != nil {
		b.Fatal(err)
	}
	r, body := bufio.NewReader(c), make([]byte, size)
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	for b.Loop() {
		_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size)
		_, _ = c.Write(body)
		if _, err := readHeadText(r); err != nil {
			b.Fatal(err)
		}
	}
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(b.N)/1e3, "cpu-µs/op")
	b.SetBytes(size)
	c.Close()
	ln.Close()
	on(p.l, p.pool.Close)
	<-done
}
