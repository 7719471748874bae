package h1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proxy serves connections on a loop with handler, towards the address in
// upstream.
type proxy struct {
	t        testing.TB
	l        *loop.Loop
	port     int
	server   *Server
	cfg      Config
	upstream string
	pool     *Pool
	handler  Handler
	dial     func() (loop.Stream, error)
	accepted func(loop.Stream) (loop.Stream, error) // wraps an accepted connection, in a task

	draining bool // on the loop
	mu       sync.Mutex
	errs     []error // what connections ended with
	dialed   int
}

// startProxy serves until the test ends; it then waits for every connection.
func startProxy(t testing.TB, upstream string, change func(*proxy)) *proxy {
	t.Helper()
	p := &proxy{t: t, upstream: upstream, pool: NewPool(PoolConfig{})}
	p.handler = p.forward
	p.dial = func() (loop.Stream, error) {
		return p.l.Dial(loop.Dialer{}, netip.MustParseAddrPort(p.upstream), time.Time{})
	}
	if change != nil {
		change(p)
	}
	p.server = NewServer(p.cfg)
	p.l = turn(t)
	ln := listen(t).(*net.TCPListener)
	p.port = ln.Addr().(*net.TCPAddr).Port
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // as proxy/listen does
	on(p.l, func() {
		_, err = p.l.Accept(fd, func(fd int, _ netip.AddrPort) {
			c := p.l.Adopt(fd)
			c.Go(func() { p.serve(c) })
		}, func(error) time.Duration { return time.Millisecond })
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// turn runs a loop until the test ends.
func turn(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// on runs f as a task of the loop and waits for it.
func on(l *loop.Loop, f func()) {
	done := make(chan struct{})
	if l.Post(func() { l.Go(func() { defer close(done); f() }) }) {
		<-done
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (p *proxy) serve(c *loop.Conn) {
	var s loop.Stream = c
	if p.accepted != nil {
		var err error
		if s, err = p.accepted(s); err != nil {
			p.t.Error(err)
			return
		}
	}
	p.server.Serve(s, nil, func() bool { return p.draining }, p.handler, func(err error) {
		p.mu.Lock()
		p.errs = append(p.errs, err)
		p.mu.Unlock()
	})
}

// drain ends connections after the exchange at hand.
func (p *proxy) drain() {
	on(p.l, func() {
		p.draining = true
		p.l.Each(func(c *loop.Conn) {
			if c.Parked() {
				c.Wake()
			}
		})
	})
}

func (p *proxy) addr() string {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(p.port)).String()
}

func (p *proxy) url() string { return "http://" + p.addr() }

// dialsMade is how many upstream connections were made.
func (p *proxy) dialsMade() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dialed
}

// idle is how many connections the pool has.
func (p *proxy) idle() (n int) {
	on(p.l, func() { n = p.pool.Len() })
	return n
}

func (p *proxy) take() (*Upstream, error) {
	if up := p.pool.Get(time.Now()); up != nil {
		return up, nil
	}
	p.mu.Lock()
	p.dialed++
	p.mu.Unlock()
	c, err := p.dial()
	if err != nil {
		return nil, err
	}
	return NewUpstream(c), nil
}

// forward is what a composing package does, in small.
func (p *proxy) forward(x *Exchange) {
	for try := 0; ; try++ {
		up, err := p.take()
		if err != nil {
			_ = x.Reply(http.StatusBadGateway, nil)
			return
		}
		_, err = x.RoundTrip(up, time.Time{})
		if err == nil {
			_ = x.Relay(up)
			p.pool.Put(time.Now(), up)
			return
		}
		var e *Error
		if !errors.As(err, &e) {
			p.t.Errorf("RoundTrip gave %T %v, not an *Error", err, err)
		}
		if e.Stale() && x.CanRetry() && try < 3 {
			continue
		}
		_ = x.Reply(e.Status, []byte(e.Error()))
		return
	}
}

// served waits until n connections have ended and returns what they ended with.
func (p *proxy) served(n int) []error {
	p.t.Helper()
	for range 1000 {
		p.mu.Lock()
		errs := append([]error(nil), p.errs...)
		p.mu.Unlock()
		if len(errs) >= n {
			return errs
		}
		time.Sleep(5 * time.Millisecond) // polled, bounded by 5 s
	}
	p.t.Fatalf("%d connections have not ended", n)
	return nil
}

// rawUpstream accepts connections and runs script on each.
func rawUpstream(t *testing.T, script func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	ln := listen(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				script(c, bufio.NewReader(c))
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// readHeadText reads up to and with the empty line.
func readHeadText(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

// client is a raw connection to a proxy.
type client struct {
	t *testing.T
	*net.TCPConn
	r *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a guard, not a measure
	return &client{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.TCPConn, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// answer reads one final response whole; its body is in the string.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read response: %v", err)
	}
	if resp.StatusCode < 200 {
		return c.answer(method)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read response body: %v", err)
	}
	return resp, string(body)
}

// ended checks that nothing more comes.
func (c *client) ended() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if len(rest) > 0 {
		c.t.Errorf("%d bytes after the last answer: %.80q", len(rest), rest)
	}
	if isTimeout(err) {
		c.t.Errorf("the connection was not closed")
	}
}
