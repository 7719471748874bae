package balance

import (
	"cmp"
	"slices"
)

const (
	// Table sizes are primes (Eisenbud et al., "Maglev", NSDI 2016, section 3.4). The size must not follow the number of endpoints,
	// or each change of size would move all keys: one size serves up to 6553 endpoints (ten slots for each), another the rest.
	smallTable, smallTableEndpoints = 65537, 6553
	largeTable                      = 655373
)

// maglev maps a hash to a candidate by one look in a table. When one of n endpoints goes, its share 1/n of the keys moves, and few others.
type maglev struct {
	table []uint16 // candidate per slot
}

// A filler is one candidate's preference list over the slots, a permutation made by steps of skip, and its place in the order of turns.
type filler struct {
	cand       uint16
	slot, skip uint32
	due, step  float64 // its next turn, and the time between two: the heavier the shorter
	rank       int     // decides between turns due at once; whoever leaves, the others keep their order
}

func (f *filler) before(g *filler) bool {
	return f.due < g.due || f.due == g.due && f.rank < g.rank
}

func newMaglev(eps []Endpoint, cands []candidate, equal bool) maglev {
	size := uint32(smallTable)
	if len(cands) > smallTableEndpoints {
		size = largeTable
	}
	fillers := make([]filler, len(cands))
	for i, c := range cands {
		h := HashString(eps[c.index].ID)
		fillers[i] = filler{
			cand: uint16(i),
			slot: uint32(scale(h, uint64(size))),
			skip: uint32(scale(mix(h+1), uint64(size-1))) + 1,
			step: 1 / float64(c.weight),
			due:  1 / float64(c.weight),
		}
	}
	// By ID, so that all proxies make the same table whatever order they heard of the endpoints in.
	slices.SortFunc(fillers, func(a, b filler) int {
		return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(eps[cands[a.cand].index].ID, eps[cands[b.cand].index].ID))
	})
	for i := range fillers {
		fillers[i].rank = i
	}
	return maglev{table: fill(fillers, size, equal)}
}

const free = 1<<16 - 1

// fill lets each filler, when its turn is due, take the next free slot of its list. fillers is a heap by due (sorted is a heap);
// with equal weights the turns simply go round.
func fill(fillers []filler, size uint32, equal bool) []uint16 {
	table := make([]uint16, size)
	for i := range table {
		table[i] = free
	}
	at := 0
	for range size {
		f := &fillers[at]
		for table[f.slot] != free {
			f.advance(size)
		}
		table[f.slot] = f.cand
		f.advance(size)
		if equal {
			if at++; at == len(fillers) {
				at = 0
			}
			continue
		}
		f.due += f.step
		sink(fillers)
	}
	return table
}

func (f *filler) advance(size uint32) {
	if f.slot += f.skip; f.slot >= size {
		f.slot -= size
	}
}

// sink restores the heap after its first has become due later.
func sink(h []filler) {
	f := h[0]
	at := 0
	for {
		child := 2*at + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(&h[child]) {
			child++
		}
		if f.before(&h[child]) {
			break
		}
		h[at], at = h[child], child
	}
	h[at] = f
}

// pickHashed looks in the table; past an unusable endpoint it hashes again, so that the keys of one that is down
// spread over all others and each key keeps its second choice. Past one that is full it does the same, and if all are
// that it met, it looks for one that is not; without one the key goes where it belongs.
func (s *Set) pickHashed(r *Request) (int, bool) {
	all := s.load(r)
	h, home := mix(r.Hash), -1
	for range redraws {
		c := &s.cands[s.maglev.table[scale(h, uint64(len(s.maglev.table)))]]
		if s.usable(r, c.index) {
			if !s.full(c, all) {
				return c.index, true
			}
			if home < 0 {
				home = c.index
			}
		}
		h = mix(h + 0x9e3779b97f4a7c15)
	}
	if home < 0 && s.factor == 0 {
		return s.scan(r, h)
	}
	return s.scanForRoom(r, h, all, home)
}

func (s *Set) scanForRoom(r *Request, start uint64, all sum, home int) (int, bool) {
	n := len(s.cands)
	at := int(scale(start, uint64(n)))
	for range n {
		if c := &s.cands[at]; s.usable(r, c.index) {
			if !s.full(c, all) {
				return c.index, true
			}
			if home < 0 {
				home = c.index
			}
		}
		if at++; at == n {
			at = 0
		}
	}
	return home, home >= 0
}
