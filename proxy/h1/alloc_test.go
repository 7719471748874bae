package h1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

const (
	smallRequest = "GET /orders/17?full=1 HTTP/1.1\r\nHost: orders.shop\r\nUser-Agent: bench/1\r\nAccept: */*\r\nX-Trace: 00-aa-bb-01\r\n\r\n"
	smallBody    = 128
	largeBody    = 48 << 10 // is spliced
)

// circuit is a proxy between a client and an upstream that allocate nothing.
type circuit struct {
	client net.Conn
	answer []byte
	stop   func()
}

func newCircuit(t testing.TB, body int) *circuit {
	back := listen(t)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		c, err := back.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", body)
		answer = append(answer, bytes.Repeat([]byte("x"), body)...)
		b := make([]byte, 64<<10)
		for n := 0; ; {
			m, err := c.Read(b[n:])
			if err != nil {
				return
			}
			if n += m; bytes.HasSuffix(b[:n], []byte("\r\n\r\n")) {
				n = 0
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}
	}()
	to := back.Addr().(*net.TCPAddr).AddrPort()
	p := startProxy(t, to.String(), func(p *proxy) {
		p.handler = func(x *Exchange) {
			now := x.Now()
			up := p.pool.Get(now)
			if up == nil {
				c, err := p.l.Dial(loop.Dialer{}, to, time.Time{})
				if err != nil {
					return
				}
				up = NewUpstream(c)
			}
			x.Set("X-Source-Service", "web")
			x.Set("X-Source-Namespace", "shop")
			x.Set("X-Request-ID", "0123456789")
			x.SetResponse("X-Request-ID", "0123456789")
			if _, err := x.RoundTrip(up, now.Add(30*time.Second)); err == nil {
				_ = x.Relay(up)
			}
			p.pool.Put(now, up)
		}
	})
	c, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	l := &circuit{client: c}
	_, _ = io.WriteString(c, smallRequest)
	r := bufio.NewReader(c)
	head, err := readHeadText(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, int64(body)); err != nil {
		t.Fatal(err)
	}
	l.answer = make([]byte, len(head)+body)
	l.stop = func() {
		c.Close()
		back.Close()
		on(p.l, p.pool.Close)
		wg.Wait()
	}
	return l
}

var smallRequestBytes = []byte(smallRequest)

func (l *circuit) exchange(t testing.TB) {
	if _, err := l.client.Write(smallRequestBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(l.client, l.answer); err != nil {
		t.Fatal(err)
	}
}

// The whole way of an exchange, three request fields and one response field set,
// must not allocate: what is allocated is later collected, on somebody's request.
func TestAnExchangeAllocatesNothing(t *testing.T) {
	for _, body := range []int{smallBody, largeBody} {
		t.Run(strconv.Itoa(body), func(t *testing.T) {
			l := newCircuit(t, body)
			defer l.stop()
			const rounds = 2000
			best := ^uint64(0)
			for range 5 { // a collection empties the pools of buffers: take the best of five
				runtime.GC()
				for range 100 {
					l.exchange(t)
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range rounds {
					l.exchange(t)
				}
				runtime.ReadMemStats(&after)
				best = min(best, after.Mallocs-before.Mallocs)
			}
			limit := uint64(rounds / 100)
			if raceEnabled {
				limit = rounds * 4 // sync.Pool drops at random under the race detector
			}
			if best > limit {
				t.Errorf("%d allocations in %d exchanges", best, rounds)
			}
		})
	}
}

func BenchmarkExchange(b *testing.B) {
	for _, body := range []int{smallBody, largeBody} {
		b.Run(strconv.Itoa(body), func(b *testing.B) {
			l := newCircuit(b, body)
			defer l.stop()
			b.ReportAllocs()
			for b.Loop() {
				l.exchange(b)
			}
		})
	}
}

// headOf is a request head with so many fields besides Host.
func headOf(fields int) []byte {
	b := []byte("GET /orders/17?full=1 HTTP/1.1\r\nHost: orders.shop\r\n")
	for i := range fields {
		b = fmt.Appendf(b, "X-Field-%d: the value of field %d\r\n", i, i)
	}
	return append(b, "\r\n"...)
}

var parseSizes = []int{1, 10, 100}

func TestParsingAllocatesNothing(t *testing.T) {
	cfg := (&Config{}).withDefaults()
	for _, fields := range parseSizes {
		head := headOf(fields)
		var r Request
		read := func() {
			r.reset()
			if done, err := r.parse(head, &cfg); !done || err != nil || len(r.fields) != fields+1 {
				t.Fatal(done, err, len(r.fields))
			}
		}
		read() // makes room for the fields
		if n := testing.AllocsPerRun(100, read); n != 0 {
			t.Errorf("%d fields: %v allocations", fields, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	cfg := (&Config{}).withDefaults()
	for _, fields := range parseSizes {
		b.Run(strconv.Itoa(fields), func(b *testing.B) {
			head := headOf(fields)
			b.SetBytes(int64(len(head)))
			b.ReportAllocs()
			var r Request
			for b.Loop() {
				r.reset()
				if done, err := r.parse(head, &cfg); !done || err != nil {
					b.Fatal(done, err)
				}
			}
		})
	}
}
