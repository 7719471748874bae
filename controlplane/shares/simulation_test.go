package shares

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// window is a sliding window with a limit that may change, in steps of 10 ms.
type window struct {
	steps []int // admitted in each step of the window
	at    int
	held  int
	limit int
}

const step = 10 * time.Millisecond

func newWindow(w time.Duration) *window { return &window{steps: make([]int, int(w/step))} }

func (w *window) turn() {
	w.at = (w.at + 1) % len(w.steps)
	w.held -= w.steps[w.at]
	w.steps[w.at] = 0
}

func (w *window) admit(n int) int {
	n = max(min(n, w.limit-w.held), 0)
	w.steps[w.at] += n
	w.held += n
	return n
}

// outcome is how a limit that is divided compares with one that one place counts.
type outcome struct {
	mean, worst float64 // difference in what was admitted in each window, in parts of the limit
	over        float64 // the most that any sliding window held above the limit, in parts of it
}

// simulate lets proxies keep a limit together for ten windows or a minute, under
// demand that is uneven and changes.
func simulate(l Limit, proxies int, load float64, shift time.Duration, seed uint64) outcome {
	random := rand.New(rand.NewPCG(seed, 1))
	const every, again, divide = 500 * time.Millisecond, 200 * time.Millisecond, 250 * time.Millisecond
	whole := newWindow(l.Window)
	whole.limit = l.Requests
	parts, rates, uses := make([]*window, proxies), make([]float64, proxies), make([]Use, proxies)
	for i := range parts {
		parts[i] = newWindow(l.Window)
		parts[i].limit = max(l.Requests/10, 1) // before the first share
	}
	asked, backlog, reported := make([]int, proxies), make([]float64, proxies), make([]time.Duration, proxies)
	var out outcome
	windows, admitted, ideal := 0, 0, 0
	length := max(10*l.Window, time.Minute)
	for now := time.Duration(0); now < length; now += step {
		if now%shift == 0 {
			uneven(rates, load*float64(l.Requests)/l.Window.Seconds(), random)
		}
		whole.turn()
		held := 0
		for i := range parts {
			parts[i].turn()
			backlog[i] += rates[i] * step.Seconds() * 2 * random.Float64()
			n := int(backlog[i])
			backlog[i] -= float64(n)
			asked[i] += n
			got := parts[i].admit(n)
			admitted += got
			ideal += whole.admit(n)
			held += parts[i].held
			if since := now - reported[i]; since >= every || got < n && since >= again {
				part := min(since.Seconds(), 1) // as a proxy averages it
				uses[i].Rate += part * (float64(asked[i])/since.Seconds() - uses[i].Rate)
				uses[i].Used, asked[i], reported[i] = float64(parts[i].held), 0, now
			}
		}
		out.over = max(out.over, float64(held-l.Requests)/float64(l.Requests))
		if now%divide == 0 && now > 0 {
			for i, share := range Divide(l, uses, time.Second) {
				parts[i].limit = share
			}
		}
		if (now+step)%l.Window == 0 {
			miss := math.Abs(float64(admitted-ideal)) / float64(l.Requests)
			out.mean, out.worst = out.mean+miss, max(out.worst, miss)
			windows++
			admitted, ideal = 0, 0
		}
	}
	out.mean /= float64(windows)
	return out
}

// uneven deals a total out: a few get most, and one in three nothing.
func uneven(rates []float64, total float64, random *rand.Rand) {
	sum := 0.0
	for i := range rates {
		rates[i] = math.Exp(2 * random.NormFloat64())
		if random.IntN(3) == 0 {
			rates[i] = 0
		}
		sum += rates[i]
	}
	for i := range rates {
		rates[i] *= total / max(sum, 1e-9)
	}
}

// What ten proxies admit together is within a tenth of the limit of what one
// place would admit, on the average over windows, whose demand moves from proxy
// to proxy every few seconds.
func TestADividedLimitIsNearOneThatOnePlaceCounts(t *testing.T) {
	for _, c := range []struct {
		limit    Limit
		load     float64
		shift    time.Duration
		mostOver float64
	}{
		{Limit{Requests: 1000, Window: time.Minute}, 3, 5 * time.Second, 0.05},
		{Limit{Requests: 1000, Window: time.Minute}, 1, 5 * time.Second, 0.05},
		{Limit{Requests: 1000, Window: time.Minute}, 0.7, 5 * time.Second, 0.05},
		{Limit{Requests: 1000, Window: 10 * time.Second}, 3, 5 * time.Second, 0.15},
		{Limit{Requests: 1000, Window: 10 * time.Second}, 1, 5 * time.Second, 0.15},
		{Limit{Requests: 100, Window: 10 * time.Second}, 3, 5 * time.Second, 0.15},
		{Limit{Requests: 1000, Window: time.Second}, 3, 10 * time.Second, 0.5},
		{Limit{Requests: 1000, Window: time.Second}, 0.7, 10 * time.Second, 0.5},
	} {
		name := fmt.Sprintf("%d in %v, load %v, moves every %v", c.limit.Requests, c.limit.Window, c.load, c.shift)
		t.Run(name, func(t *testing.T) {
			var sum outcome
			const runs = 4
			for seed := range uint64(runs) {
				o := simulate(c.limit, 10, c.load, c.shift, seed)
				sum.mean, sum.worst, sum.over = sum.mean+o.mean/runs, max(sum.worst, o.worst), max(sum.over, o.over)
			}
			t.Logf("off by %.1f %% of the limit, at worst %.1f %%; at most %.1f %% above it", 100*sum.mean, 100*sum.worst, 100*sum.over)
			if sum.mean > 0.1 || sum.over > c.mostOver {
				t.Errorf("off by %.3f of the limit, %.3f above it", sum.mean, sum.over)
			}
		})
	}
}
