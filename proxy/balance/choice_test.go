package balance

import (
	"math"
	"testing"
	"time"
)

// near fails unless got is within five standard deviations of a binomial share: a fixed seed, so it fails always or never.
func near(t *testing.T, what string, got, of int, p float64) {
	t.Helper()
	want, dev := float64(of)*p, math.Sqrt(float64(of)*p*(1-p))
	if math.Abs(float64(got)-want) > 5*dev {
		t.Errorf("%s: %d of %d, want %.0f ± %.0f", what, got, of, want, 5*dev)
	}
}

func TestRandomGoesByWeight(t *testing.T) {
	for _, n := range []int{2, 3, 10, 100} {
		eps := same(n, 7)
		for i, got := range share(t, mustNew(t, Random, eps), 100_000, chance(5), nil) {
			near(t, eps[i].ID, got, 100_000, 1/float64(n))
		}
	}
	for i, got := range share(t, mustNew(t, Random, endpoints(1, 2, 5)), 100_000, chance(5), nil) {
		near(t, "weight", got, 100_000, []float64{1. / 8, 2. / 8, 5. / 8}[i])
	}
	got := share(t, mustNew(t, Random, same(4, 1)), 30_000, chance(6), func(i int) bool { return i != 1 })
	for _, i := range []int{0, 2, 3} {
		near(t, "around the unusable", got[i], 30_000, 1./3)
	}
	got = share(t, mustNew(t, Random, endpoints(1, 4, 3)), 30_000, chance(6), func(i int) bool { return i != 1 })
	near(t, "around the unusable, by weight", got[0], 30_000, 1./4)
}

func TestAliasDrawsByWeight(t *testing.T) {
	for _, weights := range [][]int{{1, 3}, {1, 1, 1}, {MaxWeight, 1000, 50_000}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}} {
		set := mustNew(t, P2CEWMA, endpoints(weights...))
		table, rnd := newAlias(set.cands), chance(7)
		got := make([]int, len(weights))
		for range 200_000 {
			got[table.draw(rnd.Uint64())]++
		}
		total := 0
		for _, w := range weights {
			total += w
		}
		for i, w := range weights {
			near(t, "alias", got[i], 200_000, float64(w)/float64(total))
		}
	}
}

// The slow version: the least load by floating point, all ties listed.
func slowLeast(set *Set, usable func(int) bool) map[int]bool {
	best, ties := math.Inf(1), map[int]bool{}
	for _, c := range set.cands {
		if usable != nil && !usable(c.index) {
			continue
		}
		load := float64(c.stats.InFlight()) / float64(c.weight)
		if load < best {
			best, ties = load, map[int]bool{}
		}
		if load == best {
			ties[c.index] = true
		}
	}
	return ties
}

func TestLeastConnFollowsTheDefinition(t *testing.T) {
	rnd := chance(8)
	for range 500 {
		eps := same(1+rnd.IntN(12), 1)
		for i := range eps {
			eps[i].Weight = 1 << rnd.IntN(3)
			for range rnd.IntN(8) {
				eps[i].Stats.Begin(noon)
			}
		}
		set := mustNew(t, LeastConn, eps)
		down := rnd.IntN(len(eps))
		for _, usable := range []func(int) bool{nil, func(i int) bool { return i != down }} {
			want := slowLeast(set, usable)
			i, ok := set.Pick(Request{Random: rnd.Uint64(), Usable: usable})
			if ok != (len(want) > 0) || ok && !want[i] {
				t.Fatalf("got %d, %v; want one of %v", i, ok, want)
			}
		}
	}
}

func TestLeastConnDrawsTiesByWeight(t *testing.T) {
	got := share(t, mustNew(t, LeastConn, endpoints(1, 2, 5)), 80_000, chance(9), nil)
	for i, w := range []float64{1, 2, 5} {
		near(t, "tie", got[i], 80_000, w/8)
	}
}

// With requests that stay, the loads fill up in proportion to weight.
func TestLeastConnFillsByWeight(t *testing.T) {
	eps := endpoints(10, 30, 60)
	set := mustNew(t, LeastConn, eps)
	rnd := chance(10)
	for range 1000 {
		i, _ := set.Pick(Request{Random: rnd.Uint64()})
		eps[i].Stats.Begin(noon)
	}
	for i, want := range []int{100, 300, 600} {
		if got := eps[i].Stats.InFlight(); got < want-2 || got > want+2 {
			t.Errorf("endpoint %d: %d in flight, want %d", i, got, want)
		}
	}
}

// So they do where a sample decides.
func TestLeastConnOfManyFillsByWeight(t *testing.T) {
	weights := make([]int, 120)
	for i := range weights {
		weights[i] = 1 + i%3
	}
	eps := endpoints(weights...)
	set, rnd := mustNew(t, LeastConn, eps), chance(12)
	for range 24_000 {
		i, _ := set.Pick(Request{Random: rnd.Uint64()})
		eps[i].Stats.Begin(noon)
	}
	for i, w := range weights {
		if got, want := eps[i].Stats.InFlight(), 100*w; got < want-5 || got > want+5 {
			t.Errorf("endpoint %d of weight %d: %d in flight, want %d", i, w, got, want)
		}
	}
}

// Of many of which some are down the loaded are avoided too, and if all but one are down that one is found.
func TestLeastConnOfManyAroundTheUnusable(t *testing.T) {
	eps := same(400, 1)
	for i := range 200 {
		eps[i].Stats.Begin(noon)
	}
	set, rnd, loaded := mustNew(t, LeastConn, eps), chance(13), 0
	for range 2000 {
		i, ok := set.Pick(Request{Random: rnd.Uint64(), Usable: func(i int) bool { return i%2 == 0 }})
		if !ok || i%2 != 0 {
			t.Fatalf("got %d, %v", i, ok)
		}
		if i < 200 {
			loaded++
		}
		if i, ok := set.Pick(Request{Random: rnd.Uint64(), Usable: func(i int) bool { return i == 7 }}); !ok || i != 7 {
			t.Fatalf("got %d, %v; want 7", i, ok)
		}
	}
	if loaded > 40 { // 1 % each: 16 draws that miss the idle and usable quarter
		t.Errorf("%d of 2000 picks went to a loaded endpoint", loaded)
	}
}

// Above leastScan a sample decides: it must still keep away from loaded endpoints.
func TestLeastConnOfManyAvoidsTheLoaded(t *testing.T) {
	eps := same(2000, 1)
	for i := range 1000 {
		eps[i].Stats.Begin(noon)
	}
	set, loaded, rnd := mustNew(t, LeastConn, eps), 0, chance(11)
	for range 10_000 {
		if i, _ := set.Pick(Request{Random: rnd.Uint64()}); i < 1000 {
			loaded++
		}
	}
	if loaded > 3 { // 2^-16 each
		t.Errorf("%d of 10000 picks went to a loaded endpoint", loaded)
	}
}

// slowP2C is the definition for a given pair.
func slowP2C(set *Set, a, b int, now time.Time) int {
	mean := 0.
	for _, c := range set.cands {
		mean += float64(c.weight) / float64(len(set.cands))
	}
	cost := func(at int) float64 {
		c := set.cands[at]
		return float64(c.stats.Latency(now)) * (float64(c.stats.InFlight())*mean/float64(c.weight) + 1)
	}
	if cost(b) < cost(a) {
		return b
	}
	return a
}

func TestP2CTakesTheBetterOfItsPair(t *testing.T) {
	rnd := chance(12)
	for _, eps := range [][]Endpoint{same(5, 1), endpoints(1, 2, 3, 4, 5)} {
		for i := range eps {
			for range rnd.IntN(5) {
				eps[i].Stats.Begin(noon)
			}
			eps[i].Stats.Begin(noon)
			eps[i].Stats.End(noon, time.Duration(1+rnd.IntN(100))*time.Millisecond, false)
		}
		set := mustNew(t, P2CEWMA, eps)
		for range 5000 {
			r := Request{Now: noon.Add(3 * time.Second), Random: rnd.Uint64()}
			x := r.Random
			a, b := set.two(&x)
			if set.equal && a == b {
				t.Fatal("a pair of one")
			}
			got, _ := set.Pick(r)
			if want := slowP2C(set, a, b, r.Now); got != want {
				t.Fatalf("of %d and %d got %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestP2COfAnIdleSetSharesByWeight(t *testing.T) {
	for i, got := range share(t, mustNew(t, P2CEWMA, endpoints(99, 1)), 50_000, chance(13), nil) {
		near(t, "99:1", got, 50_000, []float64{.99, .01}[i])
	}
	for _, got := range share(t, mustNew(t, P2CEWMA, same(4, 100)), 50_000, chance(14), nil) {
		near(t, "equal", got, 50_000, .25)
	}
}

// A closed-loop story: 20 clients, one request each at a time; endpoint 0 needs 100 ms, the others 5 ms.
// Round robin would give it a third. It must get about its speed's share, and not nothing for ever.
func TestP2CKeepsAwayFromTheSlow(t *testing.T) {
	got := play(t, same(3, 1), 60*time.Second, func(i int) (time.Duration, bool) {
		if i == 0 {
			return 100 * time.Millisecond, false
		}
		return 5 * time.Millisecond, false
	})
	if got[0]*10 > got[1] || got[0] == 0 {
		t.Errorf("the slow one got %d, the others %d and %d", got[0], got[1], got[2])
	}
}

// An endpoint that refuses everything in 50 µs must not look fast and swallow the traffic.
func TestP2CIsNotDrawnToFastFailures(t *testing.T) {
	got := play(t, same(3, 1), 20*time.Second, func(i int) (time.Duration, bool) {
		if i == 0 {
			return 50 * time.Microsecond, true
		}
		return 5 * time.Millisecond, false
	})
	if got[0] > got[1]/2 {
		t.Errorf("the failing one got %d, the others %d and %d", got[0], got[1], got[2])
	}
}

// play runs 20 clients against endpoints in simulated time, in steps of the next request to end.
func play(t *testing.T, eps []Endpoint, length time.Duration, serve func(int) (time.Duration, bool)) []int {
	t.Helper()
	type flight struct {
		endpoint int
		end      time.Time
		latency  time.Duration
		failed   bool
	}
	set, rnd, got := mustNew(t, P2CEWMA, eps), chance(15), make([]int, len(eps))
	send := func(now time.Time) flight {
		i, ok := set.Pick(Request{Now: now, Random: rnd.Uint64()})
		if !ok {
			t.Fatal("nothing picked")
		}
		got[i]++
		eps[i].Stats.Begin(now)
		latency, failed := serve(i)
		return flight{i, now.Add(latency), latency, failed}
	}
	clients := make([]flight, 20)
	for c := range clients {
		clients[c] = send(noon)
	}
	for now := noon; now.Sub(noon) < length; {
		c := 0
		for k := range clients {
			if clients[k].end.Before(clients[c].end) {
				c = k
			}
		}
		f := clients[c]
		now = f.end
		eps[f.endpoint].Stats.End(now, f.latency, f.failed)
		clients[c] = send(now)
	}
	return got
}
