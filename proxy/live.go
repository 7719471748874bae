package proxy

import (
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/relay"
)

// liveConns are the connections that policy is asked about again when it
// changes.
type liveConns struct {
	mu    sync.Mutex // guards what follows
	conns map[*liveConn]struct{}
}

type liveConn struct {
	in  *inbound
	ask *asked
	cut func()         // from any goroutine
	why policy.Verdict // for which it was cut; guarded by liveConns.mu
}

// asked is a call that outlives its request.
type asked struct {
	policy.Call
	authorization string
	at            time.Time
}

// keep copies what rules may ever look at of a request that becomes something
// else.
func (r *inboundRequests) keep() *asked {
	a := &asked{Call: r.call, at: r.began}
	a.Method, a.Path = strings.Clone(r.call.Method), strings.Clone(r.call.Path)
	fields := map[string][]string{}
	if r.h1.Exchange != nil {
		for name, value := range r.h1.Req.All() {
			name = strings.ToLower(name)
			fields[name] = append(fields[name], strings.Clone(value))
		}
	}
	a.Header = func(name string, n int) (string, bool) {
		if all := fields[strings.ToLower(name)]; n < len(all) {
			return all[n], true
		}
		return "", false
	}
	a.authorization, _ = a.Header("authorization", 0)
	return a
}

// verdict is what the rules say now about what was asked.
func (a *asked) verdict(g *guard) policy.Verdict {
	call := a.Call
	call.Token = func() (map[string]any, policy.Reason) {
		claims, err := g.tokens.Verify(a.authorization, a.at)
		return claims.All, refusedToken(err)
	}
	return g.Authorize(&call)
}

// cutter cuts a relay from any goroutine.
func cutter(l *loop.Loop, s *relay.Session) func() {
	return func() { l.Post(func() { s.Abort(relay.Cancelled) }) }
}

// add enters a connection. What changed between the decision about it and now is
// looked at here; nothing of the local app's own is ever cut.
func (l *liveConns) add(in *inbound, ask *asked, cut func()) *liveConn {
	c := &liveConn{in: in, ask: ask, cut: cut}
	if in.trusted {
		return c
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = map[*liveConn]struct{}{}
	}
	l.conns[c] = struct{}{}
	l.checkLocked(c, in.p.guard.Load())
	return c
}

// remove takes a connection that has ended out, and tells why it was cut; zero is
// that it was not.
func (l *liveConns) remove(c *liveConn) policy.Verdict {
	if c == nil {
		return policy.Verdict{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	return c.why
}

func (l *liveConns) checkLocked(c *liveConn, g *guard) bool {
	v := c.ask.verdict(g)
	if !v.Allow {
		c.why = v
		c.in.deny(v)
		c.cut()
		delete(l.conns, c)
	}
	return !v.Allow
}

// recheck cuts the connections that are allowed no more and says how many.
func (l *liveConns) recheck(g *guard) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for c := range l.conns {
		if l.checkLocked(c, g) {
			n++
		}
	}
	return n
}

// underway are the requests of one loop that were let in and have not ended. It
// belongs to the loop.
type underway struct {
	first *inboundRequests
}

func (u *underway) add(r *inboundRequests) {
	if r.next = u.first; r.next != nil {
		r.next.prev = r
	}
	u.first = r
}

func (u *underway) remove(r *inboundRequests) {
	if r.prev != nil {
		r.prev.next = r.next
	} else if u.first == r {
		u.first = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	}
	r.next, r.prev = nil, nil
}

// lastWords is how long a request that policy allows no more may take to end: what
// was let in before and is about to be answered is answered, and what streams is
// cut within the second.
const lastWords = 500 * time.Millisecond

// recheckRequests has each loop look at its requests under way once more.
func (p *Proxy) recheckRequests(g *guard) {
	for shard, l := range p.loops {
		l.Post(func() {
			if p.underway[shard].denied(g) {
				l.AfterFunc(lastWords, func() { p.underway[shard].cut(p.guard.Load()) })
			}
		})
	}
}

// denied marks the requests that are allowed no more, and tells whether there are
// any.
func (u *underway) denied(g *guard) (any bool) {
	for r := u.first; r != nil; r = r.next {
		r.marked = !r.again(g).Allow
		any = any || r.marked
	}
	return any
}

// cut ends those that were marked and are still not allowed.
func (u *underway) cut(g *guard) {
	for r := u.first; r != nil; {
		next := r.next // r may leave the list
		if v := r.again(g); r.marked && !v.Allow {
			r.marked, r.why = false, v
			r.in.deny(v)
			r.in.p.log.Info("request cut: policy allows it no more", zap.String("request", r.ids.request))
			r.hop.abort()
		}
		r = next
	}
}

// again is the verdict about a request under way by the rules of now.
func (r *inboundRequests) again(g *guard) policy.Verdict {
	r.guard, r.tokenAsked, r.late = g, false, true
	v := g.Authorize(&r.call)
	r.late = false
	return v
}
