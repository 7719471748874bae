package h2

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	peerpack "golang.org/x/net/http2/hpack"

	"github.com/weir-mesh/weir/proxy/loop"
)

// circuit is a proxy between a client and an upstream that allocate nothing, with so
// many calls under way at once.
type circuit struct {
	client net.Conn
	calls  []byte // of a round
	ids    []int  // where their numbers are
	next   uint32
	buf    []byte
	ends   int
	stop   func()
}

// grpcCall is the head of a call, each field a literal, and its message.
func grpcCall(message int) []byte {
	var b strings.Builder
	enc := peerpack.NewEncoder(&b)
	enc.SetMaxDynamicTableSizeLimit(0)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/shop.Orders/Get"}, {":authority", "orders.shop:80"},
		{"content-type", "application/grpc"}, {"user-agent", "grpc-go/1.80.0"}, {"te", "trailers"}, {"grpc-timeout", "999999u"},
	} {
		enc.WriteField(peerpack.HeaderField{Name: f[0], Value: f[1]})
	}
	out := append(appendHeader(nil, b.Len(), frameHeaders, flagEndHeaders, 0), b.String()...)
	return append(appendHeader(out, message, frameData, flagEndStream, 0), make([]byte, message)...)
}

func grpcAnswer(message int) []byte {
	pack := func(pairs ...string) string {
		var b strings.Builder
		enc := peerpack.NewEncoder(&b)
		enc.SetMaxDynamicTableSizeLimit(0)
		for i := 0; i < len(pairs); i += 2 {
			enc.WriteField(peerpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		return b.String()
	}
	head, tail := pack(":status", "200", "content-type", "application/grpc"), pack("grpc-status", "0", "grpc-message", "")
	out := append(appendHeader(nil, len(head), frameHeaders, flagEndHeaders, 0), head...)
	out = append(appendHeader(out, message, frameData, 0, 0), make([]byte, message)...)
	return append(appendHeader(out, len(tail), frameHeaders, flagEndHeaders|flagEndStream, 0), tail...)
}

// eachFrame calls f for each whole frame of b and returns what is left.
func eachFrame(b []byte, f func(h frameHeader, frame []byte)) []byte {
	for len(b) >= headerLen {
		h := parseHeader(b)
		if len(b) < headerLen+h.length {
			break
		}
		f(h, b[:headerLen+h.length])
		b = b[headerLen+h.length:]
	}
	return b
}

// answerAll is an upstream: for each stream that ends it sends the answer, and gives
// back the windows.
func answerAll(c net.Conn, answer []byte) {
	defer c.Close()
	buf := make([]byte, 256<<10)
	if _, err := io.ReadFull(c, buf[:len(preface)]); err != nil {
		return
	}
	out := appendHeader(nil, 0, frameSettings, 0, 0)
	given, n := 0, 0
	handle := func(h frameHeader, frame []byte) {
		if h.kind == frameSettings && h.flags&flagAck == 0 {
			out = appendHeader(out, 0, frameSettings, flagAck, 0)
		}
		if h.kind == frameData {
			given += h.length
		}
		if (h.kind == frameData || h.kind == frameHeaders) && h.has(flagEndStream) {
			at := len(out)
			out = append(out, answer...)
			number(out[at:], h.id)
		}
	}
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
		left := eachFrame(buf[:n], handle)
		n = copy(buf, left)
		if given > 16<<10 {
			out = appendWindowUpdate(out, 0, given)
			given = 0
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
	}
}

// number writes a stream's number into all frames of b.
func number(b []byte, id uint32) {
	for len(b) > 0 {
		n := parseHeader(b).length
		binary.BigEndian.PutUint32(b[5:], id)
		b = b[headerLen+n:]
	}
}

func newCircuit(t testing.TB, calls, message int) *circuit {
	back := listen(t)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := back.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() { defer wg.Done(); answerAll(c, grpcAnswer(message)) }()
		}
	}()
	to := back.Addr().(*net.TCPAddr).AddrPort()
	p := startProxy(t, to.String(), nil)
	pool := NewPool(PoolConfig{})
	p.handle(func(x *Exchange) { passCall(p.l, pool, to, x) })
	c, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	l := &circuit{client: c, next: 1, buf: make([]byte, 256<<10)}
	call := grpcCall(message)
	for range calls {
		l.ids = append(l.ids, len(l.calls))
		l.calls = append(l.calls, call...)
	}
	hello := appendHeader([]byte(preface), 6, frameSettings, 0, 0)
	hello = appendSetting(hello, settingWindow, 1<<20)
	hello = appendWindowUpdate(hello, 0, 1<<30)
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	l.stop = func() {
		c.Close()
		back.Close()
		on(p.l, pool.Close)
		wg.Wait()
	}
	return l
}

// passCall is a request path that sets what a mesh sets.
func passCall(l *loop.Loop, pool *Pool, to netip.AddrPort, x *Exchange) {
	now := x.Now()
	up := pool.Get(now)
	if up == nil {
		var err error
		up, err = pool.Take(l, time.Time{}, func() (loop.Stream, error) { return l.Dial(loop.Dialer{}, to, time.Time{}) })
		if err != nil {
			return
		}
	}
	x.Set("X-Source-Service", "web")
	x.Set("X-Source-Namespace", "shop")
	x.Set("X-Request-ID", "0123456789")
	x.SetResponse("X-Request-ID", "0123456789")
	if _, err := x.RoundTrip(up, now.Add(30*time.Second)); err == nil {
		_ = x.Relay(up)
	}
	pool.Put(now, up)
}

// round makes all its calls and waits for their answers.
func (l *circuit) round(t testing.TB) {
	for _, at := range l.ids {
		end := len(l.calls)
		if len(l.ids) > 1 {
			end = at + len(l.calls)/len(l.ids)
		}
		number(l.calls[at:end], l.next)
		l.next += 2
	}
	if _, err := l.client.Write(l.calls); err != nil {
		t.Fatal(err)
	}
	for n := 0; l.ends < len(l.ids); {
		m, err := l.client.Read(l.buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
		n = copy(l.buf, eachFrame(l.buf[:n], l.count))
	}
	l.ends -= len(l.ids)
}

func (l *circuit) count(h frameHeader, _ []byte) {
	switch {
	case h.kind == frameHeaders && h.has(flagEndStream):
		l.ends++
	case h.kind == frameReset || h.kind == frameGoAway:
		panic(h)
	}
}

// A call of gRPC, three request fields and one response field set, must not allocate.
func TestACallAllocatesNothing(t *testing.T) {
	for _, calls := range []int{1, 20} {
		l := newCircuit(t, calls, 100)
		rounds := 2000 / calls
		best := ^uint64(0)
		for range 5 { // a collection empties the pools of buffers: take the best of five
			runtime.GC()
			for range 20 {
				l.round(t)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range rounds {
				l.round(t)
			}
			runtime.ReadMemStats(&after)
			best = min(best, after.Mallocs-before.Mallocs)
		}
		if best > 20 && !raceEnabled {
			t.Errorf("%d at once: %d allocations in %d calls", calls, best, calls*rounds)
		}
		l.stop()
	}
}

func BenchmarkCall(b *testing.B) {
	for name, calls := range map[string]int{"1": 1, "32": 32} {
		b.Run(name, func(b *testing.B) {
			l := newCircuit(b, calls, 100)
			defer l.stop()
			b.ReportAllocs()
			for i := 0; i < b.N; i += calls {
				l.round(b)
			}
		})
	}
}
