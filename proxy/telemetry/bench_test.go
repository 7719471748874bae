package telemetry

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// sizes are numbers of services that are known, each used in turn.
var sizes = []int{1, 100, 10_000}

func manyServices(n int) []*Service {
	r := New(Options{NoRuntime: true, MaxServices: 2 * n})
	all := make([]*Service, n)
	for i := range all {
		s := r.Service(Outbound, fmt.Sprint("service-", i), "shop")
		for _, call := range calls {
			call.do(s) // series come into being when they first count something
		}
		all[i] = s
	}
	return all
}

// calls are what a request does.
var calls = []struct {
	name string
	do   func(s *Service)
}{
	{"done", func(s *Service) { s.Done(200, 700*time.Microsecond, 100, 1000) }},
	{"done without a body", func(s *Service) { s.Done(204, 20*time.Millisecond, 0, 0) }},
	{"failed", func(s *Service) { s.Done(503, 30*time.Second, 0, 30) }},
	{"bytes", func(s *Service) { s.Bytes(100, 1000) }},
	{"routed", func(s *Service) { s.Routed() }},
	{"routing failed", func(s *Service) { s.RoutingFailed() }},
	{"backend failed", func(s *Service) { s.BackendFailed() }},
	{"retried", func(s *Service) { s.Retried() }},
	{"retry refused", func(s *Service) { s.RetryRefused("budget") }},
	{"rate limited", func(s *Service) { s.RateLimited() }},
	{"denied", func(s *Service) { s.Denied("policy", "") }},
}

func TestNoCallAllocatesHoweverManyServices(t *testing.T) {
	for _, n := range sizes {
		all := manyServices(n)
		for _, call := range calls {
			i := 0
			if a := testing.AllocsPerRun(1000, func() {
				call.do(all[i%n])
				i++
			}); a != 0 {
				t.Errorf("%s, %d services: %v allocations", call.name, n, a)
			}
		}
	}
}

// lines are records as they are, and at their worst.
var lines = []struct {
	name   string
	record Record
}{
	{"usual", Record{
		Time: record.Time, Direction: Outbound, RequestID: "4bf92f3577b34da6a3ce929d0e0e4736", Source: "spiffe://weir.local/ns/shop/sa/web",
		Destination: "cart.shop", Endpoint: "10.0.0.17:8080", Method: "GET", Path: "/api/v1/carts/1234/items?page=2", Protocol: "http1", Status: 200,
		Duration: 1234567 * time.Nanosecond, BytesIn: 120, BytesOut: 4096, Attempts: 1,
	}},
	{"full", record},
	{"connection", Record{Time: record.Time, Direction: Inbound, Protocol: "tcp", Reason: "idle", Duration: time.Minute}},
	{"long path", Record{Time: record.Time, Direction: Inbound, Method: "GET", Path: "/" + strings.Repeat("abcdefg/", 400), Status: 414}},
	{"all escaped", Record{Time: record.Time, Direction: Inbound, Method: "GET", Path: strings.Repeat("\x01\xff", 1000), Status: 400}},
}

func TestNoLineAllocates(t *testing.T) {
	for _, c := range lines {
		l := NewAccessLog(io.Discard, 1<<20)
		var spare []byte
		log := func() {
			l.Log(&c.record)
			l.waiting, l.records, spare = spare[:0], 0, l.waiting // as Run does
		}
		log()
		log()
		if a := testing.AllocsPerRun(1000, log); a > poolAllocs {
			t.Errorf("%s: %v allocations", c.name, a)
		}
	}
}

func BenchmarkService(b *testing.B) {
	for _, n := range sizes {
		all := manyServices(n)
		for _, call := range calls {
			b.Run(fmt.Sprintf("%s/%d", call.name, n), func(b *testing.B) {
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					call.do(all[i])
					if i++; i == n {
						i = 0
					}
				}
			})
		}
	}
}

func BenchmarkDoneParallel(b *testing.B) {
	s := manyServices(1)[0]
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Done(200, time.Millisecond, 100, 1000)
		}
	})
}

func BenchmarkLog(b *testing.B) {
	for _, c := range lines {
		b.Run(c.name, func(b *testing.B) {
			l := NewAccessLog(io.Discard, 1<<20)
			spare := make([]byte, 0, 1<<20)
			b.ReportAllocs()
			for b.Loop() {
				l.Log(&c.record)
				if len(l.waiting) > 1<<19 {
					l.waiting, l.records, spare = spare[:0], 0, l.waiting
				}
			}
		})
	}
}

func BenchmarkLogParallel(b *testing.B) {
	l := NewAccessLog(io.Discard, 1<<20)
	stop := run(l)
	b.RunParallel(func(pb *testing.PB) {
		r := lines[0].record
		for pb.Next() {
			l.Log(&r)
		}
	})
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkScrape(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		r := manyServices(n)[0].reg
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				scrape(b, r)
			}
		})
	}
}
