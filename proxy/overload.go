package proxy

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/gate"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/translate"
)

// gates bound what this proxy sends to a service at once, over all its loops. They
// outlive changes of the service.
type gates struct {
	requests gate.Gate
	conns    gate.Gate // to endpoints, pooled ones too
}

const (
	// queueLimit bounds the wait of a request that has no timeout.
	queueLimit = 30 * time.Second
	// shedWithin is how long a connection is waited for where nobody may queue: for
	// another loop to close one that is idle there.
	shedWithin = 100 * time.Millisecond
	// acrossEvery is how often the connections of translations are looked at meanwhile.
	acrossEvery = 20 * time.Millisecond
)

// set takes a service's bounds over. For a connection there may wait as many as
// there may be connections: each may be one that is idle on another loop.
func (g *gates) set(o policy.Overload) {
	g.requests.Set(o.Concurrent, o.Pending)
	g.conns.Set(o.Connections, max(o.Pending, o.Connections))
}

// Closed implements loop.Owner: a connection to an endpoint was closed.
func (g *gates) Closed(*loop.Conn) { g.conns.Leave() }

// bounded carries a request when there is room for it.
func (o *outbound) bounded(x hop) int {
	g := &o.service.gates.requests
	o.waited = false
	if !g.Bounded() {
		return o.forward(x)
	}
	if !g.TryEnter() {
		until := o.began.Add(queueLimit)
		if o.route.Timeout > 0 {
			until = o.began.Add(o.route.Timeout)
		}
		o.waited = true
		if outcome := g.Enter(o.l, until); outcome != gate.Entered {
			return o.overloaded(x, o.service.fullBound())
		}
	}
	defer g.Leave()
	return o.forward(x)
}

// fullBound is which bound a request met that was turned away.
func (d *destination) fullBound() string {
	if d.svc.Traffic.Overload.Pending > 0 {
		return "pending"
	}
	return "concurrent"
}

func (o *outbound) overloaded(x exchange, bound string) int {
	o.service.metrics.Overloaded(bound)
	return o.reply(x, overload)
}

// errOverload is that there may be no connection more. It is no fault of the
// endpoint's.
var errOverload = errors.New("as many connections to the service as there may be")

// admit makes room for one connection more to a service: when there is none, by
// closing one that is idle.
func (p *Proxy) admit(l *loop.Loop, d *destination, limit time.Time) error {
	g := &d.gates.conns
	if g.TryEnter() {
		return nil
	}
	here := slices.Index(p.loops, l)
	if d.shed(here, l.Now()) && g.TryEnter() {
		return nil
	}
	for shard, other := range p.loops {
		if shard != here {
			other.Post(func() { d.shed(shard, other.Now()) })
		}
	}
	if d.svc.Traffic.Overload.Pending == 0 {
		limit = earlier(limit, l.Now().Add(shedWithin))
	}
	outcome := gate.Late
	for outcome == gate.Late && d.shedAcross(l) && l.Now().Before(limit) { // a request that is over may be so a moment later
		outcome = g.Enter(l, earlier(limit, l.Now().Add(acrossEvery)))
	}
	if outcome == gate.Late {
		outcome = g.Enter(l, limit)
	}
	if outcome != gate.Entered {
		d.metrics.Overloaded("connections")
		return errOverload
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// shed closes one connection of a loop on which no request is. Those to a translation
// are no connections to an endpoint.
func (d *destination) shed(shard int, now time.Time) bool {
	for _, e := range d.members {
		k := &e.kept[shard]
		if e.version() == translate.HTTP2 {
			if k.h2 != nil && k.h2.CloseUnused() {
				return true
			}
		} else if up := k.h1.Get(now); up != nil {
			_ = up.Close()
			return true
		}
	}
	return false
}

// shedAcross closes the idle connections of translations, off the loop: they are
// net/http's, and have locks. It reports whether there are translations.
func (d *destination) shedAcross(l *loop.Loop) (any bool) {
	l.Block(func() {
		for _, e := range d.members {
			any = e.across.closeIdle() || any
		}
	})
	return any
}

// admitOffLoop is admit for goroutines. Who gets no error leaves.
func (p *Proxy) admitOffLoop(ctx context.Context, d *destination) error {
	if d.gates.conns.TryEnter() {
		return nil
	}
	limit, _ := ctx.Deadline()
	l, done := p.loops[0], make(chan error, 1)
	var settled atomic.Bool // either the loop's task is heard, or it leaves for us
	l.Post(func() {
		l.Go(func() {
			err := p.admit(l, d, limit)
			if settled.CompareAndSwap(false, true) {
				done <- err
			} else if err == nil {
				d.gates.conns.Leave()
			}
		})
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if settled.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		return <-done
	}
}

// placed is a connection that gives its place back when it is closed.
type placed struct {
	net.Conn
	left  sync.Once
	gates *gates
}

// Close implements net.Conn.
func (c *placed) Close() error {
	err := c.Conn.Close()
	c.left.Do(c.gates.conns.Leave)
	return err
}

// unjudged takes back a try that says nothing about its endpoint.
func (e *endpoint) unjudged(t breaker.Ticket) {
	e.stats.Cancel()
	if e.circuit != nil {
		e.circuit.Cancel(t)
	}
}
