package balance

import "math/bits"

// next is one step of SplitMix64 (Steele, Lea, Flood 2014): enough independent draws from the caller's 64 random bits.
func next(x *uint64) uint64 {
	*x += 0x9e3779b97f4a7c15
	return mix(*x)
}

// mix is the finalizer of SplitMix64: a bijection in which each bit depends on all.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// scale maps x from [0, 2^64) to [0, n) without division; the bias is n/2^64.
func scale(x, n uint64) uint64 {
	hi, _ := bits.Mul64(x, n)
	return hi
}

// HashString hashes a key for Request.Hash (FNV-1a, mixed): the same value in every process and release, without allocating.
// Whoever chooses the keys can make them collide; the price is uneven load, no more.
func HashString(key string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 0x100000001b3
	}
	return mix(h)
}

// An alias table draws candidates by weight in constant time (Walker's method, Vose's construction).
type alias struct {
	keep  []uint32 // column i keeps a draw whose fraction is below keep[i]/2^32
	other []int32  // and else gives it to other[i]
}

func newAlias(cands []candidate) alias {
	n := len(cands)
	total := int64(0)
	for _, c := range cands {
		total += c.weight
	}
	// Shares are kept times n, so that the mean column weighs total: whole numbers, no rounding on the way.
	share := make([]int64, n)
	var small, large []int32
	sort := func(i int32) {
		if share[i] < total {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	t := alias{keep: make([]uint32, n), other: make([]int32, n)}
	for i, c := range cands {
		share[i] = c.weight * int64(n)
		sort(int32(i))
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small, large = small[:len(small)-1], large[:len(large)-1]
		hi, lo := bits.Mul64(uint64(share[s]), 1<<32)
		q, _ := bits.Div64(hi, lo, uint64(total)) // share < total, so the quotient fits 32 bits
		t.keep[s], t.other[s] = uint32(q), l
		share[l] -= total - share[s]
		sort(l)
	}
	for _, i := range append(small, large...) {
		t.keep[i], t.other[i] = 1<<32-1, i
	}
	return t
}

func (t alias) draw(x uint64) int32 {
	col, fraction := bits.Mul64(x, uint64(len(t.keep)))
	if uint32(fraction>>32) < t.keep[col] {
		return int32(col)
	}
	return t.other[col]
}
