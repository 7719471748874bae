package proxy

import (
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/loop"
)

// trimEvery is how often a loop looks after its idle upstream connections.
const trimEvery = 5 * time.Second

// makeLoops makes the event loops; none turns yet.
func (p *Proxy) makeLoops() error {
	for range p.cfg.Loops {
		l, err := loop.New(loop.Config{Panicked: p.panicked})
		if err != nil {
			p.closeLoops()
			return err
		}
		p.loops = append(p.loops, l)
		p.apps = append(p.apps, appPools{})
	}
	return nil
}

// runLoops has the loops turn until closeLoops and until what is on them has
// ended.
func (p *Proxy) runLoops() {
	var wg sync.WaitGroup
	for shard, l := range p.loops {
		l.Post(func() { p.trimLater(shard) })
		wg.Go(l.Run)
	}
	wg.Wait()
}

func (p *Proxy) closeLoops() {
	for _, l := range p.loops {
		l.Close()
	}
}

// panicked is told of a task that died after its connection's handler had
// returned.
func (p *Proxy) panicked(value any, stack []byte) {
	p.log.Error("a task panicked; its connection is closed", zap.Any("panic", value), zap.ByteString("stack", stack))
}

func (p *Proxy) newPools() []*h1.Pool {
	pools := make([]*h1.Pool, p.cfg.Loops)
	for i := range pools {
		pools[i] = h1.NewPool(h1.PoolConfig{})
	}
	return pools
}

// closePools closes an endpoint's pools, each on its loop.
func (p *Proxy) closePools(pools []*h1.Pool) {
	for shard, l := range p.loops {
		l.Post(pools[shard].Close)
	}
}

// trimLater closes what has been idle too long, now and then.
func (p *Proxy) trimLater(shard int) {
	l := p.loops[shard]
	if l.Closing() {
		return
	}
	l.AfterFunc(trimEvery, func() {
		l.Go(func() {
			var pools []*h1.Pool
			l.Block(func() { pools = p.poolsOf(shard) }) // whoever changes a large service holds the lock for long
			for _, pool := range pools {
				pool.CloseIdle(l.Now())
			}
			p.apps[shard].trim(l.Now())
			p.trimLater(shard)
		})
	})
}

// poolsOf lists a loop's pools of all endpoints.
func (p *Proxy) poolsOf(shard int) (pools []*h1.Pool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.endpoints {
		pools = append(pools, e.pools[shard])
	}
	return pools
}

// appPools keeps idle connections to the local app, by address. It is one
// loop's.
type appPools struct {
	pools map[netip.AddrPort]*h1.Pool
}

func (a *appPools) get(dst netip.AddrPort) *h1.Pool {
	pool := a.pools[dst]
	if pool == nil {
		pool = h1.NewPool(h1.PoolConfig{})
		if a.pools == nil {
			a.pools = map[netip.AddrPort]*h1.Pool{}
		}
		a.pools[dst] = pool
	}
	return pool
}

// trim closes what has been idle too long and forgets empty pools, so that
// callers who try many ports leave nothing behind.
func (a *appPools) trim(now time.Time) {
	for dst, pool := range a.pools {
		if pool.CloseIdle(now) == 0 {
			delete(a.pools, dst)
		}
	}
}
