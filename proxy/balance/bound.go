package balance

import "math"

// Bounded load (Mirrokni, Thorup, Zadimoghaddam 2018): no endpoint gets a request that would put more in flight on it than its share
// of all that is in flight, times the load factor, rounded up. A key whose endpoint is full goes where it would go if that were down.

const (
	// What is in flight on the whole set is added up for as many picks as it has endpoints, divided by this; the mean can have grown by an
	// eighth of a request then. Each pick pays for eight looks, however many endpoints there are; below 16 the sum is exact.
	looksPerPick = 8
	// And after 10 ms: it may have shrunk.
	sumTicks = 10e6 >> tickShift
)

// sum is what is in flight on the usable endpoints of a set, and their weights.
type sum struct{ inFlight, weight int64 }

// full says whether one request more would be too many for a candidate.
func (s *Set) full(c *candidate, all sum) bool {
	if s.factor == 0 || all.weight == 0 {
		return false
	}
	most := math.Ceil(s.factor * float64(all.inFlight+1) * float64(c.weight) / float64(all.weight))
	return float64(c.stats.inFlight.Load()) >= most
}

// load gives the sum as it was lately.
func (s *Set) load(r *Request) sum {
	if s.factor == 0 {
		return sum{}
	}
	tick := ticks(r.Now)
	if s.sumLeft.Add(-1) >= 0 && tick-s.sumAt.Load() < sumTicks {
		return sum{s.sumInFlight.Load(), s.sumWeight.Load()}
	}
	var all sum
	for i := range s.cands {
		if c := &s.cands[i]; s.usable(r, c.index) {
			all.inFlight += c.stats.inFlight.Load()
			all.weight += c.weight
		}
	}
	// Two loops that add up at once leave a mixture of two sums that are good both.
	s.sumInFlight.Store(all.inFlight)
	s.sumWeight.Store(all.weight)
	s.sumAt.Store(tick)
	s.sumLeft.Store(int64(len(s.cands)/looksPerPick - 1))
	return all
}
