package breaker

import "time"

// A word is the whole state of a circuit, so that one compare-and-swap is one transition and no reader sees half of one:
//
//	phase 3 bits | generation 19 bits | value 42 bits
//
// The value is the count of failures while closed, and while open or probing the time of the next probe,
// in milliseconds since the circuit was made (139 years). The generation wraps after half a million changes
// of phase; a verdict would have to be that late to be mistaken.
type word uint64

const (
	valueBits      = 42
	generationBits = 19
)

type phase uint8

const (
	closed phase = iota
	open
	probing // half-open with its probe on the way
	forcedOpen
	forcedClosed
)

func (w word) phase() phase  { return phase(w >> (valueBits + generationBits)) }
func (w word) value() uint64 { return uint64(w) & (1<<valueBits - 1) }

// next is a change of phase: a new generation.
func (w word) next(p phase, value uint64) word {
	generation := (uint64(w)>>valueBits + 1) & (1<<generationBits - 1)
	if generation == 0 {
		generation = 1 // no word is 0: the zero Ticket has no generation
	}
	return word(uint64(p)<<(valueBits+generationBits) | generation<<valueBits | value)
}

// with is the same phase and generation with another value.
func (w word) with(value uint64) word {
	return w>>valueBits<<valueBits | word(value)
}

// concerns says whether t was given out in this phase and generation.
func (w word) concerns(t Ticket) bool { return w>>valueBits == t.at>>valueBits }

// since rounds down and deadline up: a circuit never lets a probe pass early, and at most a millisecond late.
func (c *Circuit) since(now time.Time) uint64 {
	return uint64(max(now.Sub(c.start), 0) / time.Millisecond)
}

func (c *Circuit) deadline(now time.Time, d time.Duration) uint64 {
	return uint64((max(now.Sub(c.start), 0) + d + time.Millisecond - 1) / time.Millisecond)
}
