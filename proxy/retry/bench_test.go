package retry

import (
	"fmt"
	"testing"
	"time"
)

// sizes are requests already in the window: what a budget costs does not grow with them.
var sizes = []int{1, 100, 10_000}

func usedBudget(tb testing.TB, n int) *Budget {
	b := mustBudget(tb, BudgetConfig{})
	for i := range n {
		b.Request(noon.Add(time.Duration(i) * 9 * time.Second / time.Duration(n)))
	}
	return b
}

var calls = []struct {
	name string
	do   func(b *Budget, now time.Time)
}{
	{"request", func(b *Budget, now time.Time) { b.Request(now) }},
	{"take", func(b *Budget, now time.Time) { b.Take(now) }},
	{"used", func(b *Budget, now time.Time) { b.Used(now) }},
	{"backoff", func(*Budget, time.Time) { _, _ = Backoff(time.Second, 2, 7, time.Minute) }},
	{"safe", func(*Budget, time.Time) { _ = Safe("DELETE", true, false) && Retriable(503) }},
}

func TestNoCallAllocatesHoweverManyRequests(t *testing.T) {
	for _, call := range calls {
		for _, n := range sizes {
			b, now := usedBudget(t, n), noon.Add(9*time.Second)
			if a := testing.AllocsPerRun(1000, func() {
				now = now.Add(time.Millisecond)
				call.do(b, now)
			}); a != 0 {
				t.Errorf("%s, %d requests: %v allocations", call.name, n, a)
			}
		}
	}
}

func BenchmarkBudget(b *testing.B) {
	for _, call := range calls {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/%d", call.name, n), func(b *testing.B) {
				budget, now := usedBudget(b, n), noon.Add(9*time.Second)
				b.ReportAllocs()
				for b.Loop() {
					now = now.Add(10 * time.Microsecond)
					call.do(budget, now)
				}
			})
		}
	}
}

func BenchmarkRequestParallel(b *testing.B) {
	budget := usedBudget(b, 1)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			budget.Request(noon)
		}
	})
}
