package ratelimit

import (
	"fmt"
	"testing"
	"time"
)

// sizes show whether a decision's price grows with the requests in the window, or the keys.
var sizes = []int{1, 100, 10_000}

// policies of n requests, by how they are counted.
func policies(n int) map[string]Policy {
	return map[string]Policy{
		"window":   {Limit: n, Window: time.Second},
		"counters": {Limit: 100_000 + n, Window: time.Second},
		"bucket":   {Limit: n, Window: time.Second, Burst: n},
	}
}

func manyKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("spiffe://weir.local/ns/shop/sa/cart-%d", i)
	}
	return keys
}

func TestAllowDoesNotAllocateHoweverMuchItCounts(t *testing.T) {
	for _, n := range sizes {
		for name, p := range policies(n) {
			l, now := mustNew(t, p), noon
			step := time.Second / time.Duration(2*n)
			if a := testing.AllocsPerRun(4*n, func() {
				now = now.Add(step)
				l.Allow(now)
				l.Peek(now)
			}); a != 0 {
				t.Errorf("%s of %d: %v allocations", name, n, a)
			}
		}
	}
}

// A key that is known costs no allocation, however many others there are, once its window has grown to what it holds.
func TestKnownKeysDoNotAllocateHoweverMany(t *testing.T) {
	for _, n := range sizes {
		for name, p := range policies(5) {
			keys, now := manyKeys(n), noon
			k, err := NewKeyed(p, 2*n, noon)
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				for _, key := range keys {
					k.Allow(key, now)
				}
			}
			i := 0
			if a := testing.AllocsPerRun(1000, func() {
				now = now.Add(time.Millisecond)
				k.Allow(keys[i%n], now)
				i += 7919
			}); a != 0 {
				t.Errorf("%s, %d keys: %v allocations", name, n, a)
			}
			if k.Len() != n {
				t.Errorf("%s: %d keys, want %d", name, k.Len(), n)
			}
		}
	}
}

func BenchmarkAllow(b *testing.B) {
	for _, kind := range []string{"window", "counters", "bucket"} {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				l, now := mustNew(b, policies(n)[kind]), noon
				step := time.Second / time.Duration(n) // at the limit
				b.ReportAllocs()
				for b.Loop() {
					now = now.Add(step)
					l.Allow(now)
				}
			})
		}
	}
}

func BenchmarkAllowKeyed(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k, _ := NewKeyed(Policy{Limit: 100, Window: time.Second}, 2*n, noon)
			keys, now := manyKeys(n), noon
			for _, key := range keys {
				k.Allow(key, now)
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Millisecond)
				k.Allow(keys[i], now)
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}

func BenchmarkAllowParallel(b *testing.B) {
	l := mustNew(b, Policy{Limit: 10_000, Window: time.Second})
	b.RunParallel(func(pb *testing.PB) {
		now := noon
		for pb.Next() {
			now = now.Add(time.Millisecond)
			l.Allow(now)
		}
	})
}

func BenchmarkFields(b *testing.B) {
	p, buf := Policy{Limit: 100, Window: time.Minute}, make([]byte, 0, 128)
	d := Decision{OK: true, Limit: 100, Remaining: 57, Reset: 30 * time.Second}
	b.ReportAllocs()
	for b.Loop() {
		AppendRateLimit(AppendPolicy(buf, "default", p), "default", d)
	}
}
