package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/relay"
	"github.com/weir-mesh/weir/proxy/retry"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// serveOutbound carries one connection of the app. This is the way out: where
// was it going, which service is that, what does it speak, then by request or
// by connection to an endpoint. ctx ends it hard; soft ends it after the
// exchange at hand.
func (p *Proxy) serveOutbound(ctx, soft context.Context, lc *listen.Conn) {
	if !lc.Redirected {
		p.serveDirect(ctx, soft, lc)
		return
	}
	name, known := p.feed.ServiceAt(ctx, lc.OriginalDst)
	if !known && policy.IsVirtual(lc.OriginalDst.Addr()) {
		p.log.Debug("no service has this virtual address", zap.Stringer("destination", lc.OriginalDst))
		reset(lc.TCPConn)
		return
	}
	if !known {
		p.serveUnknown(ctx, soft, lc)
		return
	}
	if d := p.destination(ctx, name); d != nil {
		p.serveService(ctx, soft, lc, d)
		return
	}
	reset(lc.TCPConn)
}

// serveService carries a connection to a service of the mesh, by request where
// it speaks HTTP/1.1 and by connection otherwise.
func (p *Proxy) serveService(ctx, soft context.Context, lc *listen.Conn, d *destination) {
	protocol := d.protocolFor(lc.OriginalDst.Port())
	if !clientFirst(protocol) {
		p.relayOutbound(ctx, lc.TCPConn, nil, lc, d)
		return
	}
	found, c, err := detect.Peek(ctx, lc.TCPConn, detect.Config{Deadline: time.Now().Add(idleLimit)})
	p.metrics.Detected(outcomeWord(found))
	bare, peeked := c.Unwrap()
	if err != nil || len(peeked) == 0 {
		return
	}
	if !byRequest(protocol, true, found) {
		p.relayOutbound(ctx, bare, peeked, lc, d)
		return
	}
	p.serveRequests(ctx, soft, bare, peeked, &outbound{p: p, lc: lc, dest: d})
}

// idleLimit is how long a connection may say nothing where HTTP is declared.
const idleLimit = 5 * time.Minute

// serveRequests runs the HTTP engine on a connection and, after an upgrade,
// the relay.
func (p *Proxy) serveRequests(ctx, soft context.Context, c net.Conn, peeked []byte, o *outbound) {
	m := p.conns.outboundHTTP
	m.Opened()
	o.init(ctx)
	err := h1.Serve(soft, c, peeked, &p.h1, o.serve)
	reason := "eof"
	var in, out int64
	if errors.Is(err, h1.ErrUpgraded) {
		res := relay.Run(ctx, o.upgraded.client, o.upgraded.upstream, relay.Config{HalfClosedTimeout: halfClosed})
		reason, in, out = res.Reason.String(), res.ToUpstream, res.ToClient
	} else if err != nil {
		reason = "failed"
		p.log.Debug("outbound connection", zap.Stringer("destination", o.lc.OriginalDst), zap.Error(err))
	}
	m.Closed(reason, in, out)
}

// halfClosed is how long one direction may stay open and silent after the
// other has ended: a peer that vanished is noticed by nothing else.
const halfClosed = 10 * time.Minute

// relayOutbound carries a connection whose requests are not seen: one endpoint
// for all of it.
func (p *Proxy) relayOutbound(ctx context.Context, client net.Conn, peeked []byte, lc *listen.Conn, d *destination) {
	started := time.Now()
	m := p.conns.outboundTCP
	m.Opened()
	defer func() { _ = client.Close() }()
	e, ticket, up, err := p.connect(ctx, d, lc.OriginalDst.Port(), started)
	if err != nil {
		m.Closed("no-upstream", 0, 0)
		p.log.Info("no upstream", zap.Stringer("service", d.svc.Name), zap.Error(err))
		p.logConn(telemetry.Outbound, lc, d.label, "", "no-upstream", started, relay.Result{})
		reset(lc.TCPConn)
		return
	}
	p.succeeded(e, ticket, time.Now())
	res := relay.Run(ctx, client, up, relay.Config{FromClient: peeked, HalfClosedTimeout: halfClosed})
	e.stats.Cancel()
	m.Closed(res.Reason.String(), res.ToUpstream, res.ToClient)
	p.logConn(telemetry.Outbound, lc, d.label, e.addr.String(), res.Reason.String(), started, res)
}

var (
	errNoEndpoints = errors.New("no healthy endpoints")
	errCircuitOpen = errors.New("circuit is open")
)

// connect finds an endpoint that takes a connection, trying others as often as
// the service's settings let a request be tried.
func (p *Proxy) connect(ctx context.Context, d *destination, port uint16, now time.Time) (*endpoint, breaker.Ticket, net.Conn, error) {
	pk := d.choose("", port)
	if pk == nil {
		d.metrics.RoutingFailed()
		return nil, breaker.Ticket{}, nil, errNoEndpoints
	}
	sel := &selection{now: now}
	sel.usableFn = sel.usable
	sel.begin(pk)
	var last error
	for range max(d.svc.Traffic.Retry.Attempts, 1) {
		e, ticket, ok := sel.take(rand.Uint64(), 0)
		if !ok {
			d.metrics.RoutingFailed()
			return nil, ticket, nil, errors.Join(errCircuitOpen, last)
		}
		d.metrics.Routed()
		c, err := p.dialEndpoint(ctx, d, e, time.Time{})
		if err == nil {
			return e, ticket, c, nil
		}
		last = err
		e.stats.End(time.Now(), time.Since(now), true)
		d.metrics.BackendFailed()
		p.failed(e, ticket, time.Now())
		if ctx.Err() != nil {
			break
		}
		sel.avoid(e)
	}
	return nil, breaker.Ticket{}, nil, last
}

// failed reports a failure to an endpoint's circuit.
func (p *Proxy) failed(e *endpoint, t breaker.Ticket, now time.Time) {
	if e.circuit == nil {
		return
	}
	if e.circuit.Failure(now, t) {
		e.metrics.CircuitOpened()
		e.metrics.CircuitState(int(breaker.Open))
		p.log.Info("circuit opened", zap.String("endpoint", e.id), zap.Stringer("address", e.addr))
	}
}

// succeeded reports a success; a probe's closes the circuit.
func (p *Proxy) succeeded(e *endpoint, t breaker.Ticket, now time.Time) {
	if e.circuit == nil {
		return
	}
	if e.circuit.Success(now, t) {
		e.metrics.CircuitState(int(breaker.Closed))
		p.log.Info("circuit closed", zap.String("endpoint", e.id), zap.Stringer("address", e.addr))
	}
}

// selection chooses endpoints for one request or connection: such as have a
// circuit that lets it pass and were not tried yet. It is reused between
// requests so that choosing allocates nothing.
type selection struct {
	pick     *pick
	now      time.Time
	ignore   bool // circuits are off for this request
	tried    []*endpoint
	usableFn func(int) bool // usable, bound once
}

func (s *selection) begin(pk *pick) { s.pick, s.tried = pk, s.tried[:0] }

func (s *selection) avoid(e *endpoint) { s.tried = append(s.tried, e) }

func (s *selection) usable(i int) bool {
	e := s.pick.endpoints[i]
	if e.circuit != nil && !s.ignore && !e.circuit.Ready(s.now) {
		return false
	}
	for _, t := range s.tried {
		if t == e {
			return false
		}
	}
	return true
}

// take chooses one and counts it as in flight. When all that may be used were
// tried they may be tried again; when none may be used ok is false.
func (s *selection) take(random, hash uint64) (e *endpoint, t breaker.Ticket, ok bool) {
	for range 4 { // a probe's slot can be lost to another between Ready and Allow
		i, found := s.pick.set.Pick(balanceRequest(s, random, hash))
		if !found && len(s.tried) > 0 {
			s.tried = s.tried[:0]
			i, found = s.pick.set.Pick(balanceRequest(s, random, hash))
		}
		if !found {
			return nil, breaker.Ticket{}, false
		}
		e = s.pick.endpoints[i]
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
func (p *Proxy) serveUnknown(ctx, soft context.Context, lc *listen.Conn) {
	deny := p.mesh.Load().EgressDeny
	var dial func(context.Context) (net.Conn, error)
	if !deny {
		dial = func(ctx context.Context) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectLimit)
			defer cancel()
			d := p.toMesh
			if p.local[lc.OriginalDst.Addr()] {
				d = p.toApp // the app calls itself: not for the inbound rules
			}
			return d.DialContext(ctx, "tcp", lc.OriginalDst.String())
		}
	}
	first, err := p.listenBoth(ctx, lc.TCPConn, dial)
	if err != nil {
		p.log.Debug("unknown destination", zap.Stringer("destination", lc.OriginalDst), zap.Error(err))
		reset(lc.TCPConn)
		return
	}
	p.metrics.Detected(outcomeWord(first.found))
	if d := p.serviceNamed(ctx, first); d != nil {
		first.dropUpstream()
		if first.found.Kind == detect.HTTP1 {
			p.serveRequests(ctx, soft, first.client, first.peeked, &outbound{p: p, lc: lc, dest: d})
			return
		}
		p.relayOutbound(ctx, first.client, first.peeked, lc, d)
		return
	}
	if deny {
		p.conns.egressDenied.Opened()
		p.conns.egressDenied.Closed("denied", 0, 0)
		p.log.Info("egress denied", zap.Stringer("destination", lc.OriginalDst))
		reset(lc.TCPConn)
		return
	}
	p.passThrough(ctx, lc, first)
}

func (p *Proxy) passThrough(ctx context.Context, lc *listen.Conn, first *firstBytes) {
	started := time.Now()
	m := p.conns.passThrough
	m.Opened()
	up, err := first.takeUpstream()
	if err != nil {
		m.Closed("no-upstream", 0, 0)
		p.log.Debug("pass through", zap.Stringer("destination", lc.OriginalDst), zap.Error(err))
		reset(lc.TCPConn)
		return
	}
	res := relay.Run(ctx, first.client, up, relay.Config{FromClient: first.peeked, FromUpstream: first.fromUpstream, HalfClosedTimeout: halfClosed})
	m.Closed(res.Reason.String(), res.ToUpstream, res.ToClient)
	p.logConn(telemetry.Outbound, lc, lc.OriginalDst.String(), lc.OriginalDst.String(), res.Reason.String(), started, res)
}

// serviceNamed finds the service that a connection's first bytes name.
func (p *Proxy) serviceNamed(ctx context.Context, first *firstBytes) *destination {
	var host string
	switch {
	case first.found.Kind == detect.HTTP1:
		host = hostIn(first.peeked)
	case first.found.Hello != nil:
		host = first.found.Hello.ServerName
	}
	name, ok := p.meshName(host)
	if !ok {
		return nil
	}
	return p.destination(ctx, name)
}

// backoff waits before another try; false when there is no time or budget for
// it.
func (p *Proxy) backoff(ctx context.Context, d *destination, n int, deadline time.Time) bool {
	now := time.Now()
	left := retry.NoDeadline
	if !deadline.IsZero() {
		left = deadline.Sub(now)
	}
	wait, fits := retry.Backoff(d.svc.Traffic.Retry.Delay, n, rand.Uint64(), left)
	if !fits {
		d.metrics.RetryRefused("deadline")
		return false
	}
	if !d.budget.Take(now) {
		d.metrics.RetryRefused("budget")
		return false
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reset ends a connection so that its peer sees a refusal, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func (p *Proxy) logConn(dir telemetry.Direction, lc *listen.Conn, destination, endpoint, reason string, started time.Time, res relay.Result) {
	if p.access == nil || !p.mesh.Load().AccessLog {
		return
	}
	p.access.Log(&telemetry.Record{
		Time: started, Direction: dir, Source: lc.Peer.String(), Destination: destination, Endpoint: endpoint,
		Protocol: "tcp", Reason: reason, Duration: time.Since(started), BytesIn: res.ToUpstream, BytesOut: res.ToClient,
	})
}

// source names the caller of an inbound connection for the log.
func source(caller policy.Caller, peer netip.AddrPort) string {
	if caller.Verified {
		return caller.Name.String()
	}
	return peer.Addr().String()
}
