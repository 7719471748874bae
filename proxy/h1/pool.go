package h1

import "time"

// PoolConfig bounds a Pool; zero means the default.
type PoolConfig struct {
	// MaxIdle is the number of idle connections kept, 256 by default; negative: none.
	MaxIdle int
	// MaxAge is the idle time after which a connection is closed, 30 s by
	// default: below what most servers allow, so that it is seldom they who close.
	MaxAge time.Duration
}

// Pool keeps the idle connections to one endpoint. The one used last is taken
// first: it is the least likely to be closed, and the others may grow old. A
// Pool belongs to one loop.
type Pool struct {
	maxIdle int
	maxAge  time.Duration

	idle   []*Upstream // oldest first
	closed bool
}

// NewPool makes an empty pool.
func NewPool(cfg PoolConfig) *Pool {
	p := &Pool{maxIdle: cfg.MaxIdle, maxAge: cfg.MaxAge}
	if cfg.MaxIdle == 0 {
		p.maxIdle = 256
	}
	if cfg.MaxAge <= 0 {
		p.maxAge = 30 * time.Second
	}
	return p
}

// Get takes the connection that was used last, or returns nil. One that the upstream
// said it would close within a second (Keep-Alive: timeout) is closed instead. Whether the
// upstream closed it meanwhile is found out by RoundTrip, which then fails
// before anything is sent.
func (p *Pool) Get(now time.Time) *Upstream {
	for n := len(p.idle); n > 0; n-- {
		up := p.idle[n-1]
		idle := now.Sub(up.idleSince)
		if idle >= p.maxAge {
			return nil // the rest is older still; CloseIdle sees to it
		}
		p.idle[n-1], p.idle = nil, p.idle[:n-1]
		if !up.outlived(idle) {
			return up
		}
		_ = up.Close()
	}
	return nil
}

// outlived reports whether the upstream is about to close what was idle for so long.
func (u *Upstream) outlived(idle time.Duration) bool { return u.life > 0 && idle >= u.life }

// Put gives up back. It closes up when that is not reusable, or the pool is full
// or closed.
func (p *Pool) Put(now time.Time, up *Upstream) {
	if !up.Reusable() || !p.put(now, up) {
		_ = up.Close()
	}
}

func (p *Pool) put(now time.Time, up *Upstream) bool {
	if p.closed || len(p.idle) >= p.maxIdle {
		return false
	}
	up.idleSince = now
	p.idle = append(p.idle, up)
	return true
}

// Len is the number of idle connections.
func (p *Pool) Len() int {
	return len(p.idle)
}

// CloseIdle closes what has been idle for MaxAge, or was closed by the upstream,
// and returns how many are left. Call it now and then.
func (p *Pool) CloseIdle(now time.Time) int {
	kept := p.idle[:0]
	for _, up := range p.idle {
		if idle := now.Sub(up.idleSince); idle < p.maxAge && !up.outlived(idle) && up.IdleAlive() {
			kept = append(kept, up)
		} else {
			_ = up.Close()
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	return len(p.idle)
}

// Close closes all idle connections, and those put later.
func (p *Pool) Close() {
	for _, up := range p.idle {
		_ = up.Close()
	}
	p.idle, p.closed = nil, true
}
