package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryAddressIsServed(t *testing.T) {
	r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0", "[::1]:0"}}), greet)
	for _, addr := range r.Addrs() {
		expect(t, dial(t, addr), "hello")
	}
	if f := r.Figures(); f.Accepted != 2 {
		t.Errorf("%+v", f)
	}
	r.cancel()
	r.wantEnd(t)
}

func TestBothFamiliesTakeTheSamePort(t *testing.T) {
	first := bindTo(t, Config{Addrs: []string{"0.0.0.0:0"}})
	defer first.Close()
	port := first.Addrs()[0].Port()
	second, err := New(Config{Addrs: []string{netip.AddrPortFrom(netip.IPv6Unspecified(), port).String()}})
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

func TestAddressesThatCannotBeBound(t *testing.T) {
	taken := bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}})
	defer taken.Close()
	addr := taken.Addrs()[0].String()
	for _, tc := range []struct {
		addrs []string
		words []string
		is    error
	}{
		{[]string{"127.0.0.1:0", addr}, []string{addr, "in use by another program"}, unix.EADDRINUSE},
		{[]string{"192.0.2.1:1"}, []string{"192.0.2.1:1", "does not have the address"}, unix.EADDRNOTAVAIL},
		{[]string{"localhost:1"}, []string{"localhost:1"}, nil},
		{[]string{"127.0.0.1"}, []string{"127.0.0.1", "port"}, nil},
		{nil, []string{"no address"}, nil},
	} {
		l, err := New(Config{Addrs: tc.addrs})
		if err == nil {
			l.Close()
			t.Errorf("%v: was bound", tc.addrs)
			continue
		}
		for _, w := range tc.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v: %q does not say %q", tc.addrs, err, w)
			}
		}
		if tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%v: %v is not %v", tc.addrs, err, tc.is)
		}
	}
}

// heard is what a handler is told of where a connection was going.
type heard struct {
	dst        netip.AddrPort
	redirected bool
	err        error
}

func TestOriginalDestination(t *testing.T) {
	none := errors.New("no entry in conntrack")
	service := netip.MustParseAddrPort("240.240.0.7:80")
	mapped := netip.MustParseAddrPort("[::ffff:240.240.0.7]:80")
	for _, tc := range []struct {
		name   string
		answer func(syscall.Conn) (netip.AddrPort, error)
		want   func(local netip.AddrPort) heard
	}{
		{"nothing is redirected", nil, func(l netip.AddrPort) heard { return heard{dst: l} }},
		{"redirected", func(syscall.Conn) (netip.AddrPort, error) { return service, nil },
			func(netip.AddrPort) heard { return heard{dst: service, redirected: true} }},
		{"in mapped form", func(syscall.Conn) (netip.AddrPort, error) { return mapped, nil },
			func(netip.AddrPort) heard { return heard{dst: service, redirected: true} }},
		{"sent to the listener itself", func(c syscall.Conn) (netip.AddrPort, error) {
			return c.(interface{ Local() netip.AddrPort }).Local(), nil
		}, func(l netip.AddrPort) heard { return heard{dst: l} }},
		{"not known", func(syscall.Conn) (netip.AddrPort, error) { return netip.AddrPort{}, none },
			func(l netip.AddrPort) heard { return heard{dst: l, err: none} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := make(chan heard, 1)
			var at, peer netip.AddrPort
			// One socket for both families: there IPv4 comes in mapped form.
			r := run(t, bindTo(t, Config{Addrs: []string{":0"}, OriginalDst: tc.answer}),
				func(c *Conn) {
					at = c.Local()
					h := heard{c.OriginalDst(), c.Redirected(), c.OriginalDstErr()}
					c.Close()
					peer = c.Peer()
					got <- h
				})
			local := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.Addrs()[0].Port())
			client := dial(t, local)
			if got, want := recv(t, got, "the handler"), tc.want(local); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
			if at != local || peer != client.LocalAddr().(*net.TCPAddr).AddrPort() {
				t.Errorf("from %v to %v", peer, at)
			}
		})
	}
}

func TestAPanicCostsOneConnection(t *testing.T) {
	core, logs := observer.New(zapcore.ErrorLevel)
	calls := atomic.Int32{}
	r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}, MaxConns: 1, Log: zap.New(core)}),
		func(c *Conn) {
			io.ReadFull(c, make([]byte, 1))
			if calls.Add(1) == 1 {
				io.WriteString(c, "half an ans")
				panic("oh no")
			}
			greet(c)
		})
	first, second := dial(t, r.Addrs()[0]), dial(t, r.Addrs()[0])
	io.WriteString(first, "?")
	expectReset(t, first)
	io.WriteString(second, "?")
	expect(t, second, "hello")
	r.cancel()
	r.wantEnd(t)
	if f := r.Figures(); f.Panics != 1 || f.Active != 0 {
		t.Errorf("%+v", f)
	}
	if logs.Len() != 1 || !strings.Contains(logs.All()[0].ContextMap()["stack"].(string), "listen_test.go") {
		t.Errorf("logged: %+v", logs.All())
	}
}

func TestAtTheBoundNewcomersWait(t *testing.T) {
	release := make(chan struct{})
	var now, most atomic.Int32
	l := bindTo(t, Config{Addrs: []string{"127.0.0.1:0", "[::1]:0"}, MaxConns: 2})
	r := run(t, l, func(c *Conn) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		c.Loop().Block(func() { <-release })
		io.WriteString(c, "served")
		c.Close()
	})
	var clients []net.Conn
	for i := range 8 {
		clients = append(clients, dial(t, r.Addrs()[i%2])) // nobody is refused
	}
	waitFor(t, "two handlers, and others that wait", func() bool {
		f := r.Figures()
		return f.Active == 2 && f.Waits >= 1
	})
	close(release)
	for _, c := range clients {
		expect(t, c, "served")
	}
	if most.Load() != 2 {
		t.Errorf("%d handlers ran at once", most.Load())
	}
}

func TestDrainWaitsForTheHandlers(t *testing.T) {
	entered, draining := make(chan struct{}), make(chan struct{})
	r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}}), func(c *Conn) {
		c.Loop().Block(func() { entered <- struct{}{}; <-draining })
		if !c.Listener().Draining() || c.Closed() {
			t.Error("the handler cannot tell, or was cut at the start of the drain")
		}
		io.WriteString(c, "bye")
		c.Close()
	})
	c := dial(t, r.Addrs()[0])
	recv(t, entered, "the handler")
	go func() {
		for !r.Draining() {
			time.Sleep(time.Millisecond)
		}
		close(draining)
	}()
	if cut := r.Drain(t.Context()); cut != 0 {
		t.Errorf("%d were cut", cut)
	}
	expect(t, c, "bye")
	r.wantEnd(t)
	if _, err := net.Dial("tcp", r.Addrs()[0].String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial after the drain: %v", err)
	}
}

func TestADrainBeginsWhatIsParked(t *testing.T) {
	parked := make(chan struct{}, 1)
	r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}}), func(c *Conn) {
		c.Read(make([]byte, 10))
		c.Park(loop.Func(func() {
			if !c.Listener().Draining() {
				t.Error("begun for no reason")
			}
			c.Close()
		}))
		parked <- struct{}{}
	})
	c := dial(t, r.Addrs()[0])
	io.WriteString(c, "x")
	recv(t, parked, "the handler")
	if cut := r.Drain(t.Context()); cut != 0 {
		t.Errorf("%d were cut", cut)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

func TestAfterTheDeadlineConnectionsAreCut(t *testing.T) {
	for _, stubborn := range []string{"is parked", "reads"} {
		t.Run(stubborn, func(t *testing.T) {
			entered := make(chan struct{}, 1)
			r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}}), func(c *Conn) {
				entered <- struct{}{}
				if stubborn == "reads" {
					io.Copy(io.Discard, c)
				} else {
					stayParked(c)
				}
			})
			c := dial(t, r.Addrs()[0])
			recv(t, entered, "the handler")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if cut := r.Drain(ctx); cut != 1 {
				t.Errorf("%d were cut", cut)
			}
			expectReset(t, c)
			r.wantEnd(t)
			if f := r.Figures(); f.Cut != 1 || f.Active != 0 {
				t.Errorf("%+v", f)
			}
		})
	}
}

// stayParked does nothing about whatever happens.
func stayParked(c *Conn) {
	if _, err := c.TryRead(make([]byte, 1)); !c.Closed() && err == loop.ErrWouldBlock {
		c.Park(loop.Func(func() { stayParked(c) }))
	}
}

func TestTheEndOfRunsContextIsTheHardEnd(t *testing.T) {
	r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}, MaxConns: 1}), func(c *Conn) {
		io.WriteString(c, "x")
		io.Copy(io.Discard, c)
	})
	served, waiting := dial(t, r.Addrs()[0]), dial(t, r.Addrs()[0])
	expect(t, served, "x")
	waitFor(t, "the bound", func() bool { return r.Figures().Waits == 1 })
	r.cancel()
	r.wantEnd(t)
	expectReset(t, served)
	if _, err := waiting.Read(make([]byte, 1)); err == nil {
		t.Error("the one that waited was served")
	}
}

func TestLoopsShareTheConnections(t *testing.T) {
	var mu sync.Mutex
	shards := map[int]int{}
	r := runOn(t, 3, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}}), func(c *Conn) {
		mu.Lock()
		shards[c.Shard()]++
		mu.Unlock()
		io.WriteString(c, "hello")
		io.Copy(io.Discard, c)
		c.Close()
	})
	const n = 90
	for range n {
		expect(t, dial(t, r.Addrs()[0]), "hello")
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range 3 {
		if shards[i] < n/3-2*lead {
			t.Errorf("loop %d has %d of %d", i, shards[i], n)
		}
	}
}

func TestDrainWithoutRun(t *testing.T) {
	l := bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}})
	if cut := l.Drain(t.Context()); cut != 0 {
		t.Errorf("%d were cut", cut)
	}
	if err := l.Run(t.Context(), nil, greet); err != nil {
		t.Errorf("Run after Drain: %v", err)
	}
}

func TestConnectionsInheritTheirOptions(t *testing.T) {
	handed, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	options := make(chan [6]int, 1)
	r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}, Listeners: []*net.TCPListener{handed}}),
		func(c *Conn) {
			options <- optionsOf(c.FD())
			c.Close()
		})
	for i, addr := range r.Addrs() {
		dial(t, addr)
		if got, want := recv(t, options, "a handler"), [6]int{1, 30, 10, 3, 1, 1}; got != want {
			t.Errorf("socket %d: keepalive, idle, interval, count, nodelay, oobinline are %v, want %v", i, got, want)
		}
	}
}

func optionsOf(fd int) (o [6]int) {
	for i, opt := range [][2]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.SOL_SOCKET, unix.SO_OOBINLINE},
	} {
		o[i], _ = unix.GetsockoptInt(fd, opt[0], opt[1])
	}
	return o
}

func TestHandOverRefusesNobody(t *testing.T) {
	old := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}}), greet)
	addr := old.Addrs()[0]
	files, err := old.Files()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	served := atomic.Int32{}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(c)
			if err != nil || string(got) != "hello" {
				t.Errorf("read %q, %v", got, err)
			}
			served.Add(1)
			c.Close()
		}
	})
	ln, err := net.FileListener(files[0])
	if err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	next := run(t, bindTo(t, Config{Listeners: []*net.TCPListener{ln.(*net.TCPListener)}}), greet)
	if old.Drain(t.Context()) != 0 {
		t.Error("the drain cut connections")
	}
	after := served.Load()
	waitFor(t, "connections served by the new one", func() bool { return served.Load() > after+20 })
	close(stop)
	wg.Wait()
	if next.Addrs()[0] != addr {
		t.Errorf("the new one listens on %v, not %v", next.Addrs()[0], addr)
	}
}
