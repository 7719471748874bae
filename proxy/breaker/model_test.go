package breaker

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// slow is the circuit as the contract tells it: a lock, plain fields, no packing. Tickets are numbers.
type slow struct {
	mu         sync.Mutex
	cfg        Config
	mode       Mode
	open       bool
	failures   int
	reopen     time.Time // while open: when a probe is due
	probe      int       // the ticket of the probe on the way, 0 if none
	probeSince time.Time
	era, last  int
	eraOf      map[int]int
	opens      uint64
}

func (s *slow) due(now time.Time) bool {
	if s.probe != 0 {
		return now.Sub(s.probeSince) >= s.cfg.ProbeTimeout
	}
	return !now.Before(s.reopen)
}

func (s *slow) ready(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode == ForceClosed || s.mode == Auto && (!s.open || s.due(now))
}

func (s *slow) allow(now time.Time) int {
	if !s.ready(now) {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	if s.mode == Auto && s.open {
		s.era++
		s.probe, s.probeSince = s.last, now
	}
	s.eraOf[s.last] = s.era
	return s.last
}

func (s *slow) success(t int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode != Auto || s.eraOf[t] != s.era {
		return
	}
	if s.open {
		s.open, s.probe, s.era = false, 0, s.era+1
	}
	s.failures = 0
}

func (s *slow) failure(now time.Time, t int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode != Auto || s.eraOf[t] != s.era {
		return
	}
	if s.failures++; s.open || s.failures >= s.cfg.Threshold {
		s.open, s.failures, s.probe, s.era = true, 0, 0, s.era+1
		s.reopen = now.Add(s.cfg.Timeout)
		s.opens++
	}
}

func (s *slow) cancel(t int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probe == t && s.eraOf[t] == s.era {
		s.probe, s.reopen, s.era = 0, time.Time{}, s.era+1
	}
}

func (s *slow) force(m Mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode, s.open, s.failures, s.probe, s.era = m, false, 0, 0, s.era+1
}

// Random histories, the same for both: they must agree at every step.
func TestTheFastOneDoesWhatTheSlowOneDoes(t *testing.T) {
	cfg := Config{Threshold: 3, Timeout: 20 * time.Millisecond, ProbeTimeout: 50 * time.Millisecond}
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		fast, err := New(cfg, epoch)
		if err != nil {
			t.Fatal(err)
		}
		ref := &slow{cfg: cfg, eraOf: map[int]int{}}
		type pair struct {
			fast Ticket
			slow int
		}
		var sent []pair
		now := epoch
		for step := range 500 {
			now = now.Add(time.Duration(rnd.IntN(8)) * time.Millisecond)
			op := rnd.IntN(100)
			switch {
			case op < 45 || len(sent) == 0:
				ft, ok := fast.Allow(now)
				st := ref.allow(now)
				if ok != (st != 0) {
					t.Fatalf("seed %d step %d: Allow: %v, want %v", seed, step, ok, st != 0)
				}
				if ok {
					sent = append(sent, pair{ft, st})
				}
			case op < 98:
				// Tickets are drawn with repetition: verdicts come late, and some twice.
				p := sent[len(sent)-1-rnd.IntN(min(len(sent), 6))]
				switch {
				case op < 75:
					fast.Failure(now, p.fast)
					ref.failure(now, p.slow)
				case op < 90:
					fast.Success(now, p.fast)
					ref.success(p.slow)
				default:
					fast.Cancel(p.fast)
					ref.cancel(p.slow)
				}
			default:
				m := Mode(rnd.IntN(3))
				fast.Force(m)
				ref.force(m)
			}
			if fast.Ready(now) != ref.ready(now) || fast.Opens() != ref.opens || fast.Failures() != ref.failures || fast.Mode() != ref.mode {
				t.Fatalf("seed %d step %d: ready %v opens %d failures %d mode %d; want %v %d %d %d", seed, step,
					fast.Ready(now), fast.Opens(), fast.Failures(), fast.Mode(), ref.ready(now), ref.opens, ref.failures, ref.mode)
			}
		}
	}
}
