package breaker

import (
	"fmt"
	"testing"
	"time"
)

// sizes are numbers of circuits, each used in turn: what grows with them is only what the processor's caches hold.
var sizes = []int{1, 100, 10_000}

func circuits(tb testing.TB, n int) []*Circuit {
	tb.Helper()
	all := make([]*Circuit, n)
	for i := range all {
		c, err := New(Config{Threshold: 5, Timeout: time.Second}, epoch)
		if err != nil {
			tb.Fatal(err)
		}
		all[i] = c
	}
	return all
}

// calls are what a request does, by the state of the circuit that it meets.
var calls = []struct {
	name  string
	ready func(c *Circuit) // brings a circuit into the state
	do    func(c *Circuit, now time.Time)
}{
	{"ready", func(*Circuit) {}, func(c *Circuit, now time.Time) { c.Ready(now) }},
	{"success", func(*Circuit) {}, func(c *Circuit, now time.Time) {
		ticket, _ := c.Allow(now)
		c.Success(now, ticket)
	}},
	{"failure and success", func(*Circuit) {}, func(c *Circuit, now time.Time) {
		ticket, _ := c.Allow(now)
		c.Failure(now, ticket)
		c.Success(now, ticket)
	}},
	{"cancel", func(*Circuit) {}, func(c *Circuit, now time.Time) {
		ticket, _ := c.Allow(now)
		c.Cancel(ticket)
	}},
	{"ready while open", fail, func(c *Circuit, now time.Time) { c.Ready(now) }},
	{"allow while open", fail, func(c *Circuit, now time.Time) { c.Allow(now) }},
	{"probe that fails", fail, func(c *Circuit, now time.Time) {
		now = now.Add(time.Duration(c.Opens()) * time.Hour)
		ticket, _ := c.Allow(now)
		c.Failure(now, ticket)
	}},
	{"state", fail, func(c *Circuit, now time.Time) { c.State(now) }},
	{"forced open", func(c *Circuit) { c.Force(ForceOpen) }, func(c *Circuit, now time.Time) { c.Allow(now) }},
}

func fail(c *Circuit) {
	for c.State(epoch) == Closed {
		ticket, _ := c.Allow(epoch)
		c.Failure(epoch, ticket)
	}
}

func TestNoCallAllocatesHoweverManyCircuits(t *testing.T) {
	for _, call := range calls {
		for _, n := range sizes {
			all, i := circuits(t, n), 0
			for _, c := range all {
				call.ready(c)
			}
			if a := testing.AllocsPerRun(1000, func() {
				call.do(all[i%n], epoch.Add(time.Millisecond))
				i++
			}); a != 0 {
				t.Errorf("%s, %d circuits: %v allocations", call.name, n, a)
			}
		}
	}
}

func BenchmarkCircuit(b *testing.B) {
	for _, call := range calls {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/%d", call.name, n), func(b *testing.B) {
				all, i := circuits(b, n), 0
				for _, c := range all {
					call.ready(c)
				}
				now := epoch.Add(time.Millisecond)
				b.ReportAllocs()
				for b.Loop() {
					call.do(all[i], now)
					if i++; i == n {
						i = 0
					}
				}
			})
		}
	}
}

func BenchmarkClosedParallel(b *testing.B) {
	c := circuits(b, 1)[0]
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			ticket, _ := c.Allow(epoch)
			c.Success(epoch, ticket)
		}
	})
}
