package balance

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

func owners(t *testing.T, set *Set, keys int) []string {
	t.Helper()
	got := make([]string, keys)
	for k := range got {
		i, ok := set.Pick(Request{Hash: HashString(strconv.Itoa(k))})
		if !ok {
			t.Fatal("nothing picked")
		}
		got[k] = set.At(i).ID
	}
	return got
}

// When one endpoint goes, the keys it had must move; of the others at most five in a hundred.
func TestFewKeysMoveWhenOneEndpointGoes(t *testing.T) {
	const keys = 20_000
	for _, n := range []int{2, 3, 10, 50, 200, 1000} {
		eps := same(n, 100)
		gone := eps[n/2].ID
		before := owners(t, mustNew(t, ConsistentHash, eps), keys)
		after := owners(t, mustNew(t, ConsistentHash, slices.Delete(slices.Clone(eps), n/2, n/2+1)), keys)
		moved, had := 0, 0
		for k := range before {
			if before[k] == gone {
				had++
			} else if before[k] != after[k] {
				moved++
			}
		}
		t.Logf("n=%d: %.2f %% of the keys lost their endpoint, %.2f %% more moved", n, 100*float64(had)/keys, 100*float64(moved)/keys)
		if float64(had+moved)/keys > 1/float64(n)+0.05 {
			t.Errorf("n=%d: %d of %d keys moved, %d had to", n, had+moved, keys, had)
		}
	}
}

func TestSlotsAreSharedByWeight(t *testing.T) {
	for _, eps := range [][]Endpoint{same(3, 1), same(100, 7), endpoints(100, 50, 25), endpoints(MaxWeight, 1000, 5000), same(1000, 1), same(7000, 1)} {
		set := mustNew(t, ConsistentHash, eps)
		got, total := make([]int, len(eps)), 0
		for _, c := range set.maglev.table {
			got[c]++
		}
		for _, e := range eps {
			total += e.Weight
		}
		for i, e := range eps {
			want := float64(len(set.maglev.table)) * float64(e.Weight) / float64(total)
			if math.Abs(float64(got[i])-want) > 2 {
				t.Errorf("%d endpoints: weight %d of %d has %d slots, want %.0f", len(eps), e.Weight, total, got[i], want)
				break
			}
		}
	}
}

// The short way for equal weights gives the table that the heap gives.
func TestEqualWeightsGoRoundAsTheHeapDoes(t *testing.T) {
	set := mustNew(t, ConsistentHash, same(13, 5))
	heap := newMaglev(set.eps, set.cands, false)
	if !slices.Equal(set.maglev.table, heap.table) {
		t.Error("other tables")
	}
}

// Two proxies that heard of the endpoints in different order must agree.
func TestTheOrderOfEndpointsDoesNotMatter(t *testing.T) {
	eps := endpoints(1, 2, 3, 4, 4, 4, 1)
	want := owners(t, mustNew(t, ConsistentHash, eps), 5000)
	rnd := chance(1)
	for range 5 {
		rnd.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
		if !slices.Equal(owners(t, mustNew(t, ConsistentHash, eps), 5000), want) {
			t.Fatal("other owners")
		}
	}
}

// While an endpoint is down its keys spread over all others, each keeps its second choice, and no other key moves.
func TestKeysOfAnEndpointThatIsDown(t *testing.T) {
	set := mustNew(t, ConsistentHash, same(5, 1))
	rnd := rand.New(rand.NewPCG(3, 3))
	second := make([]int, 5)
	for range 20_000 {
		h := rnd.Uint64()
		first, _ := set.Pick(Request{Hash: h})
		up := func(i int) bool { return i != 2 }
		a, _ := set.Pick(Request{Hash: h, Random: rnd.Uint64(), Usable: up})
		b, _ := set.Pick(Request{Hash: h, Random: rnd.Uint64(), Usable: up})
		if a != b || a == 2 || first != 2 && a != first {
			t.Fatalf("first %d, then %d and %d", first, a, b)
		}
		if first == 2 {
			second[a]++
		}
	}
	for _, i := range []int{0, 1, 3, 4} {
		near(t, "second choice", second[i], second[0]+second[1]+second[3]+second[4], .25)
	}
}

// The hash is a contract: another value would move every key of every client at an upgrade.
func TestTheHashNeverChanges(t *testing.T) {
	for key, want := range map[string]uint64{"": 0xf52a15e9a9b5e89b, "alice": 0xc5d1556d66774a5c} {
		if got := HashString(key); got != want {
			t.Errorf("%q: %#x, want %#x", key, got, want)
		}
	}
}
