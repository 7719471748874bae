package balance

import "slices"

const (
	// maxTurns bounds the tickets one pick may draw past unusable endpoints before it scans.
	maxTurns = 64
	// A weighted order is written out as long as it has at most maxSlots slots (16 KiB) …
	maxSlots = 4096
	// … and costs at most maxWork steps to make: about a millisecond per change of the set.
	maxWork = 1 << 20
)

// ticket numbers the picks of a set. The first pick of a set starts at a random place: sets are remade at each change
// of the mesh, by all proxies at once, and must not all begin with the first endpoint.
func (s *Set) ticket(r *Request, n uint64) uint64 {
	t := s.cursor.Add(1) - 1
	if t == 0 {
		t = scale(mix(r.Random), n)
		s.cursor.Add(t)
	}
	return t
}

// pickInTurn is round robin. Past an unusable endpoint it draws another ticket rather than look at the neighbour,
// which would get the share of both.
func (s *Set) pickInTurn(r *Request) (int, bool) {
	n := uint64(len(s.cands))
	for range min(n, maxTurns) {
		if i := s.cands[s.ticket(r, n)%n].index; s.usable(r, i) {
			return i, true
		}
	}
	return s.scan(r, mix(r.Random))
}

func (s *Set) pickWeighted(r *Request) (int, bool) {
	refused := -1
	for range maxTurns {
		i := s.cands[s.weightedTurn(r)].index
		if i == refused {
			continue
		}
		if s.usable(r, i) {
			return i, true
		}
		refused = i
	}
	return s.scan(r, mix(r.Random))
}

func (s *Set) weightedTurn(r *Request) int {
	if s.slots != nil {
		n := uint64(len(s.slots))
		return int(s.slots[s.ticket(r, n)%n])
	}
	// Multiples of the golden ratio fall evenly on the circle, and any stretch of it is hit at nearly even steps
	// (three-distance theorem): smooth like the written-out order, for weights too many or too odd to write out.
	u := s.ticket(r, 1<<32) * 0x9e3779b97f4a7c15
	at := scale(u, s.bounds[len(s.bounds)-1])
	i, _ := slices.BinarySearch(s.bounds, at+1) // the first above at
	return i
}

// weightedOrder returns the smooth weighted round robin sequence, or the running totals if that would be too long.
func weightedOrder(cands []candidate) (slots []int32, bounds []uint64) {
	g, total := int64(0), int64(0)
	for _, c := range cands {
		g, total = gcd(c.weight, g), total+c.weight
	}
	n := total / g
	if n <= maxSlots && n*int64(len(cands)) <= maxWork {
		return smooth(cands, g, int(n)), nil
	}
	bounds = make([]uint64, len(cands))
	sum := uint64(0)
	for i, c := range cands {
		sum += uint64(c.weight)
		bounds[i] = sum
	}
	return nil, bounds
}

// smooth is nginx's smooth weighted round robin, written out for one period: each turn adds to every candidate its weight,
// takes the highest and subtracts the total from it.
func smooth(cands []candidate, g int64, n int) []int32 {
	slots := make([]int32, n)
	current := make([]int64, len(cands))
	for t := range slots {
		best := 0
		for i, c := range cands {
			current[i] += c.weight / g
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= int64(n)
		slots[t] = int32(best)
	}
	return slots
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
