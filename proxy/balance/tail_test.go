package balance

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A farm is endpoints with workers, each with a queue, under requests that come when they come (not when the last was
// answered): a slow endpoint cannot slow down who sends to it.
type farm struct {
	set     *Set
	eps     []Endpoint
	rnd     *rand.Rand
	workers [][]time.Time // by endpoint: when each is free
	mean    func(i int) time.Duration
}

func newFarm(t *testing.T, n, workers int, mean func(int) time.Duration) *farm {
	eps := same(n, 100)
	f := &farm{set: mustNew(t, P2CEWMA, eps), eps: eps, rnd: chance(21), workers: make([][]time.Time, n), mean: mean}
	for i := range f.workers {
		f.workers[i] = make([]time.Time, workers)
	}
	return f
}

type answer struct {
	at, sent time.Time
	endpoint int
}

// run sends requests at a rate and gives the latencies, and how many each endpoint got.
func (f *farm) run(rate float64, length time.Duration) (latencies []time.Duration, got []int) {
	got = make([]int, len(f.eps))
	var flying []answer // by time of the answer, the last first
	for now := noon; now.Sub(noon) < length; {
		now = now.Add(time.Duration(f.rnd.ExpFloat64() / rate * float64(time.Second)))
		for len(flying) > 0 && flying[len(flying)-1].at.Before(now) {
			a := flying[len(flying)-1]
			flying = flying[:len(flying)-1]
			f.eps[a.endpoint].Stats.End(a.at, a.at.Sub(a.sent), false)
			latencies = append(latencies, a.at.Sub(a.sent))
		}
		i, _ := f.set.Pick(Request{Now: now, Random: f.rnd.Uint64()})
		f.eps[i].Stats.Begin(now)
		got[i]++
		a := answer{at: f.serve(i, now), sent: now, endpoint: i}
		at, _ := slices.BinarySearchFunc(flying, a, func(x, y answer) int { return y.at.Compare(x.at) })
		flying = slices.Insert(flying, at, a)
	}
	return latencies, got
}

// serve gives a request to the worker that is free first.
func (f *farm) serve(i int, now time.Time) time.Time {
	w := f.workers[i]
	first := 0
	for k := range w {
		if w[k].Before(w[first]) {
			first = k
		}
	}
	// Half of the time is always needed, half is chance.
	takes := time.Duration(float64(f.mean(i)) * (0.5 + 0.5*f.rnd.ExpFloat64()))
	begin := w[first]
	if begin.Before(now) {
		begin = now
	}
	w[first] = begin.Add(takes)
	return w[first]
}

func p99(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)*99/100]
}

// One of ten is twenty times slower: the p99 of all requests stays within one and a half times that of ten healthy ones, from the first
// request on, for fast services and slow ones alike: nothing here is configured.
func TestASlowEndpointOfTenIsNotSeenInTheP99(t *testing.T) {
	for _, mean := range []time.Duration{500 * time.Microsecond, 5 * time.Millisecond, 200 * time.Millisecond} {
		const workers, load = 8, 0.5
		rate := 10 * workers * load / mean.Seconds()
		length := time.Duration(60_000 / rate * float64(time.Second))
		healthy, _ := newFarm(t, 10, workers, func(int) time.Duration { return mean }).run(rate, length)
		slow, got := newFarm(t, 10, workers, func(i int) time.Duration {
			if i == 3 {
				return 20 * mean
			}
			return mean
		}).run(rate, length)
		a, b := p99(healthy), p99(slow)
		t.Logf("mean %v: p99 %v with ten healthy, %v (×%.2f) with one 20 times slower, which got %d of %d", mean, a, b, float64(b)/float64(a), got[3], len(slow))
		if float64(b) > 1.5*float64(a) {
			t.Errorf("mean %v: p99 %v, more than one and a half times %v", mean, b, a)
		}
		if got[3] == 0 {
			t.Error("the slow one was never asked: nobody would learn that it is well again")
		}
	}
}

// When the slow one is well again it gets its share again.
func TestAnEndpointThatIsWellAgainGetsItsShare(t *testing.T) {
	sick := true
	f := newFarm(t, 10, 8, func(i int) time.Duration {
		if i == 3 && sick {
			return 100 * time.Millisecond
		}
		return 5 * time.Millisecond
	})
	f.run(2000, 20*time.Second)
	sick = false
	for i := range f.eps { // run begins at noon again: what is known is as old as it looks
		f.eps[i].Stats.estimate.Store(pack(float64(f.eps[i].Stats.Latency(noon.Add(20*time.Second))), ticks(noon)))
		f.eps[i].Stats.inFlight.Store(0)
		clear(f.workers[i])
	}
	_, got := f.run(2000, 60*time.Second)
	if got[3] < 60*2000/10/3 {
		t.Errorf("of 120000 requests the one that is well again got %d", got[3])
	}
}

// Of a new endpoint nothing is known: it gets one request at once, and no other before the answer, whether the others need
// a millisecond or a second.
func TestANewEndpointGetsOneRequestUntilItAnswers(t *testing.T) {
	for _, known := range []time.Duration{time.Millisecond, time.Second} {
		eps := same(5, 1)
		for i := range 4 {
			eps[i].Stats.Begin(noon)
			eps[i].Stats.End(noon, known, false)
		}
		set, rnd, fresh := mustNew(t, P2CEWMA, eps), chance(23), eps[4].Stats
		for range 200 {
			i, _ := set.Pick(Request{Now: noon, Random: rnd.Uint64()})
			eps[i].Stats.Begin(noon)
		}
		if n := fresh.InFlight(); n != 1 {
			t.Errorf("others need %v: %d are in flight on the new one", known, n)
		}
		fresh.End(noon.Add(known), known, false)
		got := share(t, set, 1000, rnd, nil)
		if got[4] < 300 { // all others have some in flight
			t.Errorf("others need %v: after its answer it got %d of 1000", known, got[4])
		}
	}
}

// One that is new and refuses at once is not the first choice for ever.
func TestANewEndpointThatFailsIsNotFirstChoice(t *testing.T) {
	eps := same(3, 1)
	for i := range 2 {
		eps[i].Stats.Begin(noon)
		eps[i].Stats.End(noon, time.Millisecond, false)
	}
	set, rnd, failed := mustNew(t, P2CEWMA, eps), chance(24), 0
	for range 1000 {
		i, _ := set.Pick(Request{Now: noon, Random: rnd.Uint64()})
		eps[i].Stats.Begin(noon)
		eps[i].Stats.End(noon, time.Millisecond, i == 2)
		if i == 2 {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("it got %d of 1000 requests within an instant", failed)
	}
}
