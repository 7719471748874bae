package jwt

import (
	"hash/maphash"
	"sync/atomic"
)

const (
	// cacheSlots bounds the tokens that are remembered.
	cacheSlots = 1024
	// maxCached bounds the length of one: 4 MiB of them at most.
	maxCached = 4 << 10
)

// checked is a token whose signature was good by the keys of then.
type checked struct {
	token  string
	claims Claims
	ring   *ring
	keys   *keySet
}

// cache remembers tokens, each in the one place that its hash gives it. Two that
// share one push each other out, which costs a check; there is no lock.
type cache struct {
	seed  maphash.Seed
	slots []atomic.Pointer[checked]
}

func newCache() cache {
	return cache{maphash.MakeSeed(), make([]atomic.Pointer[checked], cacheSlots)}
}

// get gives what is known of a token, if it was checked by the keys of now.
func (c *cache) get(token string) *checked {
	e := c.slot(token).Load()
	if e == nil || e.token != token || e.ring.keys.Load() != e.keys {
		return nil
	}
	return e
}

func (c *cache) put(e *checked) {
	if len(e.token) <= maxCached {
		c.slot(e.token).Store(e)
	}
}

func (c *cache) slot(token string) *atomic.Pointer[checked] {
	return &c.slots[maphash.String(c.seed, token)%cacheSlots]
}
