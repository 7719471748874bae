package main

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets at most 1/64 wide of their value. It
// takes no memory per value, so that a long run costs the generator nothing.
type histogram struct {
	count [64 * 64]uint64
	total uint64
}

const subBits = 6 // 64 buckets for each power of two

func (h *histogram) add(d time.Duration) {
	h.count[bucket(uint64(max(d, 0)))]++
	h.total++
}

func bucket(v uint64) int {
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits | int(v>>shift)&(1<<subBits-1)
}

// lowest is the smallest value of a bucket.
func lowest(i int) uint64 {
	if i < 1<<subBits {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return uint64(1<<subBits|i&(1<<subBits-1)) << shift
}

// quantile is the value that the share q of all are not above, to the bucket's
// width; 0 when nothing was counted.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.total))
	var seen uint64
	for i, n := range h.count {
		if seen += n; n > 0 && seen > rank {
			return time.Duration(lowest(i))
		}
	}
	for i := len(h.count) - 1; i >= 0; i-- {
		if h.count[i] > 0 {
			return time.Duration(lowest(i))
		}
	}
	return 0
}
