// Package breaker holds one circuit's states.
// It does not send requests or tell what counts as a failure: its user reports verdicts.
package breaker

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Config sets a circuit; zero fields take the defaults.
type Config struct {
	Threshold    int           // consecutive failures that open the circuit; 1..65535, default 5
	Timeout      time.Duration // how long it stays open before a probe; 1 ms .. 30 days, default 60 s
	ProbeTimeout time.Duration // a probe of which nothing is heard for so long loses its slot; 1 ms .. 30 days, default 5 min
}

// Check says what is wrong with the configuration. Zero fields are right: they take the defaults.
func (c Config) Check() error {
	const most = 30 * 24 * time.Hour
	switch {
	case c.Threshold < 0 || c.Threshold > 65535:
		return fmt.Errorf("breaker: threshold %d is not in 1..65535", c.Threshold)
	case c.Timeout != 0 && (c.Timeout < time.Millisecond || c.Timeout > most):
		return fmt.Errorf("breaker: timeout %v is not in 1ms..%v", c.Timeout, most)
	case c.ProbeTimeout != 0 && (c.ProbeTimeout < time.Millisecond || c.ProbeTimeout > most):
		return fmt.Errorf("breaker: probe timeout %v is not in 1ms..%v", c.ProbeTimeout, most)
	}
	return nil
}

// State is what a circuit does with requests.
type State uint8

// The states, in the order of the figure that metrics show.
const (
	Closed   State = iota // requests pass
	HalfOpen              // one probe at a time passes
	Open                  // none passes
)

// String returns "closed", "half_open" or "open".
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case HalfOpen:
		return "half_open"
	}
	return "open"
}

// Mode is an operator's override.
type Mode uint8

// The modes.
const (
	Auto        Mode = iota // the circuit follows verdicts
	ForceOpen               // nothing passes
	ForceClosed             // everything passes, nothing is counted
)

// Ticket is the permission to send one request. Its verdict is given back once, by Success, Failure or Cancel; the zero Ticket has no say.
// It carries the generation of the circuit, so that the late verdict of a request sent before a change of state changes nothing:
// what was sent before the circuit opened must neither close it nor count against it afterwards.
type Ticket struct{ at word }

// Probe says whether the request decides a half-open circuit.
func (t Ticket) Probe() bool { return t.at.phase() == probing }

// Circuit is one circuit breaker. Safe for concurrent use, without locks; a success on a closed circuit with a clear count costs one atomic load.
type Circuit struct {
	cfg   Config    // never changed
	start time.Time // never changed

	state atomic.Uint64 // a word
	opens atomic.Uint64
}

// New returns a closed circuit. start is any time not later than the first use: times are kept relative to it,
// so that a step of the wall clock neither opens nor holds a circuit.
func New(cfg Config, start time.Time) (*Circuit, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Threshold == 0 {
		cfg.Threshold = 5
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 60 * time.Second
	}
	if cfg.ProbeTimeout == 0 {
		cfg.ProbeTimeout = 5 * time.Minute
	}
	c := &Circuit{cfg: cfg, start: start}
	c.state.Store(uint64(word(0).next(closed, 0)))
	return c, nil
}

func (c *Circuit) load() word { return word(c.state.Load()) }

func (c *Circuit) swap(old, new word) bool {
	return c.state.CompareAndSwap(uint64(old), uint64(new))
}

// Allow asks to send one request. If ok, the ticket's verdict must be given.
func (c *Circuit) Allow(now time.Time) (t Ticket, ok bool) {
	for {
		w := c.load()
		switch w.phase() {
		case closed, forcedClosed:
			return Ticket{w}, true
		case forcedOpen:
			return Ticket{}, false
		}
		// Open until, or probing until: either way a probe is due when the time has come.
		if c.since(now) < w.value() {
			return Ticket{}, false
		}
		probe := w.next(probing, c.deadline(now, c.cfg.ProbeTimeout))
		if c.swap(w, probe) {
			return Ticket{probe}, true
		}
	}
}

// Ready says whether Allow would let a request pass, without taking the probe's slot. For balance.Request.Usable.
func (c *Circuit) Ready(now time.Time) bool {
	w := c.load()
	switch w.phase() {
	case closed, forcedClosed:
		return true
	case forcedOpen:
		return false
	}
	return c.since(now) >= w.value()
}

// Success reports that the request of t succeeded. It returns true if this closed the circuit.
func (c *Circuit) Success(_ time.Time, t Ticket) (nowClosed bool) {
	for {
		w := c.load()
		if !w.concerns(t) {
			return false
		}
		switch w.phase() {
		case probing:
			if c.swap(w, w.next(closed, 0)) {
				return true
			}
		case closed:
			if w.value() == 0 || c.swap(w, w.with(0)) {
				return false
			}
		default:
			return false
		}
	}
}

// Failure reports that the request of t failed. It returns true if this opened the circuit.
func (c *Circuit) Failure(now time.Time, t Ticket) (nowOpen bool) {
	for {
		w := c.load()
		if !w.concerns(t) {
			return false
		}
		var to word
		switch {
		case w.phase() == probing, w.phase() == closed && w.value()+1 >= uint64(c.cfg.Threshold):
			to = w.next(open, c.deadline(now, c.cfg.Timeout))
		case w.phase() == closed:
			to = w.with(w.value() + 1)
		default:
			return false
		}
		if !c.swap(w, to) {
			continue
		}
		if to.phase() == open {
			c.opens.Add(1)
			return true
		}
		return false
	}
}

// Cancel gives t back without a verdict (the client went away): a probe's slot becomes free at once.
func (c *Circuit) Cancel(t Ticket) {
	if t.Probe() {
		// One try: if the word is no longer the ticket's, the slot is not the ticket's either.
		c.swap(t.at, t.at.next(open, 0))
	}
}

// State returns the state at now.
func (c *Circuit) State(now time.Time) State {
	w := c.load()
	switch w.phase() {
	case closed, forcedClosed:
		return Closed
	case probing:
		return HalfOpen
	case open:
		if c.since(now) >= w.value() {
			return HalfOpen
		}
	}
	return Open
}

// Failures returns the present count of consecutive failures; 0 unless closed.
func (c *Circuit) Failures() int {
	if w := c.load(); w.phase() == closed {
		return int(w.value())
	}
	return 0
}

// Opens returns how often failures have opened the circuit.
func (c *Circuit) Opens() uint64 { return c.opens.Load() }

// Force sets the operator's override. Every call starts a new generation with a clear count: Force(Auto) also resets.
func (c *Circuit) Force(m Mode) {
	to := closed
	switch m {
	case ForceOpen:
		to = forcedOpen
	case ForceClosed:
		to = forcedClosed
	}
	for {
		if w := c.load(); c.swap(w, w.next(to, 0)) {
			return
		}
	}
}

// Mode returns the override in force.
func (c *Circuit) Mode() Mode {
	switch c.load().phase() {
	case forcedOpen:
		return ForceOpen
	case forcedClosed:
		return ForceClosed
	}
	return Auto
}
