package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
)

// script is a stream that reads the same bytes again and again and forgets what
// is written: what a request costs without the kernel.
type script struct {
	*loop.Conn
	says []byte
	left int // times
}

func (s *script) Readable() bool { return true }

func (s *script) WaitRead() error { return nil }

func (s *script) TryRead(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	return copy(b, s.says), nil
}

func (s *script) Read(b []byte) (int, error)  { return s.TryRead(b) }
func (s *script) Write(b []byte) (int, error) { return len(b), nil }
func (s *script) Close() error                { return nil }

const (
	pathRequest = "GET /orders/17?full=1 HTTP/1.1\r\nHost: users\r\nUser-Agent: bench/1\r\nAccept: */*\r\nX-Trace: 00-aa-bb-01\r\n\r\n"
	pathAnswer  = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: app\r\nContent-Length: 5\r\n\r\nhello"
)

// path is the whole way of requests, policy and all, between two scripts;
// outwards unless another handler is put in.
type path struct {
	t      testing.TB
	p      *Proxy
	l      *loop.Loop
	conn   *outboundConn
	serve  h1.Handler
	client *script
	up     *script
}

func newPathOut(t testing.TB) *path {
	p := sidecar(t)
	svc := usersWith(endpointOf("a", "127.0.0.1:1"))
	svc.Traffic.RateLimit = policy.RateLimit{Limit: 16_000_000, Window: time.Minute}
	svc.Traffic.Breaker = policy.Breaker{Enabled: true, Threshold: 5, Timeout: time.Minute}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	o := &path{t: t, p: p, l: l}
	lc := redirected(t, l)
	o.on(func() {
		o.conn = &outboundConn{p: p, lc: lc, dest: p.dests.Load().byName[users]}
		o.serve = o.conn.Handle
		o.client = &script{Conn: &lc.Conn, says: []byte(pathRequest)}
		o.up = &script{Conn: &lc.Conn, says: []byte(pathAnswer)}
		p.dests.Load().byName[users].choose("", 0).endpoints[0].kept[0].h1.Put(l.Now(), h1.NewUpstream(o.up))
	})
	return o
}

// turning is the first of the proxy's loops, which turns until the test ends.
func turning(t testing.TB, p *Proxy) *loop.Loop {
	if err := p.makeLoops(); err != nil {
		t.Fatal(err)
	}
	l, ended := p.loops[0], make(chan struct{})
	go func() { defer close(ended); l.Run() }()
	t.Cleanup(func() { l.Close(); <-ended; p.closeAcross() })
	return l
}

// redirected is a connection on the loop that was going to a virtual address.
func redirected(t testing.TB, l *loop.Loop) *listen.Conn {
	lc, _ := redirectedPair(t, l)
	return lc
}

// redirectedPair is redirected with the app's end.
func redirectedPair(t testing.TB, l *loop.Loop) (*listen.Conn, net.Conn) {
	ln, err := listen.New(listen.Config{Addrs: []string{"127.0.0.1:0"}, OriginalDst: func(syscall.Conn) (netip.AddrPort, error) {
		return netip.MustParseAddrPort("240.240.0.1:1"), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	accepted, ended := make(chan *listen.Conn, 1), make(chan struct{})
	go func() {
		defer close(ended)
		if err := ln.Run(ctx, []*loop.Loop{l}, func(lc *listen.Conn) { accepted <- lc }); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	c, err := net.Dial("tcp", ln.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return <-accepted, c
}

func (o *path) on(f func()) {
	done := make(chan struct{})
	o.l.Post(func() { o.l.Go(func() { defer close(done); f() }) })
	<-done
}

// requests carries n of them; on the loop.
func (o *path) requests(n int) {
	o.client.left, o.up.left = n, n
	o.p.h1.Serve(o.client, nil, func() bool { return false }, o.serve, func(err error) {
		if err != nil {
			o.t.Error(err)
		}
	})
	if o.up.left != 0 {
		o.t.Errorf("%d requests did not come through", o.up.left)
	}
}

// newPathIn is the same inwards, from an authenticated caller whom a rule allows.
func newPathIn(t testing.TB) *path {
	o := newPathOut(t)
	in := policy.Inbound{Service: o.p.cfg.Service, MTLS: policy.Strict}
	for _, name := range []string{"other", "users"} {
		in.Rules = append(in.Rules, policy.InboundRule{SecurityRule: policy.SecurityRule{
			ID: name, SourceNamespace: "default", SourceService: name, DestinationNamespace: "default", DestinationService: "front", AllowedMethods: policy.DefaultMethods(),
		}})
	}
	if err := o.p.setInbound(in); err != nil {
		t.Fatal(err)
	}
	i := &inbound{p: o.p, lc: o.conn.lc, dst: netip.MustParseAddrPort("127.0.0.1:8080"), caller: policy.Caller{Name: users, Verified: true}}
	o.on(func() { o.p.apps[0].get(appKey{dst: i.dst}).h1.Put(o.l.Now(), h1.NewUpstream(o.up)) })
	o.serve = i.Handle
	return o
}

func TestARequestAllocatesNothing(t *testing.T) {
	for name, make := range map[string]func(testing.TB) *path{"on its way out": newPathOut, "on its way in": newPathIn} {
		t.Run(name, func(t *testing.T) {
			o := make(t)
			o.on(func() {
				o.requests(10)
				const many = 1000
				per := testing.AllocsPerRun(5, func() { o.requests(many) }) / many
				limit := 0.05 // of the connection itself
				if raceEnabled {
					limit = 20 // sync.Pool drops at random under the race detector
				}
				if per > limit {
					t.Errorf("%.3f allocations per request", per)
				}
			})
		})
	}
}

func BenchmarkRequest(b *testing.B) {
	for name, make := range map[string]func(testing.TB) *path{"out": newPathOut, "in": newPathIn} {
		b.Run(name, func(b *testing.B) {
			o := make(b)
			b.ReportAllocs()
			o.on(func() {
				o.requests(10)
				b.ResetTimer()
				o.requests(b.N)
				b.StopTimer()
			})
		})
	}
}
