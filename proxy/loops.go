package proxy

import (
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/proxy/flows"
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
		if p.peers.groups == nil {
			p.peers.groups = map[*loop.Loop]*peerGroups{}
		}
		p.peers.groups[l] = &peerGroups{}
		p.apps = append(p.apps, appPools{})
		p.mirrors = append(p.mirrors, 0)
		p.underway = append(p.underway, underway{})
		p.flows = append(p.flows, flows.Table{})
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

func (p *Proxy) newKept() []kept {
	all := make([]kept, p.cfg.Loops)
	for i := range all {
		all[i] = newKept()
	}
	return all
}

// closeKept closes the connections to an endpoint, each on its loop.
func (p *Proxy) closeKept(all []kept) {
	for shard, l := range p.loops {
		l.Post(all[shard].close)
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
			var all []*kept
			l.Block(func() { all = p.keptBy(shard) }) // whoever changes a large service holds the lock for long
			for _, k := range all {
				k.trim(l.Now())
			}
			p.apps[shard].trim(l.Now())
			p.trimLater(shard)
		})
	})
}

// keptBy lists what a loop keeps, of all endpoints.
func (p *Proxy) keptBy(shard int) (all []*kept) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.endpoints {
		all = append(all, &e.kept[shard])
	}
	return all
}

// appPools keeps idle connections to the local app, by address and, where the app
// is told of them, by caller. It is one loop's.
type appPools struct {
	kept map[appKey]*kept
}

type appKey struct {
	dst    netip.AddrPort
	caller netip.AddrPort // see AppSource.perCaller
}

func (a *appPools) get(dst appKey) *kept {
	k := a.kept[dst]
	if k == nil {
		fresh := newKept()
		k = &fresh
		if a.kept == nil {
			a.kept = map[appKey]*kept{}
		}
		a.kept[dst] = k
	}
	return k
}

// trim closes what has been idle too long and forgets who has nothing left, so
// that callers who try many ports leave nothing behind.
func (a *appPools) trim(now time.Time) {
	for dst, k := range a.kept {
		if k.trim(now) == 0 {
			delete(a.kept, dst)
		}
	}
}
