package publish

import "time"

const (
	// A proxy is sent its first paceAtOnce changes as they come, and then one
	// response each paceEvery: what changes between goes into one. A change that
	// comes by itself waits for nothing. Without this, 500 changes a second of
	// services with 38 followers were 19 000 responses a second, more than two CPUs
	// can make and take. The price is paceEvery for the last of many changes.
	paceAtOnce = 10
	paceEvery  = 250 * time.Millisecond
)

// pace says when a session may be sent changes, by the generic cell rate
// algorithm (ITU-T I.371). The zero value has all at once to spend. It has no
// clock and no lock.
type pace struct {
	full time.Time // when nothing of what was spent is left
}

// wait tells how long changes are to be held back; 0 for not at all.
func (p *pace) wait(now time.Time) time.Duration {
	if !p.full.After(now) { // also because the difference to the zero time overflows
		return 0
	}
	return max(0, p.full.Sub(now)-(paceAtOnce-1)*paceEvery)
}

// spend notes that a response with changes is sent.
func (p *pace) spend(now time.Time) {
	if p.full.Before(now) {
		p.full = now
	}
	p.full = p.full.Add(paceEvery)
}
