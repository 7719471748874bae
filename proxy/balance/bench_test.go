package balance

import (
	"fmt"
	"testing"
	"time"
)

// sizes show whether a pick's price grows with the number of endpoints.
var sizes = []int{1, 100, 10_000}

// A scene is a set as it may be found: weights, what is in flight, who is usable.
type scene struct {
	name    string
	odd     bool // unequal weights
	loaded  bool // requests in flight at all endpoints, some more and some fewer
	failing bool // all have failed lately
	slow    bool // a tenth is in slow start
	bounded bool // with a load factor
	usable  func(int) bool
}

var scenes = []scene{
	{name: "idle"},
	{name: "odd", odd: true},
	{name: "loaded", loaded: true},
	{name: "loaded odd", loaded: true, odd: true},
	{name: "failing", loaded: true, failing: true},
	{name: "tenth new", slow: true},
	{name: "bounded", loaded: true, bounded: true},
	{name: "tenth down", usable: func(i int) bool { return i%10 != 1 }},
}

func (sc *scene) set(tb testing.TB, s Strategy, n int) *Set {
	eps := same(n, 100)
	for i := range eps {
		if sc.odd {
			eps[i].Weight += i % 97
		}
		st := eps[i].Stats
		st.Begin(noon)
		st.End(noon, time.Duration(i%50+1)*time.Millisecond, sc.failing)
		if sc.loaded {
			for range i%7 + 1 {
				st.Begin(noon)
			}
		}
		if sc.slow && i%10 == 1 {
			st.SlowStart(noon)
		}
	}
	cfg := Config{Strategy: s}
	if sc.slow {
		cfg.SlowStart, cfg.Aggression = time.Hour, 2
	}
	if sc.bounded {
		cfg.LoadFactor = 1.25
	}
	return mustBuild(tb, cfg, eps)
}

func eachScene(do func(name string, sc *scene, s Strategy, n int)) {
	for _, s := range strategies {
		for i := range scenes {
			sc := &scenes[i]
			if s != LeastConn && s != P2CEWMA && sc.loaded && !sc.bounded || sc.bounded != (s == ConsistentHash) && sc.bounded {
				continue // it does not look at load, or has no bound
			}
			for _, n := range sizes {
				do(fmt.Sprintf("%s/%s/%d", s, sc.name, n), sc, s, n)
			}
		}
	}
}

func TestAPickDoesNotAllocateHoweverManyEndpoints(t *testing.T) {
	eachScene(func(name string, sc *scene, s Strategy, n int) {
		if sc.name == "idle" || sc.name == "loaded" || sc.name == "odd" && s != Weighted {
			return // the others go the same ways, and large sets are slow to make
		}
		set, x, now := sc.set(t, s, n), uint64(7), noon
		if a := testing.AllocsPerRun(100, func() {
			now = now.Add(time.Millisecond)
			v := next(&x)
			i, ok := set.Pick(Request{Now: now, Random: v, Hash: v, Usable: sc.usable})
			if !ok {
				t.Fatalf("%s: nothing picked", name)
			}
			st := set.At(i).Stats
			st.Begin(now)
			st.End(now, time.Millisecond, sc.failing)
		}); a != 0 {
			t.Errorf("%s: %v allocations", name, a)
		}
	})
}

func BenchmarkPick(b *testing.B) {
	eachScene(func(name string, sc *scene, s Strategy, n int) {
		b.Run(name, func(b *testing.B) {
			set, x, now := sc.set(b, s, n), uint64(1), noon.Add(time.Second)
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(10 * time.Microsecond)
				v := next(&x)
				set.Pick(Request{Now: now, Random: v, Hash: v, Usable: sc.usable})
			}
		})
	})
}

func BenchmarkPickParallel(b *testing.B) {
	for _, s := range strategies {
		set := scenes[0].set(b, s, 100)
		b.Run(string(s), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				x := uint64(1)
				for pb.Next() {
					v := next(&x)
					set.Pick(Request{Now: noon, Random: v, Hash: v})
				}
			})
		})
	}
}

func BenchmarkStats(b *testing.B) {
	for _, failed := range []bool{false, true} {
		b.Run(fmt.Sprintf("failed=%v", failed), func(b *testing.B) {
			var s Stats
			now := noon
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Millisecond)
				s.Begin(now)
				s.End(now, time.Millisecond, failed)
			}
		})
	}
}

func BenchmarkHashString(b *testing.B) {
	for _, key := range []string{"alice", "spiffe://weir.local/ns/shop/sa/cart"} {
		b.Run(fmt.Sprint(len(key)), func(b *testing.B) {
			for b.Loop() {
				HashString(key)
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for _, s := range strategies {
		for _, n := range []int{10, 1000} {
			eps := same(n, 100)
			for i := range eps {
				eps[i].Weight += i % 97
			}
			b.Run(fmt.Sprintf("%s/%d", s, n), func(b *testing.B) {
				for b.Loop() {
					mustNew(b, s, eps)
				}
			})
		}
	}
}
