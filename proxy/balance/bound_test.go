package balance

import (
	"math"
	"testing"
	"time"
)

func bounded(t testing.TB, eps []Endpoint) *Set {
	return mustBuild(t, Config{Strategy: ConsistentHash, LoadFactor: 1.25}, eps)
}

// Half of the requests are for one key. No endpoint ever has more in flight than its share times 1.25, rounded up, whatever the weights.
func TestAHotKeyDoesNotFillItsEndpointPastTheBound(t *testing.T) {
	for _, weights := range [][]int{{1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {5, 1, 2, 2}} {
		eps := endpoints(weights...)
		total := 0
		for _, w := range weights {
			total += w
		}
		set, rnd := bounded(t, eps), chance(41)
		var flying []int
		for turn := range 20_000 {
			hash := HashString("hot")
			if rnd.IntN(2) == 0 {
				hash = rnd.Uint64()
			}
			i, ok := set.Pick(Request{Now: noon, Hash: hash})
			if !ok {
				t.Fatal("nothing picked")
			}
			most := math.Ceil(1.25 * float64(len(flying)+1) * float64(weights[i]) / float64(total))
			// A sum for a set of ten is exact for every pick.
			if got := eps[i].Stats.InFlight() + 1; float64(got) > most {
				t.Fatalf("%v, turn %d: %d in flight on endpoint %d, at most %v are to be", weights, turn, got, i, most)
			}
			eps[i].Stats.Begin(noon)
			flying = append(flying, i)
			for len(flying) > 200 || len(flying) > 0 && rnd.IntN(3) == 0 {
				at := rnd.IntN(len(flying))
				eps[flying[at]].Stats.End(noon, time.Millisecond, false)
				flying[at] = flying[len(flying)-1]
				flying = flying[:len(flying)-1]
			}
		}
	}
}

// While nobody is full each key is at home: the bound costs no stickiness that is not needed.
func TestWithoutLoadEachKeyIsAtHome(t *testing.T) {
	eps := same(10, 1)
	free, set := mustNew(t, ConsistentHash, eps), bounded(t, eps)
	rnd := chance(42)
	for range 5000 {
		h := rnd.Uint64()
		a, _ := free.Pick(Request{Hash: h})
		b, _ := set.Pick(Request{Now: noon, Hash: h})
		if a != b {
			t.Fatalf("at home at %d, went to %d", a, b)
		}
	}
}

// The same with many endpoints, whose load is added up now and then: the bound holds but for what came since.
func TestTheBoundHoldsForManyEndpoints(t *testing.T) {
	eps := same(1000, 1)
	set, rnd := bounded(t, eps), chance(43)
	for range 20_000 {
		hash := HashString("hot")
		if rnd.IntN(2) == 0 {
			hash = rnd.Uint64()
		}
		i, _ := set.Pick(Request{Now: noon, Hash: hash})
		eps[i].Stats.Begin(noon)
	}
	for i := range eps {
		if n := eps[i].Stats.InFlight(); n > 25 { // 1.25 × 20
			t.Errorf("%d in flight on endpoint %d", n, i)
		}
	}
}

// With half of the endpoints down the share of each is twice as large.
func TestTheBoundIsOfThoseThatAreUp(t *testing.T) {
	eps := same(10, 1)
	set, rnd := bounded(t, eps), chance(44)
	up := func(i int) bool { return i%2 == 0 }
	for range 1000 {
		i, ok := set.Pick(Request{Now: noon, Hash: rnd.Uint64(), Usable: up})
		if !ok || !up(i) {
			t.Fatalf("got %d, %v", i, ok)
		}
		eps[i].Stats.Begin(noon)
	}
	for i := range eps {
		if n := eps[i].Stats.InFlight(); n > 250 || up(i) && n < 100 {
			t.Errorf("%d in flight on endpoint %d", n, i)
		}
	}
	if i, ok := set.Pick(Request{Now: noon, Usable: func(int) bool { return false }}); ok {
		t.Errorf("%d is down and was picked", i)
	}
}

// When requests have ended the bound is lower again, at the latest after 10 ms.
func TestAnOldSumIsNotKept(t *testing.T) {
	eps := same(1000, 1)
	set := bounded(t, eps)
	for i := range eps {
		for range 10 {
			eps[i].Stats.Begin(noon)
		}
	}
	home, _ := set.Pick(Request{Now: noon, Hash: 1})
	for i := range eps {
		if i != home {
			for range 10 {
				eps[i].Stats.Cancel()
			}
		}
	}
	if i, _ := set.Pick(Request{Now: noon.Add(11 * time.Millisecond), Hash: 1}); i == home {
		t.Error("it has ten in flight, all others none, and got another")
	}
}
