package ratelimit

import (
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultKeys = 10_000
	maxKeys     = 1 << 24
	shards      = 16   // locks, where there are keys enough to spread
	shardedKeys = 1024 // below this many keys one lock, and exactly the least recently used key is forgotten
)

// Keyed holds one count per key (source identity, header value, JWT subject). Safe for concurrent use.
type Keyed struct {
	rules  rules        // never changed
	start  time.Time    // never changed
	seed   maphash.Seed // chooses shards, nothing that a caller can see
	shards []shard

	shared bool         // set by Divide before use: keys are watched for what they want
	share  atomic.Int64 // of keys that have none of their own
	asked  atomic.Uint64
}

type shard struct {
	most int // keys, never changed

	mu   sync.Mutex // guards what follows
	keys map[string]*entry
	used entry               // head of a ring of entries, the most recently used next
	hot  map[*entry]struct{} // those that want more than the share of any
	_    [64]byte
}

type entry struct {
	key        string
	count      count
	prev, next *entry
	hot        *hotKey // nil for most
}

// NewKeyed returns a limiter for at most maxKeys keys (0 = 10 000). Above that the least recently used key of some thousand is forgotten, with its count:
// where clients choose the key freely, one that cycles through more keys than that is not limited, but neither is memory exhausted,
// which is bounded by about 150 bytes and 8 bytes × min(Limit, 1000) per key.
func NewKeyed(p Policy, keys int, start time.Time) (*Keyed, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	if keys < 0 || keys > maxKeys {
		return nil, fmt.Errorf("ratelimit: %d keys is not in 0..%d", keys, maxKeys)
	}
	if keys == 0 {
		keys = defaultKeys
	}
	n := 1
	if keys >= shardedKeys {
		n = shards
	}
	k := &Keyed{rules: newRules(p, exactLimitPerKey), start: start, seed: maphash.MakeSeed(), shards: make([]shard, n)}
	for i := range k.shards {
		s := &k.shards[i]
		s.most = keys / n
		s.keys = make(map[string]*entry)
		s.used.prev, s.used.next = &s.used, &s.used
	}
	return k, nil
}

// Allow asks for one request of key; a refused one is not counted. It allocates for a new key, and when a key's window has to grow.
func (k *Keyed) Allow(key string, now time.Time) Decision { return k.decide(key, now, true) }

// Peek says whether a request of key would be allowed, and what is left, without counting one.
func (k *Keyed) Peek(key string, now time.Time) Decision { return k.decide(key, now, false) }

func (k *Keyed) decide(key string, now time.Time, spend bool) (d Decision) {
	at := int64(now.Sub(k.start))
	s := &k.shards[0]
	if len(k.shards) > 1 {
		s = &k.shards[maphash.String(k.seed, key)%shards]
	}
	s.mu.Lock()
	e := s.entryLocked(key)
	limit := k.rules.policy.Limit
	if k.shared {
		limit = k.limitLocked(e)
	}
	k.rules.decide(&e.count, limit, at, spend, &d)
	if k.shared && spend {
		k.watchLocked(s, e, limit, &d)
	}
	s.mu.Unlock()
	return d
}

// entryLocked returns the key's entry as the most recently used one.
func (s *shard) entryLocked(key string) *entry {
	e := s.keys[key]
	switch {
	case e != nil && e == s.used.next: // asked for again
		return e
	case e != nil:
		e.unlink()
	default:
		e = s.vacantLocked()
		e.key = strings.Clone(key) // the caller's may be a piece of a buffer
		s.keys[e.key] = e
	}
	e.prev, e.next = &s.used, s.used.next
	e.prev.next, e.next.prev = e, e
	return e
}

// vacantLocked returns an entry for a new key: that of the least recently used one, with its room, if there are enough.
func (s *shard) vacantLocked() *entry {
	if len(s.keys) < s.most {
		return new(entry)
	}
	e := s.used.prev
	e.unlink()
	delete(s.keys, e.key)
	delete(s.hot, e)
	e.count.clear()
	e.hot = nil
	return e
}

func (e *entry) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

// Len returns the number of keys held.
func (k *Keyed) Len() int {
	n := 0
	for i := range k.shards {
		s := &k.shards[i]
		s.mu.Lock()
		n += len(s.keys)
		s.mu.Unlock()
	}
	return n
}

// Policy returns the policy in force.
func (k *Keyed) Policy() Policy { return k.rules.policy }
