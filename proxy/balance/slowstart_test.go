package balance

import (
	"math"
	"testing"
	"time"
)

func mustBuild(t testing.TB, cfg Config, eps []Endpoint) *Set {
	t.Helper()
	set, err := Build(cfg, eps)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// shareAt is what an endpoint gets of n picks at a time.
func shareAt(t *testing.T, set *Set, at time.Time, n int, index int) float64 {
	t.Helper()
	rnd, got := chance(31), 0
	for range n {
		i, ok := set.Pick(Request{Now: at, Random: rnd.Uint64(), Hash: rnd.Uint64()})
		if !ok {
			t.Fatal("nothing picked")
		}
		if i == index {
			got++
		}
	}
	return float64(got) / float64(n)
}

// Envoy's formula, with its least share of a tenth.
func TestAnEndpointInSlowStartIsReadyForMoreAndMore(t *testing.T) {
	for _, c := range []struct {
		aggression float64
		at         time.Duration
		want       float64
	}{
		{1, 0, 0.1}, {1, 2 * time.Second, 0.1}, {1, 15 * time.Second, 0.5}, {1, 30 * time.Second, 1}, {0, 15 * time.Second, 0.5},
		{2, 7500 * time.Millisecond, 0.5}, {0.5, 15 * time.Second, 0.25}, {1, -time.Hour, 0.1},
	} {
		var s Stats
		s.SlowStart(noon)
		w := newSlowStart(Config{SlowStart: 30 * time.Second, Aggression: c.aggression})
		if got := w.ready(&s, ticks(noon.Add(c.at))); math.Abs(got-c.want) > 0.001 {
			t.Errorf("aggression %v after %v: %v, want %v", c.aggression, c.at, got, c.want)
		}
	}
}

func TestANewEndpointBeginsSlowly(t *testing.T) {
	for _, s := range strategies {
		eps := same(4, 100)
		set := mustBuild(t, Config{Strategy: s, SlowStart: 30 * time.Second}, eps)
		eps[2].Stats.SlowStart(noon)
		before := 0.0
		for _, c := range []struct {
			at        time.Duration
			low, high float64
		}{{0, 0.015, 0.05}, {9 * time.Second, 0.06, 0.12}, {18 * time.Second, 0.13, 0.2}, {30 * time.Second, 0.24, 0.26}, {time.Hour, 0.24, 0.26}} {
			got := shareAt(t, set, noon.Add(c.at), 40_000, 2)
			if s == ConsistentHash { // it has no slow start
				c.low, c.high = 0.24, 0.26
			}
			if got < c.low || got > c.high || got < before-0.01 {
				t.Errorf("%s after %v: a share of %.3f, want %v to %v", s, c.at, got, c.low, c.high)
			}
			before = got
		}
		if s != ConsistentHash && eps[2].Stats.begun.Load() != 0 {
			t.Errorf("%s: an endpoint that is through is still looked after", s)
		}
	}
}

// If all are new, or all others are down, there is nobody to wait for.
func TestSlowStartHoldsNothingBackThatNobodyElseTakes(t *testing.T) {
	for _, s := range strategies {
		eps := same(4, 100)
		set := mustBuild(t, Config{Strategy: s, SlowStart: time.Minute}, eps)
		for i := range eps {
			eps[i].Stats.SlowStart(noon)
		}
		for i := range eps {
			if got := shareAt(t, set, noon, 20_000, i); got < 0.23 || got > 0.27 {
				t.Errorf("%s: all are new, endpoint %d got %.3f", s, i, got)
			}
		}
		for i := range eps[:3] {
			eps[i].Stats.begun.Store(0)
		}
		for range 100 {
			if i, ok := set.Pick(Request{Now: noon, Usable: func(i int) bool { return i == 3 }}); !ok || i != 3 {
				t.Fatalf("%s: the only one that is up is new: got %d, %v", s, i, ok)
			}
		}
	}
}

// With fewest in flight it would get everything.
func TestLeastConnIsNotDrawnToANewEndpoint(t *testing.T) {
	eps := same(4, 100)
	for i := range 3 {
		for range 20 {
			eps[i].Stats.Begin(noon)
		}
	}
	set := mustBuild(t, Config{Strategy: LeastConn, SlowStart: 30 * time.Second}, eps)
	eps[3].Stats.SlowStart(noon)
	if got := shareAt(t, set, noon.Add(15*time.Second), 20_000, 3); got < 0.48 || got > 0.52 {
		t.Errorf("half ready, it got %.3f of what all others would have left to it", got)
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"a load factor of 1":       {Strategy: ConsistentHash, LoadFactor: 1},
		"no number":                {Strategy: ConsistentHash, LoadFactor: math.NaN()},
		"a slow start of a year":   {SlowStart: 365 * 24 * time.Hour},
		"a negative one":           {SlowStart: -1},
		"an aggression that is no": {SlowStart: 1, Aggression: -1},
	} {
		if _, err := Build(cfg, endpoints(1)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	bare := []Endpoint{{ID: "a", Weight: 1}}
	for _, cfg := range []Config{{Strategy: ConsistentHash, LoadFactor: 2}, {Strategy: RoundRobin, SlowStart: time.Second}} {
		if _, err := Build(cfg, bare); err == nil {
			t.Errorf("%+v without Stats is taken", cfg)
		}
	}
}
