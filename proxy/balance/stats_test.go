package balance

import (
	"math"
	"testing"
	"time"
)

// slowStats is the peak-EWMA as Finagle defines it, in full precision.
type slowStats struct {
	est      float64
	at       time.Time
	measured bool
}

func (s *slowStats) end(now time.Time, latency time.Duration) {
	sample := float64(max(latency, minLatency))
	if !s.measured || sample > s.est {
		s.est = sample
	} else {
		w := math.Exp(-float64(now.Sub(s.at)) / float64(decay))
		s.est = s.est*w + sample*(1-w)
	}
	s.at, s.measured = now, true
}

func (s *slowStats) latency(now time.Time) float64 {
	return max(s.est*math.Exp(-float64(now.Sub(s.at))/float64(decay)), float64(minLatency))
}

func TestLatencyFollowsTheDefinition(t *testing.T) {
	rnd := chance(1)
	var fast Stats
	slow, now := slowStats{}, noon
	for range 20_000 {
		now = now.Add(time.Duration(rnd.IntN(20_000)) * time.Microsecond)
		l := time.Duration(rnd.ExpFloat64() * float64(20*time.Millisecond))
		fast.Begin(now)
		fast.End(now, l, false)
		slow.end(now, l)
		// Ticks of 131 µs and 24 bits of precision: the two drift apart, but not far.
		if got, want := float64(fast.Latency(now)), slow.latency(now); math.Abs(got-want) > 0.01*want {
			t.Fatalf("%s: %v, want %v", now.Sub(noon), time.Duration(got), time.Duration(want))
		}
	}
}

func TestLatencyOfAnEndpoint(t *testing.T) {
	ms := time.Millisecond
	after := func(s *Stats, d time.Duration) time.Duration { return s.Latency(noon.Add(d)).Round(ms) }
	send := func(s *Stats, at, latency time.Duration, failed bool) {
		s.Begin(noon.Add(at))
		s.End(noon.Add(at), latency, failed)
	}
	for _, c := range []struct {
		name string
		play func(s *Stats) time.Duration
		want time.Duration
	}{
		{"never looked at: the default", func(s *Stats) time.Duration { return after(s, 0) }, 30 * ms},
		{"not yet measured: the default fades", func(s *Stats) time.Duration { after(s, 0); return after(s, 10*time.Second) }, 11 * ms},
		{"the first answer replaces the default", func(s *Stats) time.Duration { send(s, 0, 2*ms, false); return after(s, 0) }, 2 * ms},
		{"a first failure does not", func(s *Stats) time.Duration { send(s, 0, ms, true); return after(s, 0) }, 30 * ms},
		{"nor the answer after it, at once", func(s *Stats) time.Duration {
			send(s, 0, ms, true)
			send(s, 0, 2*ms, false)
			return after(s, 0)
		}, 2 * ms},
		{"a slow answer counts at once", func(s *Stats) time.Duration {
			send(s, 0, 2*ms, false)
			send(s, time.Second, 500*ms, false)
			return after(s, time.Second)
		}, 500 * ms},
		{"a fast one counts by the time passed", func(s *Stats) time.Duration {
			send(s, 0, 100*ms, false)
			send(s, 10*time.Second, 10*ms, false)
			return after(s, 10*time.Second)
		}, 43 * ms},
		{"a fast failure does not lower it", func(s *Stats) time.Duration {
			send(s, 0, 100*ms, false)
			send(s, 10*time.Second, 1, true)
			return after(s, 10*time.Second)
		}, 100 * ms},
		{"a slow failure raises it", func(s *Stats) time.Duration {
			send(s, 0, ms, false)
			send(s, 0, time.Second, true)
			return after(s, 0)
		}, time.Second},
		{"an idle endpoint becomes attractive again, with a floor", func(s *Stats) time.Duration {
			send(s, 0, time.Minute, false)
			return s.Latency(noon.Add(24 * time.Hour)).Round(1)
		}, minLatency},
		{"a clock set back an hour does not freeze it", func(s *Stats) time.Duration {
			send(s, 0, 100*ms, false)
			send(s, -time.Hour, 10*ms, false)
			send(s, -time.Hour+10*time.Second, 10*ms, false)
			return after(s, -time.Hour+10*time.Second)
		}, 43 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.play(new(Stats)); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestCancelTeachesNothing(t *testing.T) {
	var s Stats
	s.Begin(noon)
	s.End(noon, time.Millisecond, false)
	s.Begin(noon)
	if s.InFlight() != 1 {
		t.Fatal(s.InFlight())
	}
	s.Cancel()
	if s.InFlight() != 0 || s.Latency(noon).Round(time.Microsecond) != time.Millisecond {
		t.Fatal(s.InFlight(), s.Latency(noon))
	}
}

// The share of failures follows the last few verdicts, and fades when nothing more is heard.
func TestFailuresMakeAnEndpointDear(t *testing.T) {
	var s Stats
	factor := func(at time.Duration) float64 {
		tick := ticks(noon.Add(at))
		return s.cost(tick, 1) / s.latency(tick)
	}
	send := func(n int, failed bool) {
		for range n {
			s.Begin(noon)
			s.End(noon, time.Millisecond, failed)
		}
	}
	expect := func(what string, at time.Duration, low, high float64) {
		t.Helper()
		if f := factor(at); f < low || f > high {
			t.Errorf("%s: %.3f times dearer, want %v to %v", what, f, low, high)
		}
	}
	send(100, false)
	expect("all well", 0, 1, 1)
	send(1, true)
	expect("one failure", 0, 1.14, 1.15)
	send(4, true)
	expect("five failures", 0, 1.9, 2.1)
	send(1000, true)
	expect("nothing but failures", 0, 99, 101)
	expect("ten seconds later", 10*time.Second, 1.5, 1.6)
	send(8, false)
	expect("eight successes", 0, 1.4, 1.6)
	send(60, false)
	if expect("forgotten", 0, 1, 1); s.failing.Load() != 0 {
		t.Error("the share of failures is not back to 0")
	}
}
