package proxy

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
)

// What a connection allocates until it is idle, and what of that stays. Client and
// backend are bare descriptors, which allocate nothing.
func TestAConnectionAllocatesAndKeepsLittle(t *testing.T) {
	for name, c := range map[string]struct {
		protocol, says, answer string
		allocations, kept      int
	}{
		"by connection": {"tcp", "x", "y", 5, 400},
		"by request":    {"http", pathRequest, pathAnswer, 5, 320},
	} {
		t.Run(name, func(t *testing.T) {
			r := newIdling(t, c.protocol)
			defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would empty the pools
			const warm, many = 100, 400
			r.open(warm, c.says, c.answer)
			heap := heapAlloc()
			r.open(warm, c.says, c.answer) // the pools are filled again
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r.open(many, c.says, c.answer)
			runtime.ReadMemStats(&after)
			allocations := int(after.Mallocs-before.Mallocs) / many
			kept := (heapAlloc() - heap) / (warm + many)
			t.Logf("%d allocations, %d bytes kept", allocations, kept)
			if raceEnabled {
				return // sync.Pool drops at random under the race detector
			}
			if allocations > c.allocations || kept > c.kept {
				t.Errorf("%d allocations and %d bytes kept, not %d and %d", allocations, kept, c.allocations, c.kept)
			}
		})
	}
}

// heapAlloc is what lives, pools being empty.
func heapAlloc() int {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// idling is a sidecar's way out between bare descriptors.
type idling struct {
	t         testing.TB
	proxy     unix.SockaddrInet4
	backend   int // listens
	clients   []int
	upstreams []int
	http      bool
	buf       []byte
}

func newIdling(t testing.TB, protocol string) *idling {
	r := &idling{t: t, http: protocol == "http", buf: make([]byte, 4096), clients: make([]int, 0, 1000), upstreams: make([]int, 0, 1000)}
	t.Cleanup(r.close)
	var at netip.AddrPort
	r.backend, at = bareListener(t)
	p := sidecar(t)
	svc := usersWith(endpointOf("a", at.String(), func(e *policy.Target) { e.Protocol = protocol }))
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	if err := p.makeLoops(); err != nil {
		t.Fatal(err)
	}
	l := p.loops[0]
	turned := make(chan struct{})
	go func() { defer close(turned); l.Run() }()
	t.Cleanup(func() { l.Close(); <-turned })
	ln, err := listen.New(listen.Config{Addrs: []string{"127.0.0.1:0"}, OriginalDst: func(syscall.Conn) (netip.AddrPort, error) { return at, nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	d := p.dests.Load().byName[users]
	go func() { ended <- ln.Run(ctx, []*loop.Loop{l}, func(lc *listen.Conn) { p.serveService(lc, d) }) }()
	t.Cleanup(func() {
		if stop(); <-ended != nil {
			t.Error("the listener failed")
		}
	})
	r.proxy = unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(ln.Addrs()[0].Port())}
	return r
}

// open makes n connections with one exchange on each.
func (r *idling) open(n int, says, answer string) {
	r.t.Helper()
	for range n {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			r.clients = append(r.clients, c)
			err = unix.Connect(c, &r.proxy)
		}
		if err != nil {
			r.t.Fatal(err)
		}
		r.write(c, says)
		if !r.http || len(r.upstreams) == 0 {
			up, _, errno := unix.Syscall(unix.SYS_ACCEPT, uintptr(r.backend), 0, 0)
			if errno != 0 {
				r.t.Fatal(errno)
			}
			r.upstreams = append(r.upstreams, int(up))
		}
		up := r.upstreams[len(r.upstreams)-1]
		r.read(up, says)
		r.write(up, answer)
		r.read(c, answer)
	}
}

func (r *idling) close() {
	for _, fd := range append(r.clients, r.upstreams...) {
		_ = unix.Close(fd)
	}
}

func (r *idling) write(fd int, text string) {
	if _, err := unix.Write(fd, append(r.buf[:0], text...)); err != nil {
		r.t.Fatal(err)
	}
}

// read reads until what came ends as text does.
func (r *idling) read(fd int, text string) {
	for {
		n, err := unix.Read(fd, r.buf)
		if err != nil || n == 0 {
			r.t.Fatal(n, err)
		}
		if r.buf[n-1] == text[len(text)-1] {
			return
		}
	}
}

func bareListener(t testing.TB) (fd int, at netip.AddrPort) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	return fd, ln.Addr().(*net.TCPAddr).AddrPort()
}
