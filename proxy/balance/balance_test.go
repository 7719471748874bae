package balance

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var strategies = []Strategy{RoundRobin, Weighted, LeastConn, Random, ConsistentHash, P2CEWMA}

// endpoints makes one endpoint per weight: e0, e1, …
func endpoints(weights ...int) []Endpoint {
	eps := make([]Endpoint, len(weights))
	for i, w := range weights {
		eps[i] = Endpoint{ID: fmt.Sprintf("e%d", i), Weight: w, Stats: new(Stats)}
	}
	return eps
}

func same(n, weight int) []Endpoint {
	weights := make([]int, n)
	for i := range weights {
		weights[i] = weight
	}
	return endpoints(weights...)
}

func mustNew(t testing.TB, s Strategy, eps []Endpoint) *Set {
	t.Helper()
	set, err := New(s, eps)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// share picks n times with fresh chance and counts.
func share(t testing.TB, set *Set, n int, rnd *rand.Rand, usable func(int) bool) []int {
	t.Helper()
	got := make([]int, set.Len())
	for range n {
		i, ok := set.Pick(Request{Now: noon, Random: rnd.Uint64(), Hash: rnd.Uint64(), Usable: usable})
		if !ok {
			t.Fatal("nothing picked")
		}
		got[i]++
	}
	return got
}

func chance(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func TestNewRefuses(t *testing.T) {
	noStats := endpoints(1, 1)
	noStats[1].Stats = nil
	for _, c := range []struct {
		name string
		s    Strategy
		eps  []Endpoint
		want string
	}{
		{"an unknown strategy", "fastest", endpoints(1), `unknown strategy "fastest"`},
		{"no ID", Random, []Endpoint{{Weight: 1}}, "endpoint 0 has no ID"},
		{"an ID twice", Random, []Endpoint{{ID: "a"}, {ID: "a"}}, `"a" is there twice`},
		{"a negative weight", Random, endpoints(-1), "weight -1"},
		{"too large a weight", Random, endpoints(MaxWeight + 1), "not in 0..1000000"},
		{"least_conn without Stats", LeastConn, noStats, `"e1" has no Stats`},
		{"p2c_ewma without Stats", "", noStats, `"e1" has no Stats`},
		{"too many to hash", ConsistentHash, make([]Endpoint, MaxHashed+1), "too many"},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, err := New(c.s, c.eps)
			if err == nil || !strings.Contains(err.Error(), c.want) || set != nil {
				t.Fatalf("got %v, %v; want an error with %q", set, err, c.want)
			}
		})
	}
}

func TestNobodyToPick(t *testing.T) {
	for _, s := range strategies {
		for _, n := range []int{0, 1, 2, 100, 700} {
			set := mustNew(t, s, same(n, 1))
			asked := 0
			i, ok := set.Pick(Request{Now: noon, Usable: func(int) bool { asked++; return false }})
			if ok || i != -1 && n != 1 {
				t.Errorf("%s: picked %d of %d unusable", s, i, n)
			}
			if asked > 2*n+maxTurns {
				t.Errorf("%s: asked %d times about %d endpoints", s, asked, n)
			}
		}
	}
}

// However few are usable, and whatever their weight, a usable one is found; and a usable choice costs one question.
func TestTheOnlyUsableOneIsFound(t *testing.T) {
	rnd := chance(1)
	for _, s := range strategies {
		for _, eps := range [][]Endpoint{same(1, 1), same(2, 5), same(100, 1), same(700, 3), endpoints(1, MaxWeight, MaxWeight), endpoints(999_983, 2, 999_979, 1)} {
			set := mustNew(t, s, eps)
			for only := range min(len(eps), 20) {
				i, ok := set.Pick(Request{Now: noon, Random: rnd.Uint64(), Hash: rnd.Uint64(), Usable: func(i int) bool { return i == only }})
				if !ok || i != only {
					t.Fatalf("%s of %d: got %d, %v; want %d", s, len(eps), i, ok, only)
				}
			}
			asked := 0
			set.Pick(Request{Now: noon, Usable: func(int) bool { asked++; return true }})
			if asked != 1 {
				t.Errorf("%s of %d: asked %d times, all usable", s, len(eps), asked)
			}
		}
	}
}

func TestWeightZeroDrains(t *testing.T) {
	for _, s := range strategies {
		set := mustNew(t, s, endpoints(0, 10, 0, 20))
		if got := share(t, set, 1000, chance(2), nil); got[0]+got[2] != 0 || got[1] == 0 || got[3] == 0 {
			t.Errorf("%s: %v", s, got)
		}
		if i, ok := set.Pick(Request{Now: noon, Usable: func(i int) bool { return i == 0 }}); ok {
			t.Errorf("%s: %d drains and was picked because the others are down", s, i)
		}
		for i, n := range share(t, mustNew(t, s, endpoints(0, 0, 0)), 3000, chance(3), nil) {
			if n < 850 || n > 1150 {
				t.Errorf("%s: all drain, endpoint %d got %d of 3000", s, i, n)
			}
		}
	}
}

func TestASetKeepsWhatItWasGiven(t *testing.T) {
	eps := endpoints(1, 2)
	set := mustNew(t, "", eps)
	eps[0].ID = "changed"
	if set.At(0).ID != "e0" || set.Len() != 2 || set.Strategy() != P2CEWMA {
		t.Fatalf("%v %d %s", set.At(0), set.Len(), set.Strategy())
	}
	if !Strategy("").Valid() || Strategy("Random").Valid() {
		t.Fatal("Valid")
	}
}

func TestAPickDoesNotAllocate(t *testing.T) {
	for _, s := range strategies {
		for _, eps := range [][]Endpoint{same(10, 1), endpoints(1, 2, 3, 999_983)} {
			set := mustNew(t, s, eps)
			down := func(i int) bool { return i != 1 }
			x := uint64(7)
			if n := testing.AllocsPerRun(1000, func() {
				i, _ := set.Pick(Request{Now: noon, Random: next(&x), Hash: HashString("alice"), Usable: down})
				set.At(i).Stats.Begin(noon)
				set.At(i).Stats.End(noon, time.Millisecond, false)
			}); n != 0 {
				t.Errorf("%s: %v allocations", s, n)
			}
		}
	}
}

// All strategies at once from many goroutines: for the race detector, and the books must balance at the end.
func TestConcurrentPicks(t *testing.T) {
	eps := endpoints(1, 2, 3, 0)
	var wg sync.WaitGroup
	for _, s := range strategies {
		set := mustNew(t, s, eps)
		for g := range 3 {
			wg.Go(func() {
				rnd := chance(uint64(g))
				for range 2000 {
					i, ok := set.Pick(Request{Now: noon, Random: rnd.Uint64(), Hash: rnd.Uint64()})
					if !ok || i == 3 {
						t.Errorf("%s: %d, %v", s, i, ok)
						return
					}
					st := eps[i].Stats
					st.Begin(noon)
					if rnd.IntN(10) == 0 {
						st.Cancel()
						continue
					}
					st.End(noon.Add(time.Millisecond), time.Millisecond, rnd.IntN(5) == 0)
				}
			})
		}
	}
	wg.Wait()
	for _, e := range eps {
		if n := e.Stats.InFlight(); n != 0 {
			t.Errorf("%s: %d in flight", e.ID, n)
		}
	}
}
