package retry

import (
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func mustBudget(t testing.TB, cfg BudgetConfig) *Budget {
	t.Helper()
	b, err := NewBudget(cfg, noon)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNewBudgetRefuses(t *testing.T) {
	for _, c := range []struct {
		cfg  BudgetConfig
		want string
	}{
		{BudgetConfig{Ratio: 11}, "ratio 11"},
		{BudgetConfig{Ratio: math.NaN()}, "ratio NaN"},
		{BudgetConfig{Window: time.Millisecond}, "window 1ms"},
		{BudgetConfig{Window: time.Hour}, "window 1h0m0s"},
		{BudgetConfig{MinPerSecond: 1001}, "minimum 1001"},
	} {
		if _, err := NewBudget(c.cfg, noon); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
}

// take asks n times and counts what it got.
func take(b *Budget, n int, now time.Time) (got int) {
	for range n {
		if b.Take(now) {
			got++
		}
	}
	return got
}

// Everything fails and everything is tried three times: load grows by a fifth, not threefold.
func TestAnOutageIsNotMultiplied(t *testing.T) {
	b, retries := mustBudget(t, BudgetConfig{}), 0
	for i := range 100_000 { // 1000 a second
		now := noon.Add(time.Duration(i) * time.Millisecond)
		b.Request(now)
		retries += take(b, 2, now)
	}
	// The minimum of 100 in the first window comes before the share has grown past it; no more than that.
	if retries < 19_500 || retries > 20_100 {
		t.Errorf("%d retries for 100000 requests", retries)
	}
}

func TestFewRequestsHaveAMinimum(t *testing.T) {
	b := mustBudget(t, BudgetConfig{})
	b.Request(noon)
	if got := take(b, 500, noon); got != 100 { // 10 a second, 10 s
		t.Errorf("%d", got)
	}
	if got := take(b, 500, noon.Add(9*time.Second+999*time.Millisecond)); got != 0 {
		t.Errorf("%d before the window has passed", got)
	}
	if got := take(b, 500, noon.Add(10*time.Second)); got != 100 {
		t.Errorf("%d after the window", got)
	}
}

func TestNoMinimumAndNoRatio(t *testing.T) {
	strict := mustBudget(t, BudgetConfig{MinPerSecond: -1})
	for range 5 {
		if strict.Take(noon) {
			t.Fatal("without requests")
		}
		strict.Request(noon)
	}
	if got := take(strict, 5, noon); got != 1 {
		t.Errorf("a fifth of 5 requests is %d", got)
	}
	if got := take(mustBudget(t, BudgetConfig{Ratio: -1, MinPerSecond: -1}), 5, noon); got != 0 {
		t.Errorf("%d of nothing", got)
	}
}

// A refused retry spends nothing: the next window's requests find the whole share.
func TestARefusalSpendsNothing(t *testing.T) {
	b := mustBudget(t, BudgetConfig{MinPerSecond: -1})
	for range 10 {
		b.Request(noon)
	}
	take(b, 1000, noon)
	if requests, retries, allowed := b.Used(noon); requests != 10 || retries != 2 || allowed != 2 {
		t.Errorf("%d requests, %d of %d retries", requests, retries, allowed)
	}
}

// slowBudget keeps the number of each event's slice, and counts those of the last ten slices each time.
type slowBudget struct {
	requests, retries []int
	floor             float64
}

func (s *slowBudget) count(list []int, slice int) (n int) {
	for _, at := range list {
		if at > slice-slices && at <= slice {
			n++
		}
	}
	return n
}

func (s *slowBudget) take(slice int) bool {
	allowed := max(s.floor, float64(s.count(s.requests, slice))/4)
	if float64(s.count(s.retries, slice)+1) > allowed {
		return false
	}
	s.retries = append(s.retries, slice)
	return true
}

func TestTheFastOneDoesWhatTheSlowOneDoes(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		floor := rnd.IntN(5)
		b := mustBudget(t, BudgetConfig{Ratio: 0.25, Window: time.Second, MinPerSecond: float64(floor)*1 + 1e-6})
		slow, now := &slowBudget{floor: float64(floor)}, noon
		for step := range 1000 {
			now = now.Add(time.Duration(rnd.IntN(20)) * time.Millisecond)
			if rnd.IntN(200) == 0 {
				now = now.Add(time.Duration(rnd.IntN(1500)) * time.Millisecond)
			}
			slice := int(now.Sub(noon) / (time.Second / slices))
			if rnd.IntN(2) == 0 {
				b.Request(now)
				slow.requests = append(slow.requests, slice)
				continue
			}
			if got, want := b.Take(now), slow.take(slice); got != want {
				t.Fatalf("seed %d step %d: %v, want %v", seed, step, got, want)
			}
		}
	}
}

// Many at once never get more than there is, and the books balance.
func TestConcurrentTakers(t *testing.T) {
	b := mustBudget(t, BudgetConfig{MinPerSecond: -1})
	var got atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5000 {
				b.Request(noon)
				if b.Take(noon) {
					got.Add(1)
				}
			}
		})
	}
	wg.Wait()
	requests, retries, _ := b.Used(noon)
	if requests != 20_000 || int64(retries) != got.Load() || retries > 4000 || retries < 3000 {
		t.Errorf("%d requests, %d retries taken, %d counted", requests, got.Load(), retries)
	}
}

// A goroutine that read the clock and was put aside for a window must not bring old counts back.
func TestALateCountIsDropped(t *testing.T) {
	b := mustBudget(t, BudgetConfig{})
	b.Request(noon.Add(10 * time.Second))
	b.Request(noon) // the same slot
	if requests, _, _ := b.Used(noon.Add(10 * time.Second)); requests != 1 {
		t.Errorf("%d", requests)
	}
}

func TestNoAllocations(t *testing.T) {
	b, now := mustBudget(t, BudgetConfig{}), noon
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		b.Request(now)
		b.Take(now)
		_, _ = Backoff(time.Second, 2, 7, NoDeadline)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
