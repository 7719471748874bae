package balance

import (
	"math"
	"time"
)

// leastReady is the share that a new endpoint gets from its first moment on (Envoy's min_weight_percent):
// with nothing at all it would learn nothing.
const leastReady = 0.1

// SlowStart begins the endpoint's slow start at now: it is new, or back. How long it lasts is the set's to say.
func (s *Stats) SlowStart(now time.Time) { s.begun.Store(max(ticks(now), 1)) }

// slowStart is how the share of a new endpoint grows. The zero value is at once.
type slowStart struct {
	ticks    uint32  // 0 is none
	exponent float64 // 1 / aggression
}

func newSlowStart(cfg Config) slowStart {
	if cfg.SlowStart <= 0 || cfg.Strategy == ConsistentHash {
		return slowStart{}
	}
	s := slowStart{ticks: uint32(max(cfg.SlowStart>>tickShift, 1)), exponent: 1}
	if cfg.Aggression > 0 {
		s.exponent = 1 / cfg.Aggression
	}
	return s
}

// ready is the share of its traffic that an endpoint is ready for: (age / duration) ^ (1 / aggression), as in Envoy.
// An endpoint that is through is asked no more.
func (w slowStart) ready(s *Stats, tick uint32) float64 {
	begun := s.begun.Load()
	if begun == 0 {
		return 1
	}
	age := int32(tick - begun)
	if age < 0 { // a wall clock set back: it starts from there
		s.begun.CompareAndSwap(begun, max(tick, 1))
		return leastReady
	}
	if uint32(age) >= w.ticks {
		s.begun.CompareAndSwap(begun, 0)
		return 1
	}
	share := float64(age) / float64(w.ticks)
	if w.exponent != 1 {
		share = math.Pow(share, w.exponent)
	}
	return max(share, leastReady)
}

// holds says whether an endpoint is passed over for this request: in slow start it is for all but the share that it is
// ready for. That is drawn once for each request and endpoint: a strategy that comes back to it gets the same answer.
func (s *Set) holds(r *Request, index int) bool {
	ready := s.slow.ready(s.eps[index].Stats, ticks(r.Now))
	if ready >= 1 {
		return false
	}
	x := mix(r.Random ^ uint64(index+1)*0x9e3779b97f4a7c15)
	return float64(x>>11) >= ready*(1<<53)
}
