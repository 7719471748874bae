package balance

const (
	// Up to this many endpoints least_conn looks at all: 6 ns each, under a microsecond. Above it looks at leastSample of them,
	// among which the best is, on average, in the best 6 % of all.
	leastScan   = 128
	leastSample = 16
	// redraws bounds the random draws past unusable endpoints before a scan.
	redraws = 8
)

func (s *Set) pickRandom(r *Request) (int, bool) {
	x := r.Random
	n := uint64(len(s.cands))
	for range redraws {
		if i := s.cands[scale(next(&x), n)].index; r.usable(i) {
			return i, true
		}
	}
	return s.scan(r, next(&x))
}

func (s *Set) pickLeast(r *Request) (int, bool) {
	x := r.Random
	best := s.least(&x)
	if i := s.cands[best].index; r.usable(i) {
		return i, true
	}
	return s.leastUsable(r, &x)
}

// A leader is the best so far. It keeps the load it was judged by: the counters move meanwhile.
type leader struct {
	at             int
	inFlight, ties int64 // ties: the weights of all that were as good
	weight         int64
}

// meet compares by load/weight without division. Ties are drawn by weight, so that an idle set is shared by weight.
func (l *leader) meet(at int, c *candidate, x *uint64) {
	load := c.stats.inFlight.Load()
	mine, theirs := load*l.weight, l.inFlight*c.weight
	switch {
	case l.at < 0 || mine < theirs:
		*l = leader{at: at, inFlight: load, weight: c.weight, ties: c.weight}
	case mine == theirs:
		l.ties += c.weight
		if scale(next(x), uint64(l.ties)) < uint64(c.weight) {
			l.at, l.inFlight, l.weight = at, load, c.weight
		}
	}
}

func (s *Set) least(x *uint64) int {
	l := leader{at: -1}
	if len(s.cands) <= leastScan {
		for i := range s.cands {
			l.meet(i, &s.cands[i], x)
		}
		return l.at
	}
	for range leastSample {
		i := int(scale(next(x), uint64(len(s.cands))))
		l.meet(i, &s.cands[i], x)
	}
	return l.at
}

// leastUsable looks at all: it runs only when the best is not usable.
func (s *Set) leastUsable(r *Request, x *uint64) (int, bool) {
	l := leader{at: -1}
	for i := range s.cands {
		if r.usable(s.cands[i].index) {
			l.meet(i, &s.cands[i], x)
		}
	}
	if l.at < 0 {
		return -1, false
	}
	return s.cands[l.at].index, true
}

// pickP2C draws two and takes the one whose expected wait is shorter (Stats.cost).
// Weight enters by the draw, and scales what is in flight: an idle set of equally fast endpoints is then shared exactly by weight,
// where dividing the whole load by weight would send everything to the heaviest.
func (s *Set) pickP2C(r *Request) (int, bool) {
	x := r.Random
	if len(s.cands) == 1 {
		i := s.cands[0].index
		return i, r.usable(i)
	}
	tick := ticks(r.Now)
	for range redraws / 2 {
		a, b := s.two(&x)
		if s.cost(b, tick) < s.cost(a, tick) {
			a, b = b, a
		}
		if i := s.cands[a].index; r.usable(i) {
			return i, true
		}
		if i := s.cands[b].index; b != a && r.usable(i) {
			return i, true
		}
	}
	return s.scan(r, next(&x))
}

// two draws two candidates: different ones if weights are equal. Unequal weights are drawn with repetition;
// else of two endpoints 99:1 both would be in every pair, and the weights lost.
func (s *Set) two(x *uint64) (a, b int) {
	if !s.equal {
		return int(s.alias.draw(next(x))), int(s.alias.draw(next(x)))
	}
	n := uint64(len(s.cands))
	a = int(scale(next(x), n))
	b = int(scale(next(x), n-1))
	if b >= a {
		b++
	}
	return a, b
}

func (s *Set) cost(at int, tick uint32) float64 {
	c := &s.cands[at]
	return c.stats.cost(tick, c.slowness)
}
