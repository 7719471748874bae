// Package outlier finds the endpoints of a service that do worse than the others, and says how long each is left out.
// It sends nothing and chooses nothing: its user records what was answered, calls Judge now and then, and asks Ejected.
//
// Failures in a row are a circuit's business (package breaker): it sees one endpoint, and acts at once. Here endpoints are
// compared over a window: one that fails every fifth request never opens a circuit and is an outlier all the same, if the
// others do not; and where all of them fail none is.
package outlier

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"
)

// Config says what an outlier is. All fields are needed but for LatencyFactor.
type Config struct {
	MinHosts       int           // with fewer endpoints that had MinRequests nothing is compared; at least 3
	MinRequests    int           // in a window, for an endpoint to be compared; at least 1
	RateFactor     float64       // an outlier's success rate is so many standard deviations below the median,
	RateMargin     float64       // and at least so much, 0..1
	LatencyFactor  float64       // its latency is so many times the median; 0 does not compare latencies
	LatencyMargin  time.Duration // and at least so much above it
	BaseEjection   time.Duration // how long the first ejection lasts; the n-th lasts n times as long,
	MaxEjection    time.Duration // and no longer than this
	MaxEjectedPart int           // per cent of the endpoints that may be out at once, 1..100; one always may, all never
}

// Check says what is wrong with the configuration.
func (c Config) Check() error {
	switch {
	case c.MinHosts < 3:
		return fmt.Errorf("outlier: with %d endpoints there is no telling which one is the outlier; at least 3", c.MinHosts)
	case c.MinRequests < 1:
		return fmt.Errorf("outlier: %d requests are none to judge by", c.MinRequests)
	case !(c.RateFactor >= 0) || !(c.RateMargin > 0 && c.RateMargin <= 1):
		return fmt.Errorf("outlier: a factor of %v and a margin of %v are not in 0.. and 0..1", c.RateFactor, c.RateMargin)
	case c.LatencyFactor != 0 && !(c.LatencyFactor > 1), c.LatencyMargin < 0:
		return fmt.Errorf("outlier: a latency factor of %v and a margin of %v", c.LatencyFactor, c.LatencyMargin)
	case c.BaseEjection <= 0 || c.MaxEjection < c.BaseEjection:
		return fmt.Errorf("outlier: ejections of %v to %v", c.BaseEjection, c.MaxEjection)
	case c.MaxEjectedPart < 1 || c.MaxEjectedPart > 100:
		return fmt.Errorf("outlier: %d per cent are not in 1..100", c.MaxEjectedPart)
	}
	return nil
}

// Host is what is known of one endpoint. The zero value is ready. Record and Ejected are safe for concurrent use and cost a few
// atomic operations; the rest is Judge's and Release's, which one goroutine calls at a time.
type Host struct {
	counts atomic.Uint64 // requests of the window above failures
	logs   atomic.Int64  // sum of the logarithms of the latencies of its successes
	out    atomic.Bool

	until time.Time // when out
	times int       // ejections that still count
}

// Record counts a request that has ended. latency is of interest for successes only.
func (h *Host) Record(latency time.Duration, failed bool) {
	if failed {
		h.counts.Add(1<<32 | 1)
		return
	}
	h.counts.Add(1 << 32)
	h.logs.Add(logarithm(latency))
}

// Ejected says whether the endpoint is left out.
func (h *Host) Ejected() bool { return h.out.Load() }

// Reason is why an endpoint was ejected, in one word.
type Reason string

// The reasons.
const (
	SuccessRate Reason = "success-rate"
	Latency     Reason = "latency"
)

// Verdict is a change of one endpoint's state.
type Verdict struct {
	Index   int  // of the host, in the order given
	Ejected bool // else it is back
	Reason  Reason
	For     time.Duration // how long it is out
	// What it was judged by, and the median of all.
	Rate, MedianRate       float64
	Latency, MedianLatency time.Duration
}

// Release ends the ejections whose time has come.
func Release(now time.Time, hosts []*Host) []Verdict {
	var out []Verdict
	for i, h := range hosts {
		if h.out.Load() && !now.Before(h.until) {
			h.out.Store(false)
			h.take() // what was sent to it meanwhile, for want of another, is old
			out = append(out, Verdict{Index: i})
		}
	}
	return out
}

// Judge compares the endpoints of a service by what was recorded since it was called last, and ejects the outliers, the worst first.
// Each call in which an endpoint is not out makes it forget one of its ejections.
func Judge(cfg Config, now time.Time, hosts []*Host) []Verdict {
	contest := make([]contender, 0, len(hosts))
	ejected := 0
	for i, h := range hosts {
		w := h.take()
		if h.out.Load() {
			ejected++
			continue
		}
		if int(w.requests) >= cfg.MinRequests {
			contest = append(contest, newContender(i, w))
		}
	}
	found := outliers(&cfg, contest)
	most := max(1, len(hosts)*cfg.MaxEjectedPart/100)
	most = min(most, len(hosts)-1) // never all
	if room := max(0, most-ejected); len(found) > room {
		found = found[:room]
	}
	for i := range found {
		v := &found[i]
		hosts[v.Index].eject(&cfg, now, v)
	}
	for _, h := range hosts {
		if !h.out.Load() && h.times > 0 {
			h.times--
		}
	}
	return found
}

func (h *Host) eject(cfg *Config, now time.Time, v *Verdict) {
	h.times++
	v.Ejected, v.For = true, cfg.MaxEjection
	if d := cfg.BaseEjection * time.Duration(h.times); d/time.Duration(h.times) == cfg.BaseEjection && d < v.For {
		v.For = d
	}
	h.until = now.Add(v.For)
	h.out.Store(true)
}

// window is what was recorded of one endpoint.
type window struct {
	requests, failures uint32
	logs               int64
}

// take empties the window. A request that ends meanwhile may be counted without its latency, or the other way round: of MinRequests
// and more that does not matter.
func (h *Host) take() window {
	c := h.counts.Swap(0)
	return window{requests: uint32(c >> 32), failures: uint32(c), logs: h.logs.Swap(0)}
}

// contender is an endpoint that had enough requests to be compared.
type contender struct {
	index    int
	requests float64
	rate     float64 // of successes
	latency  float64 // ns; the geometric mean, which a few slow answers do not move; 0 without enough successes
}

func newContender(i int, w window) contender {
	c := contender{index: i, requests: float64(w.requests), rate: 1 - float64(w.failures)/float64(w.requests)}
	if n := w.requests - w.failures; 2*n > w.requests {
		c.latency = antilogarithm(float64(w.logs) / float64(n))
	}
	return c
}

// deviationOf turns the median of the distances from the median into the standard deviation that a normal distribution would have.
// The mean and the deviation as such would be drawn to the outliers, and two of them hide each other.
const deviationOf = 1.4826

// byChance is how many standard errors of a share of so many requests count as chance.
// Failures are few and far between: three would be passed once in two hundred windows.
const byChance = 4

// outliers lists those that are, the worst first: success rates before latencies.
func outliers(cfg *Config, contest []contender) []Verdict {
	if len(contest) < cfg.MinHosts {
		return nil
	}
	rates, latencies := make([]float64, 0, len(contest)), make([]float64, 0, len(contest))
	for _, c := range contest {
		rates = append(rates, c.rate)
		if c.latency > 0 {
			latencies = append(latencies, c.latency)
		}
	}
	usual, spread := median(rates)
	speed, _ := median(latencies)
	type found struct {
		Verdict
		by float64
	}
	var all []found
	for _, c := range contest {
		v := Verdict{
			Index: c.index, Rate: c.rate, MedianRate: usual,
			Latency: time.Duration(c.latency), MedianLatency: time.Duration(speed),
		}
		chance := byChance * math.Sqrt(usual*(1-usual)/c.requests)
		switch {
		case c.rate < usual-max(cfg.RateFactor*deviationOf*spread, cfg.RateMargin, chance):
			v.Reason = SuccessRate
			all = append(all, found{v, 1 + usual - c.rate})
		case cfg.LatencyFactor > 0 && len(latencies) >= cfg.MinHosts && c.latency > cfg.LatencyFactor*speed && c.latency-speed > float64(cfg.LatencyMargin):
			v.Reason = Latency
			all = append(all, found{v, 1 - speed/c.latency})
		}
	}
	slices.SortStableFunc(all, func(a, b found) int {
		switch {
		case a.by > b.by:
			return -1
		case a.by < b.by:
			return 1
		}
		return 0
	})
	var out []Verdict
	for i := range all {
		out = append(out, all[i].Verdict)
	}
	return out
}

// median sorts the values; spread is the median of their distances from it.
func median(values []float64) (middle, spread float64) {
	if len(values) == 0 {
		return 0, 0
	}
	slices.Sort(values)
	middle = midOf(values)
	far := make([]float64, len(values))
	for i, v := range values {
		far[i] = math.Abs(v - middle)
	}
	slices.Sort(far)
	return middle, midOf(far)
}

func midOf(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// A logarithm is to base 2, in 1024ths, with a straight line between powers: at most 9 % off, and the way back is off by
// as much the other way.
const logBits = 10

func logarithm(d time.Duration) int64 {
	ns := uint64(max(d, 1))
	whole := bits.Len64(ns) - 1
	part := ns << (63 - whole) << 1 >> (64 - logBits)
	return int64(whole)<<logBits | int64(part)
}

func antilogarithm(log float64) float64 {
	whole, part := math.Modf(log / (1 << logBits))
	return math.Ldexp(1+part, int(whole))
}
