package retry

import (
	"math"
	"sync/atomic"
	"time"
)

// Quantile follows a quantile of times without keeping any: each observation moves
// the estimate up or down by a step such that it rests where so many lie below
// (stochastic approximation, Robbins and Monro). It forgets as it goes: after a
// few hundred observations it is where the times of now are. Safe for concurrent
// use, without locks; of two observations at once one may be lost.
type Quantile struct {
	up, down float64       // factors, never changed
	estimate atomic.Uint64 // a float64, in ns
	seen     atomic.Uint32
}

const (
	// A step is this share of the estimate. Larger follows sooner and trembles more.
	quantileStep = 0.05
	// Before so many observations there is nothing to go by.
	quantileWarm = 100
)

// NewQuantile follows the quantile q, between 0 and 1.
func NewQuantile(q float64) *Quantile {
	return &Quantile{up: math.Exp(quantileStep * q), down: math.Exp(-quantileStep * (1 - q))}
}

// Observe takes one time into account.
func (q *Quantile) Observe(d time.Duration) {
	d = max(d, 1)
	if q.seen.Load() < quantileWarm {
		if q.seen.Add(1) == 1 {
			q.estimate.Store(math.Float64bits(float64(d)))
			return
		}
	}
	estimate := math.Float64frombits(q.estimate.Load())
	if float64(d) > estimate {
		estimate *= q.up
	} else {
		estimate *= q.down
	}
	q.estimate.Store(math.Float64bits(max(estimate, 1)))
}

// Value is the estimate; ok is false before there were enough observations.
func (q *Quantile) Value() (d time.Duration, ok bool) {
	return time.Duration(math.Float64frombits(q.estimate.Load())), q.seen.Load() >= quantileWarm
}
