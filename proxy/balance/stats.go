package balance

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// An endpoint that has failed and never answered is taken to be this slow (Linkerd's default_rtt).
	defaultLatency = 30 * time.Millisecond
	// Each request in flight on an endpoint that has neither answered nor failed costs this: more than any that is known.
	// So a new one gets one request at once and no other before the answer (Finagle's penalty): no latency that
	// one could assume is right for services of 1 ms and of 1 s both.
	unknownCost = float64(24 * time.Hour)
	// The time in which what was learned loses all but 1/e of its say (Linkerd's decay).
	decay = 10 * time.Second
	// However long an endpoint has been idle, a request in flight on it costs something.
	minLatency = time.Microsecond

	tickShift = 17 // a tick is 2^17 ns = 131 µs; 32 bits of ticks wrap after 6.5 days
)

// Stats is what is known of one endpoint from the requests sent to it. It outlives the sets the endpoint is in.
// The zero value is ready; it must not be copied after first use; all methods are safe for concurrent use.
type Stats struct {
	inFlight atomic.Int64
	// The estimate (ns, float32; negative while nothing has been measured) above its time in ticks: one word, so that
	// one compare-and-swap moves both. 0 means never looked at.
	estimate atomic.Uint64
	// The share of failures (0..1), packed likewise. 0 while all is well: then a success only reads it.
	failing atomic.Uint64
	begun   atomic.Uint32 // when its slow start began, in ticks; 0 when it is through
	_       [36]byte      // one cache line per endpoint: neighbours are written by other cores
}

// Begin counts a request in flight. Each Begin is followed by exactly one End or Cancel.
func (s *Stats) Begin(now time.Time) {
	s.inFlight.Add(1)
	s.look(ticks(now))
}

// End takes the request out of flight and adds its latency (until the response head, for HTTP) to the estimate.
// A failed request never lowers the estimate, and makes the endpoint dearer by the share of failures among its last few:
// one that refuses at once must not look like the fastest.
func (s *Stats) End(now time.Time, latency time.Duration, failed bool) {
	s.inFlight.Add(-1)
	tick := ticks(now)
	s.judge(tick, failed)
	sample := float64(max(latency, minLatency))
	for {
		old := s.look(tick)
		if s.estimate.CompareAndSwap(old, observe(old, tick, sample, failed)) {
			return
		}
	}
}

// Cancel takes the request out of flight and leaves the estimate alone: nothing was learned of the endpoint.
func (s *Stats) Cancel() { s.inFlight.Add(-1) }

// InFlight returns the number of requests begun and not ended.
func (s *Stats) InFlight() int { return int(s.inFlight.Load()) }

// Latency returns the peak-EWMA estimate at now: a slower answer raises it at once, faster ones and idle time lower it
// by a factor e in ten seconds. Idle time lowers it so that an endpoint that was slow once is tried again.
func (s *Stats) Latency(now time.Time) time.Duration {
	return time.Duration(s.latency(ticks(now)))
}

// judge moves the share of failures by an eighth of the way to the new verdict.
func (s *Stats) judge(tick uint32, failed bool) {
	const step, forget, most = 1. / 8, 1. / 1024, 0.99
	for {
		old := s.failing.Load()
		if old == 0 && !failed {
			return
		}
		share, at := unpack(old)
		share *= weight(at, tick) * (1 - step)
		if failed {
			share = min(share+step, most)
		}
		word := pack(share, tick)
		if share < forget {
			word = 0
		}
		if s.failing.CompareAndSwap(old, word) {
			return
		}
	}
}

// cost is Finagle's load, latency × (requests in flight + 1), per success: of an endpoint that fails half of its requests,
// each success costs two. Without it failures, being quick, would draw the traffic by the empty queue they leave.
// An endpoint of which nothing is known is the first choice while nothing is in flight on it, and else the last.
func (s *Stats) cost(tick uint32, slowness float64) float64 {
	est, at := unpack(s.look(tick))
	inFlight, f := float64(s.inFlight.Load())*slowness, s.failing.Load()
	if est < 0 && f == 0 {
		return inFlight * unknownCost
	}
	c := faded(est, at, tick) * (inFlight + 1)
	if f != 0 {
		share, at := unpack(f)
		c /= 1 - share*weight(at, tick)
	}
	return c
}

func (s *Stats) latency(tick uint32) float64 {
	est, at := unpack(s.look(tick))
	return faded(est, at, tick)
}

func faded(est float64, at, tick uint32) float64 {
	return max(math.Abs(est)*weight(at, tick), float64(minLatency))
}

// look returns the estimate's word, set to the default at the first look: it decays from then on.
func (s *Stats) look(tick uint32) uint64 {
	if w := s.estimate.Load(); w != 0 {
		return w
	}
	s.estimate.CompareAndSwap(0, pack(-float64(defaultLatency), tick))
	return s.estimate.Load()
}

// observe is the peak-EWMA step (Finagle's PeakEwma): a sample above the estimate replaces it, one below moves it by the time since the last.
func observe(old uint64, tick uint32, sample float64, failed bool) uint64 {
	est, at := unpack(old)
	unmeasured := est < 0
	est = math.Abs(est)
	switch {
	case failed && est >= sample:
		if unmeasured {
			est = -est
		}
	case unmeasured || sample > est:
		est = sample
	default:
		w := weight(at, tick)
		est = est*w + sample*(1-w)
	}
	return pack(est, tick)
}

func ticks(now time.Time) uint32 { return uint32(now.UnixNano() >> tickShift) }

func pack(est float64, tick uint32) uint64 {
	return uint64(math.Float32bits(float32(est)))<<32 | uint64(tick)
}

func unpack(w uint64) (est float64, tick uint32) {
	return float64(math.Float32frombits(uint32(w >> 32))), uint32(w)
}
