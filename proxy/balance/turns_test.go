package balance

import (
	"math"
	"testing"
)

// Round robin is exact: in any n successive picks each of n endpoints comes once.
func TestRoundRobinIsFairInEveryWindow(t *testing.T) {
	const n = 7
	set := mustNew(t, RoundRobin, endpoints(1, 5, 1, 9, 100, 1, 1))
	rnd := chance(1)
	last := map[int]int{}
	for turn := range 10 * n {
		i, _ := set.Pick(Request{Random: rnd.Uint64()})
		if before, seen := last[i]; seen && turn-before != n {
			t.Fatalf("endpoint %d came at %d and %d", i, before, turn)
		}
		last[i] = turn
	}
	if len(last) != n {
		t.Fatalf("only %v came", last)
	}
}

// The neighbour of an endpoint that is down must not get its share on top of its own.
func TestRoundRobinSharesAroundTheUnusable(t *testing.T) {
	set := mustNew(t, RoundRobin, same(5, 1))
	got := share(t, set, 4000, chance(1), func(i int) bool { return i != 2 })
	for i, n := range got {
		if want := 1000; i != 2 && (n < want-1 || n > want+1) {
			t.Errorf("endpoint %d got %d, want %d", i, n, want)
		}
	}
}

// Sets are remade by all proxies at each change of the mesh. If each began with its first endpoint, that one would be hit by all.
func TestNewSetsDoNotAllBeginWithTheFirst(t *testing.T) {
	for _, s := range []Strategy{RoundRobin, Weighted} {
		rnd := chance(4)
		first := make([]int, 3)
		for range 3000 {
			i, _ := mustNew(t, s, endpoints(1, 1, 2)).Pick(Request{Random: rnd.Uint64()})
			first[i]++
		}
		if s == RoundRobin && (first[0] < 900 || first[2] > 1100) || s == Weighted && (first[0] < 650 || first[0] > 850) {
			t.Errorf("%s: %v", s, first)
		}
	}
}

// slowSmooth is smooth weighted round robin as its definition has it, turn by turn.
type slowSmooth struct{ weights, current []int }

func (s *slowSmooth) turn() int {
	total, best := 0, 0
	for i, w := range s.weights {
		total += w
		if s.current[i] += w; s.current[i] > s.current[best] {
			best = i
		}
	}
	s.current[best] -= total
	return best
}

func TestWeightedFollowsTheDefinition(t *testing.T) {
	for _, weights := range [][]int{{5, 1, 1}, {100, 100, 50}, {90, 10}, {1, 2, 3, 4, 5, 6, 7}, {300, 0, 200}, {4000, 96}} {
		set := mustNew(t, Weighted, endpoints(weights...))
		if set.slots == nil {
			t.Fatalf("%v: not written out", weights)
		}
		slow := &slowSmooth{weights, make([]int, len(weights))}
		// Random: 0 starts at the first slot.
		for turn := range 3 * len(set.slots) {
			got, _ := set.Pick(Request{})
			if want := slow.turn(); got != want {
				t.Fatalf("%v: turn %d: got %d, want %d", weights, turn, got, want)
			}
		}
	}
}

// Weights too odd to write out: shares stay within two picks of exact at every moment for two endpoints, and no one waits for long.
func TestWeightedBeyondTheTable(t *testing.T) {
	for _, weights := range [][]int{{99_991, 9_973}, {MaxWeight, 1_001, 7}, {31_337, 27_644, 91_193, 12_345, 54_321}} {
		set := mustNew(t, Weighted, endpoints(weights...))
		if set.slots != nil {
			t.Fatalf("%v: was written out", weights)
		}
		total := 0
		for _, w := range weights {
			total += w
		}
		got := make([]int, len(weights))
		for turn := 1; turn <= 100_000; turn++ {
			i, _ := set.Pick(Request{})
			got[i]++
			for k, w := range weights {
				want := float64(turn) * float64(w) / float64(total)
				if math.Abs(float64(got[k])-want) > 5 {
					t.Fatalf("%v: after %d turns endpoint %d has %d, want %.1f", weights, turn, k, got[k], want)
				}
			}
		}
	}
}

func TestWeightedHasNoBursts(t *testing.T) {
	for _, weights := range [][]int{{5, 1, 1}, {50_021, 10_007, 9_973}} {
		set := mustNew(t, Weighted, endpoints(weights...))
		last, run, longest := -1, 0, 0
		for range 10_000 {
			i, _ := set.Pick(Request{Random: 12345})
			if run++; i != last {
				last, run = i, 1
			}
			longest = max(longest, run)
		}
		// 5 of 7 are the first's: between two others at most ⌈5/2⌉ + 2 of it.
		if longest > 5 {
			t.Errorf("%v: the same endpoint %d times in a row", weights, longest)
		}
	}
}

// When the heavy one is down, its turns must not fall to one neighbour alone.
func TestWeightedAroundTheUnusable(t *testing.T) {
	set := mustNew(t, Weighted, endpoints(6, 2, 2))
	got := share(t, set, 4000, chance(1), func(i int) bool { return i != 0 })
	if got[1] < 1990 || got[1] > 2010 {
		t.Errorf("%v", got)
	}
}
