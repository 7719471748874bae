package retry

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// below is which share of exponential times with a mean of m lies below d.
func below(d, m time.Duration) float64 { return 1 - math.Exp(-float64(d)/float64(m)) }

func TestAQuantileIsFoundAndFollowed(t *testing.T) {
	for _, want := range []float64{0.5, 0.9, 0.95, 0.99} {
		q, rnd := NewQuantile(want), rand.New(rand.NewPCG(1, 2))
		for _, mean := range []time.Duration{10 * time.Millisecond, 200 * time.Millisecond, time.Millisecond} {
			for range 20_000 {
				q.Observe(time.Duration(rnd.ExpFloat64() * float64(mean)))
			}
			sum := 0.0
			for range 1000 { // the estimate trembles: its mean counts
				q.Observe(time.Duration(rnd.ExpFloat64() * float64(mean)))
				at, _ := q.Value()
				sum += below(at, mean) / 1000
			}
			if math.Abs(sum-want) > 0.03 {
				t.Errorf("the %v quantile, mean %v: %.3f lie below", want, mean, sum)
			}
		}
	}
}

func TestAQuantileNeedsSomeTimes(t *testing.T) {
	q := NewQuantile(0.95)
	for range quantileWarm - 1 {
		q.Observe(time.Second)
	}
	if _, ok := q.Value(); ok {
		t.Error("known too early")
	}
	q.Observe(0) // a clock may stand still
	if d, ok := q.Value(); !ok || d <= 0 {
		t.Errorf("%v %v", d, ok)
	}
}

func TestManyObserveAQuantileAtOnce(t *testing.T) {
	q := NewQuantile(0.5)
	var wg sync.WaitGroup
	for i := range 4 {
		rnd := rand.New(rand.NewPCG(uint64(i), 2))
		wg.Go(func() {
			for range 5000 {
				q.Observe(time.Duration(rnd.IntN(100)) * time.Millisecond)
				q.Value()
			}
		})
	}
	wg.Wait()
	if d, ok := q.Value(); !ok || d < 10*time.Millisecond || d > 90*time.Millisecond {
		t.Errorf("%v %v", d, ok)
	}
}
