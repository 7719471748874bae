package retry

import (
	"fmt"
	"sync/atomic"
	"time"
)

// BudgetConfig sets a budget; zero fields take the defaults, which are Finagle's and Linkerd's.
type BudgetConfig struct {
	Ratio        float64       // retries per request in the window, up to 10; default 0.2; below 0: none
	Window       time.Duration // 1 s .. 1 min, default 10 s
	MinPerSecond float64       // retries that are allowed however few requests there are, per second of the window, up to 1000; default 10; below 0: none
}

// Check says what is wrong with the configuration. Zero fields are right: they take the defaults.
func (c BudgetConfig) Check() error {
	switch {
	case !(c.Ratio <= 10):
		return fmt.Errorf("retry: budget ratio %v is more than 10", c.Ratio)
	case c.Window != 0 && (c.Window < time.Second || c.Window > time.Minute):
		return fmt.Errorf("retry: budget window %v is not in 1s..1m", c.Window)
	case !(c.MinPerSecond <= 1000):
		return fmt.Errorf("retry: budget minimum %v is more than 1000 a second", c.MinPerSecond)
	}
	return nil
}

// slices is the number of parts of the window: it slides by a tenth.
const slices = 10

// Budget limits retries to a share of the requests of a sliding window, so that retries cannot multiply an outage: when every request fails,
// load grows by Ratio, not by the number of tries. Where Finagle adds the minimum to the share, here the larger of the two counts: above 50 requests a second
// (by default) the share is kept exactly. Safe for concurrent use, without locks.
type Budget struct {
	start time.Time     // never changed
	slice time.Duration // never changed
	ratio float64       // never changed
	floor float64       // never changed: retries per window

	requests, retries series
}

// NewBudget returns a budget with nothing counted. start is any time not later than the first use.
func NewBudget(cfg BudgetConfig, start time.Time) (*Budget, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Ratio == 0 {
		cfg.Ratio = 0.2
	}
	if cfg.Window == 0 {
		cfg.Window = 10 * time.Second
	}
	if cfg.MinPerSecond == 0 {
		cfg.MinPerSecond = 10
	}
	return &Budget{
		start: start,
		slice: cfg.Window / slices,
		ratio: max(cfg.Ratio, 0),
		floor: max(cfg.MinPerSecond, 0) * cfg.Window.Seconds(),
	}, nil
}

// Request counts a request that is not a retry. Call it once per request, before its first try.
func (b *Budget) Request(now time.Time) { b.requests.add(b.tick(now), 1) }

// Take asks for one retry, and spends it if ok. Of several at once near the limit all may be refused; never are more let go than there are.
func (b *Budget) Take(now time.Time) (ok bool) {
	tick := b.tick(now)
	b.retries.add(tick, 1) // first, so that each of several at once sees the others
	if float64(b.retries.sum(tick)) <= b.allowed(tick) {
		return true
	}
	b.retries.add(tick, -1)
	return false
}

// Used returns the requests and the retries in the window at now, and how many retries those requests allow.
func (b *Budget) Used(now time.Time) (requests, retries, allowed int) {
	tick := b.tick(now)
	return int(b.requests.sum(tick)), int(b.retries.sum(tick)), int(b.allowed(tick))
}

func (b *Budget) allowed(tick uint32) float64 {
	// A hair more than the product: 0.2 × 5 must be 1 retry, however floating point rounds it.
	return max(b.floor, b.ratio*float64(b.requests.sum(tick))) + 1e-9
}

// tick numbers slices from 1 on: 0 is a slice never used. 32 bits of 100 ms are 13 years.
func (b *Budget) tick(now time.Time) uint32 {
	return uint32(max(now.Sub(b.start), 0)/b.slice) + 1
}

// A series counts per slice of time. The sum is over the current slice and the nine before: the window slides between nine tenths and whole.
type series struct {
	slots [slices]atomic.Uint64 // the slice's tick above its count, 32 bits each
}

// add adds n to the slice of tick. A slot that still holds an older slice is taken over; for a tick older than the slot's it is too late, nothing is counted.
func (s *series) add(tick uint32, n int32) {
	slot := &s.slots[tick%slices]
	for {
		old := slot.Load()
		at, count := uint32(old>>32), uint32(old)
		if at > tick {
			return
		}
		if at < tick {
			count = 0
		}
		if n < 0 && count == 0 {
			return
		}
		if slot.CompareAndSwap(old, uint64(tick)<<32|uint64(count+uint32(n))) {
			return
		}
	}
}

func (s *series) sum(tick uint32) uint64 {
	sum := uint64(0)
	for i := range s.slots {
		w := s.slots[i].Load()
		if at := uint32(w >> 32); at+slices > tick && at <= tick {
			sum += uint64(uint32(w))
		}
	}
	return sum
}
