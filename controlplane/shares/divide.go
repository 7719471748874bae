// Package shares divides limits of the whole mesh among those who keep them, by what each wants.
// It has no clock: who they are, how demand and shares travel and when to divide anew it leaves to others.
package shares

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Limit is what is to be divided.
type Limit struct {
	Requests int // in a window
	Window   time.Duration
	Bucket   bool // a token bucket, in whose window nothing stays
	Keyed    bool // so many for each key
}

// Use is what one of those who keep a limit wants of it.
type Use struct {
	Rate float64 // requests a second, refused ones too
	Used float64 // what its window holds
}

// Of the limit, divided by how many keep it, this part is everybody's: one that
// wanted nothing so far is not to be refused its first requests. The price is
// that those who want more lack what the idle ones do not use of it.
const floorPart = 0.02

// Divide gives each of those who keep a limit a share: whole numbers, together
// the limit's Requests. every is the time until it is divided again.
//
// What a window holds cannot be taken back; all that slides out of it until the
// next time, and what nobody has used, is divided anew. First each gets what it
// wants, as far as that is no more than anybody else's lack (max-min fairness:
// one that asks for everything takes nothing from those who ask for little).
// What is left then is divided half evenly, half by what was wanted: demand
// changes before the next time.
func Divide(l Limit, uses []Use, every time.Duration) []int {
	if len(uses) == 0 {
		return nil
	}
	total := float64(max(l.Requests, 0))
	n := float64(len(uses))
	held := held(l, uses, every, total)
	horizon := min(every, l.Window).Seconds()
	wants := make([]float64, len(uses))
	free := total
	sum := 0.0
	for i, u := range uses {
		wants[i] = max(u.Rate, 0)*horizon + floorPart*total/n
		free -= held[i]
		sum += wants[i]
	}
	free = max(free, 0)
	out := held
	if sum >= free {
		for i, part := range fair(wants, free) {
			out[i] += part
		}
		return whole(out, l.Requests)
	}
	left := free - sum
	for i := range out {
		out[i] += wants[i] + left/2*(1/n+wants[i]/sum)
	}
	return whole(out, l.Requests)
}

// held is what stays in each one's window until the next time.
func held(l Limit, uses []Use, every time.Duration, total float64) []float64 {
	out := make([]float64, len(uses))
	stays := 1 - float64(every)/float64(max(l.Window, 1))
	if l.Bucket || stays <= 0 {
		return out
	}
	sum := 0.0
	for i, u := range uses {
		out[i] = max(u.Used, 0) * stays
		sum += out[i]
	}
	if sum > total { // the limit was lowered, or shares have crossed on their way
		for i := range out {
			out[i] *= total / sum
		}
	}
	return out
}

// fair divides an amount: nobody gets more than it wants, and nobody less than
// another who got more than it needed.
func fair(wants []float64, amount float64) []float64 {
	order := make([]int, len(wants))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(wants[a], wants[b]) })
	out := make([]float64, len(wants))
	for i, at := range order {
		out[at] = min(wants[at], amount/float64(len(order)-i))
		amount -= out[at]
	}
	return out
}

// whole rounds so that the sum is total, where the parts' is about that.
func whole(parts []float64, total int) []int {
	out := make([]int, len(parts))
	order := make([]int, len(parts))
	sum := 0
	for i, p := range parts {
		out[i] = int(math.Floor(p))
		sum += out[i]
		order[i] = i
	}
	rest := func(i int) float64 { return parts[i] - math.Floor(parts[i]) }
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rest(b), rest(a)) })
	for i := 0; sum < total; i++ {
		out[order[i%len(order)]]++
		sum++
	}
	for i := len(order) - 1; sum > total && i >= 0; i-- { // rounding errors only
		if out[order[i]] > 0 {
			out[order[i]]--
			sum--
		}
	}
	return out
}
