package proxy

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/ratelimit"
	"github.com/weir-mesh/weir/proxy/relay"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// serveOutbound carries one connection of the app. This is the way out: where
// was it going, which service is that, what does it speak, then by request or
// by connection to an endpoint.
func (p *Proxy) serveOutbound(lc *listen.Conn) {
	if !lc.Redirected() {
		p.serveDirect(lc)
		return
	}
	name, known := p.serviceAt(lc)
	if !known && policy.IsVirtual(lc.OriginalDst().Addr()) {
		p.log.Debug("no service has this virtual address", zap.Stringer("destination", lc.OriginalDst()))
		_ = lc.Reset()
		return
	}
	if !known {
		p.serveUnknown(lc)
		return
	}
	if d := p.destination(lc.Loop(), name); d != nil {
		p.serveService(lc, d)
		return
	}
	_ = lc.Reset()
}

// serviceAt finds the service at the address that a connection was going to,
// asking the control plane on first use.
func (p *Proxy) serviceAt(lc *listen.Conn) (name policy.ServiceName, known bool) {
	name, known, answered := p.feed.LookAt(lc.OriginalDst())
	if !answered {
		return p.askAt(lc)
	}
	return name, known
}

// askAt is apart from serviceAt so that the answer is on the heap only here.
func (p *Proxy) askAt(lc *listen.Conn) (name policy.ServiceName, known bool) {
	lc.Loop().Block(func() { name, known = p.feed.ServiceAt(p.hard, lc.OriginalDst()) })
	return name, known
}

// serveService carries a connection to a service of the mesh, by request where
// it speaks HTTP and by connection otherwise.
func (p *Proxy) serveService(lc *listen.Conn, d *destination) {
	protocol := d.protocolFor(lc.OriginalDst().Port())
	if opaque(protocol) && !(protocol == "tls" && isExternal(d.svc)) { // to which TLS may be begun: see connect
		p.metrics.Detected(declaredWord)
		p.relayOutbound(&lc.Conn, nil, lc, d)
		return
	}
	n, _ := newcomers.Get().(*newcomer)
	if n == nil {
		n = &newcomer{}
		n.enough, n.then = n.draining, n.spoke
	}
	n.p, n.lc, n.dest, n.protocol = p, lc, d, protocol
	detect.Peek(&lc.Conn, detect.Config{Deadline: lc.Loop().Now().Add(idleLimit), Enough: n.enough}, n.then)
}

// idleLimit is how long a connection may say nothing where HTTP is declared.
const idleLimit = 5 * time.Minute

// serveAs carries a connection to a service.
func (p *Proxy) serveAs(how carriage, c loop.Stream, peeked []byte, lc *listen.Conn, d *destination) {
	switch how {
	case asRequests:
		p.serveRequests(c, peeked, lc, d)
	case asStreams:
		p.serveStreams(c, peeked, lc, d)
	default:
		p.relayOutbound(c, peeked, lc, d)
	}
}

// serveRequests runs the HTTP engine on a connection and, after an upgrade,
// the relay.
func (p *Proxy) serveRequests(c loop.Stream, peeked []byte, lc *listen.Conn, d *destination) {
	p.conns.outboundHTTP.Opened()
	o := &outboundConn{p: p, lc: lc, dest: d}
	p.h1.Begin(&o.requests, c, peeked, o)
}

// Ended is told how a connection of requests ended.
func (c *outboundConn) Ended(err error) {
	m := c.p.conns.outboundHTTP
	switch {
	case errors.Is(err, h1.ErrUpgraded):
		c.p.relayUpgraded(c.lc, c.upgraded, m, &c.p.conns.outboundUpgraded, nil)
	case err != nil:
		m.Closed("failed", 0, 0)
		c.p.log.Debug("outbound connection", zap.Stringer("destination", c.lc.OriginalDst()), zap.Error(err))
	default:
		m.Closed("eof", 0, 0)
	}
}

// halfClosed is how long one direction may stay open and silent after the
// other has ended: a peer that vanished is noticed by nothing else.
const halfClosed = 10 * time.Minute

// relayOutbound carries a connection whose requests are not seen: one endpoint
// for all of it.
func (p *Proxy) relayOutbound(client loop.Stream, peeked []byte, lc *listen.Conn, d *destination) {
	l := lc.Loop()
	started, age := l.Now(), l.Age()
	m := p.conns.outboundTCP
	m.Opened()
	ownTLS := speaksTLS(peeked)
	e, ticket, up, err := p.connect(l, d, lc.OriginalDst().Port(), ownTLS, started)
	p.countRelay(lc.Shard(), lc.OriginalDst().Port(), d, e, ownTLS)
	if err != nil {
		m.Closed("no-upstream", 0, 0)
		p.log.Info("no upstream", zap.Stringer("service", d.svc.Name), zap.Error(err))
		p.logOutbound(lc, d.label, "", "no-upstream", started, relay.Result{})
		_ = lc.Reset()
		return
	}
	p.succeeded(e, ticket, l.Now())
	e.record(l.Now().Sub(started), false)
	r := &outboundRelay{p: p, lc: lc, dest: d, endpoint: e, started: age}
	r.session.Begin(client, up, relay.Config{FromClient: bytes.Clone(peeked), HalfClosedTimeout: halfClosed}, r)
}

var (
	errNoEndpoints = errors.New("no healthy endpoints")
	errCircuitOpen = errors.New("circuit is open")
)

// connect finds an endpoint that takes a connection, trying others as often as
// the service's settings let a request be tried. An app that speaks TLS itself has
// none begun for it.
func (p *Proxy) connect(l *loop.Loop, d *destination, port uint16, ownTLS bool, now time.Time) (*endpoint, breaker.Ticket, loop.Stream, error) {
	pk := d.choose("", port)
	if pk == nil {
		d.metrics.RoutingFailed()
		return nil, breaker.Ticket{}, nil, errNoEndpoints
	}
	sel := selections.Get().(*selection)
	defer selections.Put(sel)
	sel.now, sel.ignore, sel.counted = now, false, false // limits are of requests
	sel.begin(pk)
	var last error
	for range max(d.svc.Traffic.Retry.Attempts, 1) {
		random := rand.Uint64()
		e, ticket, ok := sel.take(random, d.hashKey.ofConnection(p.cfg.ID, random))
		if !ok {
			d.metrics.RoutingFailed()
			return nil, ticket, nil, errors.Join(errCircuitOpen, last)
		}
		d.metrics.Routed()
		begin := e.origin
		if ownTLS {
			begin = nil
		}
		c, err := p.dialAs(l, d, e, begin, time.Time{})
		if err == nil {
			return e, ticket, c, nil
		}
		if errors.Is(err, errOverload) {
			e.unjudged(ticket)
			return nil, ticket, nil, err
		}
		last = err
		e.stats.End(l.Now(), l.Now().Sub(now), true)
		e.record(0, true)
		d.metrics.BackendFailed()
		p.failed(e, ticket, l.Now())
		if l.Closing() {
			break
		}
		sel.avoid(e)
	}
	return nil, breaker.Ticket{}, nil, last
}

// selections are reused: what is bound in one would be an allocation each time.
var selections = sync.Pool{New: func() any {
	s := &selection{}
	s.usableFn = s.usable
	return s
}}

// selection chooses endpoints for one request or connection: such as have a
// circuit and a limit that let it pass and were not tried yet. It is reused between
// requests so that choosing allocates nothing.
type selection struct {
	pick     *pick
	from     *choice // of pick
	outliers bool    // they are usable too
	now      time.Time
	ignore   bool               // circuits are off for this request
	counted  bool               // it counts against the endpoints' own limits
	full     *endpoint          // of those passed over for their limit the one that soonest takes another,
	when     ratelimit.Decision // and what its limit said
	tried    []*endpoint
	first    *endpoint      // to be taken before any other, nil for none
	usableFn func(int) bool // usable, bound once
}

func (s *selection) begin(pk *pick) { s.pick, s.tried, s.full, s.first = pk, s.tried[:0], nil, nil }

// prefer has an endpoint taken before any other, once, if it may be used.
func (s *selection) prefer(e *endpoint) { s.first = e }

func (s *selection) preferred() (e *endpoint, ok bool) {
	if s.first == nil {
		return nil, false
	}
	e, s.first = s.first, nil
	s.outliers = s.pick.panics.Load()
	return e, s.fit(e)
}

func (s *selection) avoid(e *endpoint) { s.tried = append(s.tried, e) }

func (s *selection) usable(i int) bool { return s.fit(s.from.endpoints[i]) }

func (s *selection) fit(e *endpoint) bool {
	if !s.outliers && e.ejected() || e.shut() {
		return false
	}
	if e.circuit != nil && !s.ignore && !e.circuit.Ready(s.now) {
		return false
	}
	for _, t := range s.tried {
		if t == e {
			return false
		}
	}
	return e.limiter == nil || !s.counted || s.admits(e, e.limiter.Peek(s.now))
}

// admits notes an endpoint that its limit refuses.
func (s *selection) admits(e *endpoint, d ratelimit.Decision) bool {
	if !d.OK && (s.full == nil || d.RetryAfter < s.when.RetryAfter) {
		s.full, s.when = e, d
	}
	return d.OK
}

// take chooses one and counts it as in flight. When none may be used ok is false.
func (s *selection) take(random, hash uint64) (e *endpoint, t breaker.Ticket, ok bool) {
	for range 4 { // a probe's slot, or a limit's last place, can be lost to another meanwhile
		if e, ok = s.preferred(); !ok {
			e, ok = s.find(random, hash)
		}
		if !ok {
			return nil, breaker.Ticket{}, false
		}
		if e.limiter != nil && s.counted && !s.admits(e, e.limiter.Allow(s.now)) {
			continue // another request took the last place
		}
		if e.circuit == nil || s.ignore {
			e.stats.Begin(s.now)
			return e, breaker.Ticket{}, true
		}
		if t, ok = e.circuit.Allow(s.now); ok {
			e.stats.Begin(s.now)
			return e, t, true
		}
	}
	return nil, breaker.Ticket{}, false
}

// serveUnknown carries a connection to an address that is no service's. It
// passes untouched, unless the mesh forbids egress; but a name in its first
// bytes (Host, SNI) that is a service's leads there.
func (p *Proxy) serveUnknown(lc *listen.Conn) {
	deny := p.mesh.Load().EgressDeny
	l := lc.Loop()
	var dial func() (*loop.Conn, error)
	if !deny {
		dial = func() (*loop.Conn, error) {
			d := p.meshDialer
			if p.local[lc.OriginalDst().Addr()] {
				d = p.appDialer // the app calls itself: not for the inbound rules
			}
			return l.Dial(d, lc.OriginalDst(), l.Now().Add(p.cfg.ConnectLimit))
		}
	}
	wait := patience{deadline: l.Now().Add(p.cfg.HandshakeTime), pause: min(beginning, p.cfg.HandshakeTime)}
	p.listenBoth(&lc.Conn, wait, dial, func(first *firstBytes, err error) {
		if err != nil {
			p.log.Debug("unknown destination", zap.Stringer("destination", lc.OriginalDst()), zap.Error(err))
			_ = lc.Reset()
			return
		}
		p.serveUnknownHeard(lc, first, deny)
	})
}

func (p *Proxy) serveUnknownHeard(lc *listen.Conn, first *firstBytes, deny bool) {
	p.metrics.Detected(outcomeWord(first.found))
	if d := p.serviceNamed(lc.Loop(), first); d != nil {
		first.dropUpstream()
		p.serveAs(carriageOf("", false, first.found), first.client, first.peeked, lc, d)
		return
	}
	if deny {
		p.conns.egressDenied.Opened()
		p.conns.egressDenied.Closed("denied", 0, 0)
		p.log.Info("egress denied", zap.Stringer("destination", lc.OriginalDst()))
		_ = lc.Reset()
		return
	}
	p.passThrough(lc, first)
}

func (p *Proxy) passThrough(lc *listen.Conn, first *firstBytes) {
	m := p.conns.passThrough
	m.Opened()
	started := lc.Loop().Age() // taking the upstream may wait
	peeked := bytes.Clone(first.peeked)
	up, err := first.takeUpstream()
	if err != nil {
		m.Closed("no-upstream", 0, 0)
		p.log.Debug("pass through", zap.Stringer("destination", lc.OriginalDst()), zap.Error(err))
		_ = lc.Reset()
		return
	}
	r := &outboundRelay{p: p, lc: lc, started: started}
	r.session.Begin(first.client, up, relay.Config{FromClient: peeked, HalfClosedTimeout: halfClosed}, r)
}

// serviceNamed finds the service that a connection's first bytes name.
func (p *Proxy) serviceNamed(l *loop.Loop, first *firstBytes) *destination {
	var host string
	switch {
	case first.found.Kind == detect.HTTP1:
		host = hostIn(first.peeked)
	case first.found.Kind == detect.HTTP2:
		host = authorityIn(first.peeked)
	case first.found.Hello != nil && !first.found.Hello.Encrypted: // else the name is not of where it goes
		host = first.found.Hello.ServerName
	}
	return p.serviceFor(l, host)
}

// logConn completes and writes the line of a connection in the access log.
func (p *Proxy) logConn(r *telemetry.Record, lc *listen.Conn, res relay.Result) {
	if p.access == nil || !p.mesh.Load().AccessLog {
		return
	}
	r.Protocol, r.Duration, r.BytesIn, r.BytesOut = "tcp", lc.Loop().Now().Sub(r.Time), res.ToUpstream, res.ToClient
	p.access.Log(r)
}

func (p *Proxy) logOutbound(lc *listen.Conn, destination, endpoint, reason string, started time.Time, res relay.Result) {
	p.logConn(&telemetry.Record{
		Time: started, Direction: telemetry.Outbound, Source: lc.Peer().String(), Destination: destination, Endpoint: endpoint, Reason: reason,
	}, lc, res)
}

// source names the caller of an inbound connection for the log.
func source(caller policy.Caller, peer netip.AddrPort) string {
	if caller.Verified {
		return caller.Name.String()
	}
	return peer.Addr().String()
}
