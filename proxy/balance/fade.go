package balance

import "math"

// The table of powers below has fadeSteps steps; with a straight line between them the error is below 2e-5.
const (
	fadeSteps    = 64
	fractionBits = 40
)

var (
	// halvings is how often a value halves in one tick, in units of 2^-fractionBits.
	halvings = uint64(math.Round((1 << tickShift) / float64(decay) * math.Log2E * (1 << fractionBits)))

	// powers holds 2^-(i/fadeSteps).
	powers = func() (p [fadeSteps + 1]float64) {
		for i := range p {
			p[i] = math.Exp2(-float64(i) / fadeSteps)
		}
		return p
	}()
)

// weight is what is left of an observation: exp(-age/decay). A wall clock set back makes the age negative: no decay until the next answer sets the time anew.
//
// It is asked twice per pick of p2c_ewma, and once or twice per answer, where math.Exp was more than half of all that is done there: 45 ns against 4.
func weight(at, tick uint32) float64 {
	age := int32(tick - at)
	if age <= 0 {
		return 1
	}
	x := uint64(age) * halvings // below 2^56
	whole, part := x>>fractionBits, x&(1<<fractionBits-1)
	if whole > 1000 { // near the least that a float64 can be
		return 0
	}
	const between = 1 << fractionBits / fadeSteps
	step, rest := part/between, part%between
	p := powers[step] + (powers[step+1]-powers[step])*(float64(rest)/between)
	return p * math.Float64frombits((1023-whole)<<52) // × 2^-whole, by its exponent
}
