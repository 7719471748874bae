package shares

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Bounds of what those who keep limits may tell.
const (
	maxDemands = 1024 // of one, limits
	maxKeys    = 256  // of one limit, keys divided by themselves
)

// Portion is how much of a limit, or with a key of that key, a Table has to
// divide. It is asked for each limit that somebody keeps; false is a limit that
// is not known, or not to be divided.
type Portion func(ref policy.LimitRef, key *uint64) (Limit, bool)

// Table knows who keeps which limits and what each wants. Keepers are named by
// any comparable value. It has no lock.
type Table[K comparable] struct {
	compare func(a, b K) int
	limits  map[policy.LimitRef]map[K]*part
	keepers map[K]map[policy.LimitRef]*part
}

type part struct {
	demand policy.Demand
	share  policy.Share
	given  bool
}

// NewTable makes an empty table; compare puts keepers in an order, so that what
// cannot be divided evenly is divided the same way each time.
func NewTable[K comparable](compare func(a, b K) int) *Table[K] {
	return &Table[K]{compare: compare, limits: map[policy.LimitRef]map[K]*part{}, keepers: map[K]map[policy.LimitRef]*part{}}
}

// Report takes what a keeper wants: all of it, what it named before and does not
// now it keeps no longer. It tells whether the keeper should hear of shares soon:
// a limit is new to it, or it has used its share up.
func (t *Table[K]) Report(who K, demands []policy.Demand) (urgent bool) {
	demands = demands[:min(len(demands), maxDemands)]
	before := t.keepers[who]
	now := make(map[policy.LimitRef]*part, len(demands))
	for _, d := range demands {
		if !sane(d.Rate) || !sane(d.Used) {
			continue
		}
		p := before[d.Limit]
		if p == nil {
			p = &part{}
		}
		p.demand = d
		p.demand.Keys = saneKeys(d.Keys)
		now[d.Limit] = p
		urgent = urgent || p.short()
		if t.limits[d.Limit] == nil {
			t.limits[d.Limit] = map[K]*part{}
		}
		t.limits[d.Limit][who] = p
	}
	for ref := range before {
		if now[ref] == nil {
			t.drop(who, ref)
		}
	}
	if t.keepers[who] = now; len(now) == 0 {
		delete(t.keepers, who)
	}
	return urgent
}

// short tells whether a share is used up, or there is none yet.
func (p *part) short() bool {
	if !p.given || p.demand.Used >= p.share.Requests && len(p.share.Keys)+len(p.demand.Keys) == 0 {
		return true
	}
	for _, k := range p.demand.Keys {
		if i := slices.IndexFunc(p.share.Keys, func(s policy.KeyShare) bool { return s.Key == k.Key }); i < 0 || k.Used >= p.share.Keys[i].Requests {
			return true
		}
	}
	return false
}

// sane refuses what no count can be: a share must not become NaN.
func sane(v float64) bool { return v >= 0 && v <= math.MaxInt32 }

func saneKeys(keys []policy.KeyDemand) []policy.KeyDemand {
	keys = slices.DeleteFunc(slices.Clone(keys), func(k policy.KeyDemand) bool { return !sane(k.Rate) || !sane(k.Used) })
	return keys[:min(len(keys), maxKeys)]
}

// Forget takes a keeper out: what it had is divided among the others next time.
func (t *Table[K]) Forget(who K) {
	for ref := range t.keepers[who] {
		t.drop(who, ref)
	}
	delete(t.keepers, who)
}

func (t *Table[K]) drop(who K, ref policy.LimitRef) {
	delete(t.limits[ref], who)
	if len(t.limits[ref]) == 0 {
		delete(t.limits, ref)
	}
}

// Empty tells whether nobody keeps anything.
func (t *Table[K]) Empty() bool { return len(t.limits) == 0 }

// Shares gives what a keeper was given.
func (t *Table[K]) Shares(who K) []policy.Share {
	var out []policy.Share
	for _, p := range t.keepers[who] {
		if p.given {
			out = append(out, p.share)
		}
	}
	return out
}

// Totals gives what all together want, in the order of limits.
func (t *Table[K]) Totals() []policy.Demand {
	out := make([]policy.Demand, 0, len(t.limits))
	for ref, parts := range t.limits {
		sum := policy.Demand{Limit: ref, Keepers: len(parts)}
		keys := map[uint64]policy.KeyDemand{}
		for _, p := range parts {
			sum.Rate += p.demand.Rate
			sum.Used += p.demand.Used
			for _, k := range p.demand.Keys {
				keys[k.Key] = policy.KeyDemand{Key: k.Key, Rate: keys[k.Key].Rate + k.Rate, Used: keys[k.Key].Used + k.Used}
			}
		}
		for _, k := range chosen(keys) {
			sum.Keys = append(sum.Keys, keys[k])
		}
		out = append(out, sum)
	}
	slices.SortFunc(out, func(a, b policy.Demand) int { return a.Limit.Compare(b.Limit) })
	return out
}

// chosen are the keys that are divided by themselves: where there are too many
// those that want most.
func chosen(keys map[uint64]policy.KeyDemand) []uint64 {
	all := slices.Sorted(maps.Keys(keys))
	if len(all) > maxKeys {
		slices.SortStableFunc(all, func(a, b uint64) int {
			switch {
			case keys[a].Rate > keys[b].Rate:
				return -1
			case keys[a].Rate < keys[b].Rate:
				return 1
			}
			return 0
		})
		all = all[:maxKeys]
		slices.Sort(all)
	}
	return all
}

// Divide divides every limit anew, for the time until it is called again, and
// names the keepers whose shares have changed.
func (t *Table[K]) Divide(portion Portion, every time.Duration) []K {
	changed := map[K]struct{}{}
	for ref, parts := range t.limits {
		whole, ok := portion(ref, nil)
		if !ok {
			continue
		}
		who := slices.SortedFunc(maps.Keys(parts), t.compare)
		for k, share := range t.divide(ref, whole, who, portion, every) {
			if p := parts[k]; !p.given || !sameShare(&p.share, &share) {
				p.share, p.given = share, true
				changed[k] = struct{}{}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(changed), t.compare)
}

func sameShare(a, b *policy.Share) bool {
	return a.Requests == b.Requests && slices.Equal(a.Keys, b.Keys)
}

// divide divides one limit among keepers, in order.
func (t *Table[K]) divide(ref policy.LimitRef, whole Limit, who []K, portion Portion, every time.Duration) map[K]policy.Share {
	parts := t.limits[ref]
	out := make(map[K]policy.Share, len(who))
	if !whole.Keyed {
		uses := make([]Use, len(who))
		for i, k := range who {
			uses[i] = Use{parts[k].demand.Rate, parts[k].demand.Used}
		}
		for i, n := range Divide(whole, uses, every) {
			out[who[i]] = policy.Share{Limit: ref, Requests: float64(n)}
		}
		return out
	}
	// Keys that nobody told of are divided evenly. Those that are told of belong to
	// who told: with what the others may let through before they tell, too, a key
	// can have at most twice its limit, once.
	for _, k := range who {
		out[k] = policy.Share{Limit: ref, Requests: max(float64(whole.Requests)/float64(len(who)), 1)}
	}
	wanted := map[uint64]policy.KeyDemand{}
	for _, p := range parts {
		for _, k := range p.demand.Keys {
			wanted[k.Key] = policy.KeyDemand{Rate: wanted[k.Key].Rate + k.Rate}
		}
	}
	for _, key := range chosen(wanted) {
		t.divideKey(ref, key, who, portion, every, out)
	}
	return out
}

func (t *Table[K]) divideKey(ref policy.LimitRef, key uint64, who []K, portion Portion, every time.Duration, out map[K]policy.Share) {
	l, ok := portion(ref, &key)
	if !ok {
		return
	}
	var askers []K
	var uses []Use
	for _, k := range who {
		for _, d := range t.limits[ref][k].demand.Keys {
			if d.Key == key {
				askers, uses = append(askers, k), append(uses, Use{d.Rate, d.Used})
			}
		}
	}
	for i, n := range Divide(l, uses, every) {
		share := out[askers[i]]
		share.Keys = append(share.Keys, policy.KeyShare{Key: key, Requests: float64(n)})
		out[askers[i]] = share
	}
}
