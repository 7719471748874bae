package balance

const (
	// Up to this many endpoints least_conn looks at all: 4 ns each. Above it draws leastSample of them,
	// among which the best is, on average, in the best 6 % of all.
	leastScan   = 32
	leastSample = 16
	// Before it looks at all of more than twice as many, it draws this many for one that is idle.
	idleDraws = 4
	// redraws bounds the random draws past unusable endpoints before a scan.
	redraws = 8
)

func (s *Set) pickRandom(r *Request) (int, bool) {
	x := r.Random
	for range redraws {
		if i := s.cands[s.draw(&x)].index; s.usable(r, i) {
			return i, true
		}
	}
	return s.scan(r, next(&x))
}

// pickLeast takes an idle endpoint, which none can beat, as soon as it draws one: drawn by weight, they share a set as a look at all would.
func (s *Set) pickLeast(r *Request) (int, bool) {
	x := r.Random
	draws := 0
	if n := len(s.cands); n > leastScan {
		draws = leastSample
	} else if n > 2*idleDraws {
		draws = idleDraws
	}
	best := leader{at: -1}
	for range draws {
		at := s.draw(&x)
		c := &s.cands[at]
		load := c.stats.inFlight.Load()
		if load == 0 && s.usable(r, c.index) {
			return c.index, true
		}
		best.meet(at, load, c.weight, &x)
	}
	if len(s.cands) <= leastScan {
		best = s.least(&x)
	}
	if i := s.cands[best.at].index; s.usable(r, i) {
		return i, true
	}
	return s.leastUsable(r, &x)
}

// least looks at all.
func (s *Set) least(x *uint64) leader {
	l := leader{at: -1}
	for i := range s.cands {
		c := &s.cands[i]
		l.meet(i, c.stats.inFlight.Load(), c.weight, x)
	}
	return l
}

// leastUsable asks who is usable before it compares. It runs only when the best is not; of many it looks at all only if a second sample finds none.
func (s *Set) leastUsable(r *Request, x *uint64) (int, bool) {
	l := leader{at: -1}
	meet := func(at int) {
		if c := &s.cands[at]; s.usable(r, c.index) {
			l.meet(at, c.stats.inFlight.Load(), c.weight, x)
		}
	}
	if len(s.cands) > leastScan {
		for range leastSample {
			meet(s.draw(x))
		}
	}
	if l.at < 0 {
		for i := range s.cands {
			meet(i)
		}
	}
	if l.at < 0 {
		return -1, false
	}
	return s.cands[l.at].index, true
}

// A leader is the best so far. It keeps the load it was judged by: the counters move meanwhile.
type leader struct {
	at             int
	inFlight, ties int64 // ties: the weights of all that were as good
	weight         int64
}

// meet judges one more: it compares by load/weight, without division. Without a leader the fields are 0, and beat nothing.
func (l *leader) meet(at int, load, weight int64, x *uint64) {
	if l.inFlight*weight >= load*l.weight {
		l.yield(at, load, weight, x)
	}
}

// yield takes over one that is as good or better. Ties are drawn by weight, so that an idle set is shared by weight.
func (l *leader) yield(at int, load, weight int64, x *uint64) {
	if l.at >= 0 && load*l.weight == l.inFlight*weight {
		l.ties += weight
		if scale(next(x), uint64(l.ties)) < uint64(weight) {
			l.at, l.inFlight, l.weight = at, load, weight
		}
		return
	}
	*l = leader{at: at, inFlight: load, weight: weight, ties: weight}
}

// pickP2C draws two and takes the one whose expected wait is shorter (Stats.cost).
// Weight enters by the draw, and scales what is in flight: an idle set of equally fast endpoints is then shared exactly by weight,
// where dividing the whole load by weight would send everything to the heaviest.
func (s *Set) pickP2C(r *Request) (int, bool) {
	x := r.Random
	if len(s.cands) == 1 {
		i := s.cands[0].index
		return i, s.usable(r, i)
	}
	tick := ticks(r.Now)
	for range redraws / 2 {
		a, b := s.two(&x)
		if s.cost(b, tick) < s.cost(a, tick) {
			a, b = b, a
		}
		if i := s.cands[a].index; s.usable(r, i) {
			return i, true
		}
		if i := s.cands[b].index; b != a && s.usable(r, i) {
			return i, true
		}
	}
	return s.scan(r, next(&x))
}

// two draws two candidates: different ones if weights are equal. Unequal weights are drawn with repetition;
// else of two endpoints 99:1 both would be in every pair, and the weights lost.
func (s *Set) two(x *uint64) (a, b int) {
	if !s.equal {
		return s.draw(x), s.draw(x)
	}
	n := uint64(len(s.cands))
	a = int(scale(next(x), n))
	b = int(scale(next(x), n-1))
	if b >= a {
		b++
	}
	return a, b
}

// draw draws one by weight.
func (s *Set) draw(x *uint64) int {
	if s.equal {
		return int(scale(next(x), uint64(len(s.cands))))
	}
	return int(s.alias.draw(next(x)))
}

func (s *Set) cost(at int, tick uint32) float64 {
	c := &s.cands[at]
	return c.stats.cost(tick, c.slowness)
}
