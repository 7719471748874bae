package proxy

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/relay"
)

// explicit carries the requests of a connection that was made to the proxy
// itself (seed B's sidecar): with X-Target-Service to that service, without it
// to the local app.
type explicit struct {
	p   *Proxy
	in  *inbound
	out *outbound
}

// serveDirect serves a connection that came to the proxy's own port: in
// explicit mode, unless it is not known whether it was redirected here.
func (p *Proxy) serveDirect(ctx, soft context.Context, lc *listen.Conn) {
	if err := lc.OriginalDstErr; err != nil && !p.cfg.NotRedirected(err) {
		p.log.Warn("the original destination of a connection is not known", zap.Stringer("peer", lc.Peer), zap.Error(err))
		reset(lc.TCPConn)
		return
	}
	p.serveExplicit(ctx, soft, lc)
}

// serveExplicit serves a connection that was not redirected. Only programs
// beside the proxy may name a target: anybody else would borrow its identity.
func (p *Proxy) serveExplicit(ctx, soft context.Context, lc *listen.Conn) {
	found, c, err := detect.Peek(ctx, lc.TCPConn, detect.Config{Deadline: time.Now().Add(p.cfg.HandshakeTime)})
	bare, peeked := c.Unwrap()
	if err != nil || found.Kind != detect.HTTP1 {
		reset(lc.TCPConn)
		return
	}
	local := p.isLocal(lc.Peer.Addr())
	e := &explicit{p: p, out: &outbound{p: p, lc: lc}}
	e.in = &inbound{p: p, lc: lc, trusted: local, caller: policy.Caller{Addr: lc.Peer.Addr()}}
	e.in.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.servicePort())
	e.out.init(ctx)
	e.in.requests.init(ctx, e.in)
	m := p.conns.explicit
	m.Opened()
	err = h1.Serve(soft, bare, peeked, &p.h1, e.serve)
	reason := "eof"
	up := e.out.upgraded
	if up.client == nil {
		up = e.in.requests.upgraded
	}
	if errors.Is(err, h1.ErrUpgraded) {
		reason = relay.Run(ctx, up.client, up.upstream, relay.Config{HalfClosedTimeout: halfClosed}).Reason.String()
	} else if err != nil {
		reason = "failed"
	}
	m.Closed(reason, 0, 0)
}

func (e *explicit) serve(x *h1.Exchange) {
	target, ok := x.Req.Get("X-Target-Service")
	if !ok {
		e.in.requests.serve(x)
		return
	}
	if !e.in.trusted {
		_ = answer(x, notLocal, "")
		return
	}
	name := policy.ServiceName{Namespace: e.p.cfg.Service.Namespace, Name: target}
	if ns, ok := x.Req.Get("X-Target-Namespace"); ok {
		name.Namespace = ns
	}
	if name.Validate() != nil {
		_ = answer(x, noTarget, "")
		return
	}
	e.out.dest = e.p.destination(e.out.ctx, name)
	if e.out.dest == nil {
		_ = answer(x, noEndpoints, "")
		return
	}
	e.out.serve(x)
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
