// Package balance chooses an endpoint from an immutable set.
// It does not dial, keep connections, or judge health: who may be chosen is asked of Request.Usable.
//
// A Set never changes and never blocks: a pick is a few atomic operations, with no lock and no allocation.
// What must outlive a change of the set (requests in flight, latency) is in Stats, which the owner hands on from set to set.
package balance

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// Strategy names a way of choosing. The empty string means Default.
type Strategy string

// The strategies. Only an endpoint of weight 0 is treated alike by all: it drains.
const (
	RoundRobin     Strategy = "round_robin"     // each in turn; other weights are ignored
	Weighted       Strategy = "weighted"        // smooth weighted round robin: shares by weight, without bursts
	LeastConn      Strategy = "least_conn"      // fewest requests in flight per unit of weight, of 16 at random where there are more than 32; ties at random by weight
	Random         Strategy = "random"          // by weight
	ConsistentHash Strategy = "consistent_hash" // Maglev on Request.Hash: the same hash goes to the same endpoint, shares by weight, bounded by Config.LoadFactor
	P2CEWMA        Strategy = "p2c_ewma"        // the better of two random choices by peak-EWMA latency and requests in flight

	Default = P2CEWMA
)

// Valid says whether s is a known strategy or empty.
func (s Strategy) Valid() bool {
	switch s {
	case "", RoundRobin, Weighted, LeastConn, Random, ConsistentHash, P2CEWMA:
		return true
	}
	return false
}

// Config is how a set chooses. The zero value is the default strategy, without slow start.
type Config struct {
	Strategy Strategy
	// LoadFactor bounds what consistent_hash puts on one endpoint: its share of what is in flight on all, times this. More than 1; 0 is no bound.
	LoadFactor float64
	// SlowStart is how long the share of an endpoint grows whose Stats.SlowStart was called; 0 is at once, at most a day.
	// consistent_hash has none: its keys would move twice.
	SlowStart time.Duration
	// Aggression says when in that time it grows: 1 evenly, more early, less late. 0 is 1.
	Aggression float64
}

// MaxWeight is the largest weight that New takes.
const MaxWeight = 1_000_000

// MaxHashed is the largest number of endpoints that New takes for consistent_hash: a slot of its table has 16 bits.
const MaxHashed = 1<<16 - 1

// Endpoint is one candidate.
type Endpoint struct {
	ID     string // unique in a set; consistent_hash depends on nothing else but Weight
	Weight int    // 0..MaxWeight; 0 = drain: no traffic unless all weights are 0
	Stats  *Stats // required by least_conn, p2c_ewma, a load factor and slow start
}

// Request is what a pick may depend on.
type Request struct {
	Now    time.Time            // p2c_ewma, a load factor and slow start
	Random uint64               // fresh random bits for each pick; all strategies
	Hash   uint64               // consistent_hash only: see HashString
	Usable func(index int) bool // nil = all. Asked of the chosen one first, of others only if that is refused (or by a load factor)

	now bool // new endpoints are ready for all
}

// A candidate is an endpoint that has traffic to get, laid out for the strategies that read all or many of them.
type candidate struct {
	stats    *Stats
	weight   int64   // at least 1: if all weights are 0, all are 1
	slowness float64 // mean weight by weight: how much a request in flight counts here
	index    int     // in Set.eps
}

// Set is an immutable set of endpoints with one strategy. Safe for concurrent use.
type Set struct {
	strategy Strategy
	eps      []Endpoint
	cands    []candidate
	equal    bool // all candidates have the same weight
	slow     slowStart
	factor   float64 // consistent_hash: the load factor, 0 for no bound

	slots  []int32  // weighted: the sequence of candidates, if short enough
	bounds []uint64 // weighted: else the running totals of weight
	alias  alias    // p2c_ewma, least_conn and random with unequal weights
	maglev maglev   // consistent_hash

	// The cursor has a cache line to itself: it is written at each pick while other cores read the fields above. What a load factor
	// keeps is with it: no strategy uses both.
	_                      [64]byte
	cursor                 atomic.Uint64
	sumInFlight, sumWeight atomic.Int64
	sumLeft                atomic.Int64 // picks until they are added up anew
	sumAt                  atomic.Uint32
	_                      [28]byte
}

// New builds a set with a strategy and nothing else of Config.
func New(s Strategy, eps []Endpoint) (*Set, error) { return Build(Config{Strategy: s}, eps) }

// Build builds a set. It fails for an unknown strategy, a weight out of range, an empty or repeated ID, or missing Stats.
// An empty set is valid; it never picks.
//
// The price of a set is a few slices as long as the endpoints. consistent_hash adds a table of 128 KiB, filled in 6 ms for ten endpoints and 24 ms
// for a thousand; above 6553 endpoints 1.3 MB and half a second. Build is for where the mesh changes, not for the request path.
func Build(cfg Config, eps []Endpoint) (*Set, error) {
	if cfg.Strategy == "" {
		cfg.Strategy = Default
	}
	if err := check(cfg, eps); err != nil {
		return nil, err
	}
	s := cfg.Strategy
	set := &Set{strategy: s, eps: slices.Clone(eps), slow: newSlowStart(cfg)}
	if s == ConsistentHash {
		set.factor = cfg.LoadFactor
	}
	set.cands, set.equal = candidates(set.eps)
	switch {
	case len(set.cands) == 0:
	case s == Weighted && !set.equal:
		set.slots, set.bounds = weightedOrder(set.cands)
	case (s == P2CEWMA || s == LeastConn || s == Random) && !set.equal:
		set.alias = newAlias(set.cands)
	case s == ConsistentHash:
		set.maglev = newMaglev(set.eps, set.cands, set.equal)
	}
	return set, nil
}

func check(cfg Config, eps []Endpoint) error {
	s := cfg.Strategy
	switch {
	case !s.Valid():
		return fmt.Errorf("balance: unknown strategy %q", string(s))
	case cfg.LoadFactor != 0 && !(cfg.LoadFactor > 1):
		return fmt.Errorf("balance: a load factor of %v leaves no room; it is to be more than 1", cfg.LoadFactor)
	case cfg.SlowStart < 0 || cfg.SlowStart > 24*time.Hour || !(cfg.Aggression >= 0):
		return fmt.Errorf("balance: slow start of %v with aggression %v", cfg.SlowStart, cfg.Aggression)
	}
	if s == ConsistentHash && len(eps) > MaxHashed {
		return fmt.Errorf("balance: %d endpoints are too many for consistent_hash (at most %d)", len(eps), MaxHashed)
	}
	seen := make(map[string]bool, len(eps))
	for i, e := range eps {
		switch {
		case e.ID == "":
			return fmt.Errorf("balance: endpoint %d has no ID", i)
		case seen[e.ID]:
			return fmt.Errorf("balance: endpoint %q is there twice", e.ID)
		case e.Weight < 0 || e.Weight > MaxWeight:
			return fmt.Errorf("balance: endpoint %q: weight %d is not in 0..%d", e.ID, e.Weight, MaxWeight)
		case e.Stats == nil && (s == LeastConn || s == P2CEWMA || cfg.LoadFactor != 0 || cfg.SlowStart != 0):
			return fmt.Errorf("balance: endpoint %q has no Stats, which %s needs", e.ID, s)
		}
		seen[e.ID] = true
	}
	return nil
}

func candidates(eps []Endpoint) (cands []candidate, equal bool) {
	drained := 0
	for _, e := range eps {
		if e.Weight == 0 {
			drained++
		}
	}
	all := drained == len(eps)
	cands = make([]candidate, 0, len(eps))
	total := int64(0)
	for i, e := range eps {
		if all || e.Weight > 0 {
			c := candidate{stats: e.Stats, weight: int64(max(e.Weight, 1)), index: i}
			total += c.weight
			cands = append(cands, c)
		}
	}
	for i := range cands {
		cands[i].slowness = float64(total) / float64(len(cands)) / float64(cands[i].weight)
	}
	differs := func(c candidate) bool { return c.weight != cands[0].weight }
	return cands, !slices.ContainsFunc(cands, differs)
}

// Len returns the number of endpoints, those that drain included.
func (s *Set) Len() int { return len(s.eps) }

// At returns endpoint i as it was given to New.
func (s *Set) At(i int) Endpoint { return s.eps[i] }

// Strategy returns the strategy in force; never empty.
func (s *Set) Strategy() Strategy { return s.strategy }

// Pick returns the index of the chosen endpoint. If the choice is not usable it goes on in the order of the strategy, for a bounded number
// of steps, then through the whole set: ok is false only if no endpoint that may have traffic is usable.
func (s *Set) Pick(r Request) (index int, ok bool) {
	if len(s.cands) == 0 {
		return -1, false
	}
	if index, ok = s.pick(r); !ok && s.slow.ticks != 0 {
		r.now = true // all others are down, or all are new
		index, ok = s.pick(r)
	}
	return index, ok
}

func (s *Set) pick(r Request) (index int, ok bool) {
	switch s.strategy {
	case RoundRobin:
		return s.pickInTurn(&r)
	case Weighted:
		if s.equal {
			return s.pickInTurn(&r)
		}
		return s.pickWeighted(&r)
	case LeastConn:
		return s.pickLeast(&r)
	case Random:
		return s.pickRandom(&r)
	case ConsistentHash:
		return s.pickHashed(&r)
	default:
		return s.pickP2C(&r)
	}
}

func (s *Set) usable(r *Request, index int) bool {
	if s.slow.ticks != 0 && !r.now && s.holds(r, index) {
		return false
	}
	return r.Usable == nil || r.Usable(index)
}

// scan is the end of every search: all candidates in order, from a start in [0, 2^64) mapped on them.
func (s *Set) scan(r *Request, start uint64) (int, bool) {
	n := len(s.cands)
	at := int(scale(start, uint64(n)))
	for range n {
		if i := s.cands[at].index; s.usable(r, i) {
			return i, true
		}
		if at++; at == n {
			at = 0
		}
	}
	return -1, false
}
