package h2

import (
	"slices"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// PoolConfig bounds a Pool; zero means the default.
type PoolConfig struct {
	// Config bounds its connections.
	Config
	// MaxAge is the time without a request after which a connection is closed, 5 min
	// by default: one connection carries what all the others could, so there are few.
	MaxAge time.Duration
}

// Pool has the connections to one endpoint. It belongs to one loop.
type Pool struct {
	cfg    Config
	maxAge time.Duration

	allowed uint32  // how many streams the endpoint allows on a connection, as far as it said
	links   []*link // that may take requests
	dialing int     // connections being dialled by Take
	places  int     // requests that wait for them
	waiting []*waiter
	closed  bool
}

// NewPool makes an empty pool.
func NewPool(cfg PoolConfig) *Pool {
	p := &Pool{cfg: cfg.Config.withDefaults(), maxAge: cfg.MaxAge, allowed: untold}
	if cfg.MaxAge <= 0 {
		p.maxAge = 5 * time.Minute
	}
	return p
}

// Get gives a place for one request on a connection that has room, or returns nil:
// then another is to be dialled and added (see Take). Of several the fullest is taken:
// what goes on one connection goes in one write, and the others may grow old. RoundTrip
// consumes the place; Put or Close gives it back.
func (p *Pool) Get(now time.Time) *Upstream {
	var best *link
	for _, k := range p.links {
		if k.open < k.most && k.fit() && (best == nil || k.open > best.open) {
			best = k
		}
	}
	if best == nil {
		return nil
	}
	return best.place()
}

// Add makes s, which has been dialled and, for TLS, has shaken hands, a connection of
// the pool and gives a place on it. It writes nothing yet: the greeting goes with the
// first request.
func (p *Pool) Add(now time.Time, s loop.Stream) *Upstream {
	k := newLink(&p.cfg, p, s)
	if !p.closed {
		p.links = append(p.links, k)
	} else {
		k.gone = true
	}
	up := k.place()
	k.begin()
	return up
}

// Take is Get that dials, where that is needed: one connection for as many requests
// as it will carry, however many ask at once. It fails as dial does, for those too who
// wait for the same connection, and at the deadline; zero is none.
func (p *Pool) Take(l *loop.Loop, deadline time.Time, dial func() (loop.Stream, error)) (*Upstream, error) {
	for {
		if up := p.Get(l.Now()); up != nil {
			return up, nil
		}
		if p.dialing == 0 || p.places >= p.dialing*p.each() {
			return p.dial(l, dial)
		}
		if err := p.await(l, deadline); err != nil {
			return nil, err
		}
	}
}

// waiter is a request that waits for a connection which another is dialling.
type waiter struct {
	loop.Waiter
	err error // how that failed
}

func (p *Pool) dial(l *loop.Loop, dial func() (loop.Stream, error)) (*Upstream, error) {
	p.dialing++
	p.places++
	s, err := dial()
	p.dialing--
	p.places--
	if err != nil {
		if p.dialing == 0 {
			p.wakeAll(err)
		}
		return nil, err
	}
	up := p.Add(l.Now(), s)
	p.wakeAll(nil)
	return up, nil
}

// await waits for somebody else's dial, or for a place that is given back.
func (p *Pool) await(l *loop.Loop, deadline time.Time) error {
	w := new(waiter)
	w.Init(l)
	p.waiting = append(p.waiting, w)
	p.places++
	err := w.Wait(deadline)
	p.places--
	if err != nil {
		p.waiting = slices.DeleteFunc(p.waiting, func(other *waiter) bool { return other == w })
		return err
	}
	return w.err
}

func (p *Pool) wakeAll(err error) {
	for i, w := range p.waiting {
		w.err = err
		w.Wake()
		p.waiting[i] = nil
	}
	p.waiting = p.waiting[:0]
}

// each is how many requests a connection that is dialled is expected to carry.
func (p *Pool) each() int { return max(1, int(min(p.allowed, uint32(p.cfg.MaxStreams)))) }

func (p *Pool) roomMade() {
	if len(p.waiting) > 0 {
		p.wakeAll(nil)
	}
}

// Put gives up back, whose request is over; one that is not over is cancelled.
func (p *Pool) Put(now time.Time, up *Upstream) {
	if st := up.release(); st != nil {
		st.upstreams.give(up, maxObjects)
	}
}

// Len is the number of connections that take requests.
func (p *Pool) Len() int { return len(p.links) }

// CloseIdle closes connections that have had no request for MaxAge and returns how
// many are left. Call it now and then.
func (p *Pool) CloseIdle(now time.Time) int {
	for i := len(p.links) - 1; i >= 0; i-- {
		k := p.links[i]
		if k.open == 0 && now.Sub(k.l.At(k.idle)) >= p.maxAge {
			k.shut()
		}
	}
	return len(p.links)
}

// CloseUnused closes one connection on which no request is, and reports whether there
// was one.
func (p *Pool) CloseUnused() bool {
	for _, k := range p.links {
		if k.open == 0 {
			k.shut()
			return true
		}
	}
	return false
}

// Close closes connections without requests now, and the others when they have none.
func (p *Pool) Close() {
	p.closed = true
	for i := len(p.links) - 1; i >= 0; i-- {
		k := p.links[i]
		k.gone = true
		if p.drop(k); k.open == 0 {
			k.shut()
		}
	}
}

// drop forgets a connection that takes no more requests.
func (p *Pool) drop(k *link) {
	for i, other := range p.links {
		if other == k {
			n := len(p.links) - 1
			p.links[i], p.links[n] = p.links[n], nil
			p.links = p.links[:n]
			return
		}
	}
}
