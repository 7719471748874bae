package balance

import (
	"math"
	"testing"
	"time"
)

// The table stands in for math.Exp.
func TestFadingFollowsTheDefinition(t *testing.T) {
	for age := uint32(1); age < 1<<31; age += 1 + age/1000 {
		d := float64(age) * (1 << tickShift)
		want := math.Exp(-d / float64(decay))
		if got := weight(1000, 1000+age); math.Abs(got-want) > 1e-4*want+1e-30 {
			t.Fatalf("after %v: %v, want %v", time.Duration(d), got, want)
		}
	}
	for _, at := range []uint32{7, 8, 1 << 30} {
		if got := weight(at, 7); got != 1 {
			t.Errorf("%d ticks back: %v, want 1", at-7, got)
		}
	}
}

// More age never counts for more.
func TestFadingOnlyFalls(t *testing.T) {
	before := 1.0
	for age := range uint32(1_000_000) {
		now := weight(0, age)
		if now > before {
			t.Fatalf("%v at %d ticks, %v one before", now, age, before)
		}
		before = now
	}
}
