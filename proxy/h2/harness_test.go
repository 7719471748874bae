package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proxy serves connections on a loop with handler, towards the address in upstream.
type proxy struct {
	t        testing.TB
	l        *loop.Loop
	port     int
	server   *Server
	cfg      Config
	upstream string
	pools    map[string]*Pool
	handler  Handler
	dial     func(addr string) (loop.Stream, error)
	accepted func(loop.Stream) (loop.Stream, error) // wraps an accepted connection, in a task
	panics   func(any, []byte)
	peek     int // so many bytes are read before the server begins

	connects bool // offers extended CONNECT

	draining bool // on the loop
	conns    map[*Conn]bool
	mu       sync.Mutex
	errs     []error // what connections ended with
	failures []*Error
	dialed   int
}

// startProxy serves until the test ends; it then waits for every connection.
func startProxy(t testing.TB, upstream string, change func(*proxy)) *proxy {
	t.Helper()
	p := &proxy{t: t, upstream: upstream, pools: map[string]*Pool{}, conns: map[*Conn]bool{}}
	p.handler = func(x *Exchange) { p.forward(x, p.upstream) }
	p.dial = func(addr string) (loop.Stream, error) {
		return p.l.Dial(loop.Dialer{}, netip.MustParseAddrPort(addr), time.Time{})
	}
	if change != nil {
		change(p)
	}
	p.server = NewServer(p.cfg)
	p.l = turn(t, p.panics)
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

// handle has requests from now on handled by h.
func (p *proxy) handle(h Handler) { on(p.l, func() { p.handler = h }) }

// turn runs a loop until the test ends.
func turn(t testing.TB, panics func(any, []byte)) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Config{Panicked: panics})
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

// testUser is the owner of a connection.
type testUser struct {
	p *proxy
	c Conn
}

func (u *testUser) Handle(x *Exchange) { u.p.handler(x) }
func (u *testUser) Draining() bool     { return u.p.draining }
func (u *testUser) Connects() bool     { return u.p.connects }
func (u *testUser) Ended(err error) {
	delete(u.p.conns, &u.c)
	u.p.mu.Lock()
	defer u.p.mu.Unlock()
	u.p.errs = append(u.p.errs, err)
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
	var peeked []byte
	if p.peek > 0 {
		peeked = make([]byte, p.peek)
		if _, err := io.ReadFull(s, peeked); err != nil {
			p.t.Error(err)
		}
	}
	u := &testUser{p: p}
	p.conns[&u.c] = true
	p.server.Begin(&u.c, s, peeked, u)
}

// drain ends connections after the exchanges at hand.
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

// pool has the connections to an address.
func (p *proxy) pool(addr string) *Pool {
	pool := p.pools[addr]
	if pool == nil {
		pool = NewPool(PoolConfig{Config: p.cfg})
		p.pools[addr] = pool
	}
	return pool
}

func (p *proxy) take(addr string) (*Upstream, error) {
	pool := p.pool(addr)
	if up := pool.Get(p.l.Now()); up != nil {
		return up, nil
	}
	return pool.Take(p.l, time.Time{}, func() (loop.Stream, error) {
		p.mu.Lock()
		p.dialed++
		p.mu.Unlock()
		return p.dial(addr)
	})
}

// forward is what a composing package does, in small.
func (p *proxy) forward(x *Exchange, addr string) {
	for try := 0; ; try++ {
		up, err := p.take(addr)
		if err != nil {
			_ = x.Reply(http.StatusBadGateway, nil)
			return
		}
		_, err = x.RoundTrip(up, time.Time{})
		if err == nil {
			p.note(x.Relay(up))
			p.pool(addr).Put(p.l.Now(), up)
			return
		}
		e := p.note(err)
		if e.Stale() && !e.Sent && x.CanRetry() && try < 3 {
			continue
		}
		if e.Side != SideClient || e.Timeout {
			_ = x.Reply(e.Status, []byte(e.Error()))
		}
		return
	}
}

// note keeps what went wrong.
func (p *proxy) note(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		p.t.Errorf("gave %T %v, not an *Error", err, err)
		return &Error{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = append(p.failures, e)
	return e
}

// eventually polls for what another goroutine brings about, 20 s at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 4000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s did not happen", what)
}

// failed waits until n exchanges have failed and returns how.
func (p *proxy) failed(n int) (es []*Error) {
	p.t.Helper()
	eventually(p.t, "the failure of an exchange", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		es = append([]*Error(nil), p.failures...)
		return len(es) >= n
	})
	return es
}

// served waits until n connections have ended and returns what they ended with.
func (p *proxy) served(n int) (errs []error) {
	p.t.Helper()
	eventually(p.t, "the end of a connection", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		errs = append([]error(nil), p.errs...)
		return len(errs) >= n
	})
	return errs
}

// active is how many requests are handled.
func (p *proxy) active() (n int) {
	on(p.l, func() {
		for c := range p.conns {
			n += c.Streams()
		}
	})
	return n
}

// backend is a server of the standard library that speaks HTTP/2 with prior knowledge.
func backend(t testing.TB, h http.HandlerFunc) string {
	return start(t, &http.Server{Handler: h})
}

// roomyBackend is one whose connection has room for many streams that stall.
func roomyBackend(t testing.TB, h http.HandlerFunc) string {
	return start(t, &http.Server{Handler: h, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 64 << 20, MaxReceiveBufferPerStream: 1 << 20}})
}

func start(t testing.TB, srv *http.Server) string {
	t.Helper()
	ln := listen(t)
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetUnencryptedHTTP2(true)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	return ln.Addr().String()
}

// newClient is a client of the standard library that speaks HTTP/2 with prior knowledge.
func newClient(t testing.TB) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 60 * time.Second} // a guard, not a measure
}

// read is a response's body.
func read(t testing.TB, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Errorf("read the body: %v", err)
	}
	return string(b)
}

func get200(t testing.TB, c *http.Client, url string) string {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body := read(t, r)
	if r.StatusCode != 200 {
		t.Fatalf("%s: %s", r.Status, body)
	}
	return body
}

func newRequest(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func dialLoop(l *loop.Loop, addr string) (loop.Stream, error) {
	return l.Dial(loop.Dialer{}, netip.MustParseAddrPort(addr), time.Time{})
}
