package proxy

import (
	"errors"
	"net/netip"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/listen"
)

// explicit carries the requests of a connection that was made to the proxy
// itself (seed B's sidecar): with X-Target-Service to that service, without it
// to the local app.
type explicit struct {
	requests h1.Conn
	p        *Proxy
	in       *inbound
	out      *outboundConn
}

// serveDirect serves a connection that came to the proxy's own port: in
// explicit mode, unless it is not known whether it was redirected here.
func (p *Proxy) serveDirect(lc *listen.Conn) {
	if err := lc.OriginalDstErr(); err != nil && !p.cfg.NotRedirected(err) {
		p.log.Warn("the original destination of a connection is not known", zap.Stringer("peer", lc.Peer()), zap.Error(err))
		_ = lc.Reset()
		return
	}
	p.serveExplicit(lc)
}

// serveExplicit serves a connection that was not redirected. Only programs
// beside the proxy may name a target: anybody else would borrow its identity.
func (p *Proxy) serveExplicit(lc *listen.Conn) {
	cfg := detect.Config{Deadline: lc.Loop().Now().Add(p.cfg.HandshakeTime), Enough: lc.Listener().Draining}
	detect.Peek(&lc.Conn, cfg, func(found detect.Result, peeked []byte, err error) {
		if err != nil || found.Kind != detect.HTTP1 {
			_ = lc.Reset()
			return
		}
		local := p.isLocal(lc.Peer().Addr())
		e := &explicit{p: p, out: &outboundConn{p: p, lc: lc}}
		e.in = &inbound{p: p, lc: lc, trusted: local, caller: policy.Caller{Addr: lc.Peer().Addr()}}
		e.in.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.servicePort())
		p.conns.explicit.Opened()
		p.h1.Begin(&e.requests, &lc.Conn, peeked, e)
	})
}

// Draining is asked between requests.
func (e *explicit) Draining() bool { return e.out.Draining() }

// Ended counts the end and relays after an upgrade.
func (e *explicit) Ended(err error) {
	m := e.p.conns.explicit
	switch {
	case errors.Is(err, h1.ErrUpgraded):
		if e.out.upgraded == nil {
			e.in.relayUpgraded(m)
			return
		}
		e.p.relayUpgraded(e.out.lc, e.out.upgraded, m, &e.p.conns.inboundUpgraded, nil)
	case err != nil:
		m.Closed("failed", 0, 0)
	default:
		m.Closed("eof", 0, 0)
	}
}

// Handle carries one request to where it says.
func (e *explicit) Handle(x *h1.Exchange) {
	target, ok := x.Req.Get("X-Target-Service")
	if !ok {
		e.in.Handle(x)
		return
	}
	if !e.in.trusted {
		_ = answer(&h1Hop{Exchange: x}, notLocal, "")
		return
	}
	name := policy.ServiceName{Namespace: e.p.cfg.Service.Namespace, Name: target}
	if ns, ok := x.Req.Get("X-Target-Namespace"); ok {
		name.Namespace = ns
	}
	if name.Validate() != nil {
		_ = answer(&h1Hop{Exchange: x}, noTarget, "")
		return
	}
	e.out.dest = e.p.destination(e.out.lc.Loop(), name)
	if e.out.dest == nil {
		_ = answer(&h1Hop{Exchange: x}, noEndpoints, "")
		return
	}
	e.out.Handle(x)
}

// servicePort is the app's port: the first that was declared with the proxy or
// registered for this host; 0 when none is known.
func (p *Proxy) servicePort() uint16 {
	if len(p.cfg.AppPorts) > 0 {
		return p.cfg.AppPorts[0].Port
	}
	if d := p.dests.Load().byName[p.cfg.Service]; d != nil {
		for i := range d.svc.Endpoints {
			if t := &d.svc.Endpoints[i]; p.local[t.Addr().Addr()] {
				return uint16(t.Port)
			}
		}
	}
	return 0
}
