package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/identity"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/relay"
	"github.com/weir-mesh/weir/proxy/secure"
	"github.com/weir-mesh/weir/proxy/telemetry"
	"github.com/weir-mesh/weir/proxy/translate"
)

// serveInbound carries one connection to the app. This is the way in: the
// mesh's own TLS is ended and tells who calls, anything else is plaintext (the
// app's own TLS included, which is never touched); then policy, then the app.
func (p *Proxy) serveInbound(lc *listen.Conn) {
	if !lc.Redirected() {
		p.serveDirect(lc)
		return
	}
	in := &inbound{p: p, lc: lc, dst: lc.OriginalDst(), caller: policy.Caller{Addr: lc.Peer().Addr()}}
	in.protocol, in.declared = p.appProtocol(in.dst.Port())
	in.listen(func(first *firstBytes, err error) {
		switch {
		case err != nil:
			if errors.Is(err, errSilent) {
				p.metrics.HandshakeFailed(telemetry.Server, "silent")
			}
			p.log.Debug("inbound connection", zap.Stringer("peer", lc.Peer()), zap.Error(err))
			_ = lc.Reset()
		case first.found.Hello != nil && first.found.Hello.Mesh:
			in.serveMesh(first)
		default:
			if first.found.Kind == detect.TLS && first.found.Outcome == detect.Incomplete {
				p.metrics.HandshakeFailed(telemetry.Server, "half-hello")
			}
			in.servePlain(&lc.Conn, first)
		}
	})
}

// inbound is one connection to the app.
type inbound struct {
	requests h1.Conn
	p        *Proxy
	lc       *listen.Conn
	dst      netip.AddrPort // where the caller was going
	caller   policy.Caller
	trusted  bool // the local app itself: it may reach its own ports anyway
	protocol string
	declared bool
	upgraded *upgrade // nil unless there was one
	asked    *asked   // the request that led to it
}

// connection is what rules decide about where requests are not seen.
func (i *inbound) connection() policy.Call { return policy.Call{Caller: i.caller, Port: i.dst.Port()} }

// mayConnect tells whether the caller may use a connection whose bytes are not
// looked at.
func (i *inbound) mayConnect() bool {
	call := i.connection()
	return i.p.guard.Load().Authorize(&call).Allow
}

// listen hears the caller's first bytes. Where the app may speak first and the
// caller might be allowed without TLS, the app is dialled meanwhile.
func (i *inbound) listen(then func(*firstBytes, error)) {
	dial := i.dialApp
	if clientFirst(i.protocol) || !i.p.guard.Load().TakesPlaintext(i.dst.Port()) || !i.mayConnect() {
		dial = nil
	}
	limit := i.p.cfg.HandshakeTime
	i.p.listenBoth(&i.lc.Conn, patience{deadline: i.lc.Loop().Now().Add(limit), pause: limit, hold: helloGrace}, dial, then)
}

func (i *inbound) dialApp() (*loop.Conn, error) { return i.p.dialApp(i.lc.Loop(), i.lc.Peer(), i.dst) }

// dial is dialApp for requests. The app is told what its caller says, in the same
// version: callers that knew of the app's protocol have seen to it.
func (i *inbound) dial(translate.Version, time.Time) (loop.Stream, error) {
	c, err := i.dialApp()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// serveMesh ends the mesh's TLS and serves what is inside.
func (i *inbound) serveMesh(first *firstBytes) {
	tc := secure.Server(&i.lc.Conn, first.peeked, i.p.server())
	err := tc.Handshake(i.lc.Loop().Now().Add(i.p.cfg.HandshakeTime))
	resumed := false
	if err == nil {
		cs := tc.ConnectionState()
		resumed = cs.DidResume
		i.caller.Name, err = i.p.id.Peer(cs)
	}
	if err == nil {
		err = i.p.keep(tc, telemetry.Inbound)
	}
	if err != nil {
		first.dropUpstream()
		i.p.conns.handshakeFailed.Opened()
		i.p.conns.handshakeFailed.Closed("handshake", 0, 0)
		i.p.refusedPeer(telemetry.Inbound, err)
		reason := identity.FailureReason(err)
		i.p.metrics.HandshakeFailed(telemetry.Server, reason)
		i.p.log.Info("mTLS handshake failed", zap.Stringer("peer", i.lc.Peer()), zap.String("reason", reason), zap.Error(err))
		_ = tc.Close()
		return
	}
	i.p.metrics.HandshakeDone(telemetry.Server, resumed)
	i.caller.Verified = true
	first.client, first.peeked = tc, nil
	if i.declared && opaque(i.protocol) {
		i.p.metrics.Detected(declaredWord)
		i.serveOpaque(first)
		return
	}
	first.dropUpstream()
	i.listenInside(tc, func(inner *firstBytes, err error) {
		if err != nil {
			_ = tc.Close()
			return
		}
		i.servePlain(tc, inner)
	})
}

// listenInside hears the first bytes of a decrypted stream. A caller that says
// nothing is given time where HTTP is declared; elsewhere the app may be the
// one to speak first.
func (i *inbound) listenInside(tc *secure.Conn, then func(*firstBytes, error)) {
	now := i.lc.Loop().Now()
	switch {
	case clientFirst(i.protocol):
		i.p.listenBoth(tc, patience{deadline: now.Add(idleLimit)}, nil, then)
	case !i.mayConnect():
		i.p.listenBoth(tc, patience{deadline: now.Add(i.p.cfg.HandshakeTime)}, nil, then)
	default:
		i.p.listenBoth(tc, patience{pause: i.p.cfg.HandshakeTime}, i.dialApp, then)
	}
}

// servePlain serves decrypted or plain bytes: by request where they are
// HTTP, by connection otherwise.
func (i *inbound) servePlain(c loop.Stream, first *firstBytes) {
	i.p.metrics.Detected(outcomeWord(first.found))
	switch carriageOf(i.protocol, i.declared, first.found) {
	case asRequests:
		first.dropUpstream()
		i.serveHTTP(c, first.peeked)
	case asStreams:
		first.dropUpstream()
		i.serveStreams(c, first.peeked)
	default:
		i.serveOpaque(first)
	}
}

// serveOpaque decides once for the connection, then carries it; a later change
// of policy cuts it.
func (i *inbound) serveOpaque(first *firstBytes) {
	l := i.lc.Loop()
	started := l.Now()
	m := i.p.conns.inboundTCP
	m.Opened()
	g, call := i.p.guard.Load(), i.connection()
	audits := i.audit(g, &call)
	v := g.Authorize(&call)
	if !v.Allow {
		i.countOpaque(v, false)
		first.dropUpstream()
		i.deny(v)
		m.Closed("denied", 0, 0)
		i.logConn(string(v.Reason), v.Rule, audits, started, relay.Result{})
		_ = first.client.Reset()
		return
	}
	peeked := bytes.Clone(first.peeked)
	up, err := i.upstream(first)
	i.countOpaque(v, err != nil)
	if err != nil {
		m.Closed("app-unavailable", 0, 0)
		i.p.log.Info("the app does not answer", zap.Stringer("address", i.dst), zap.Error(err))
		i.logConn("app-unavailable", v.Rule, audits, started, relay.Result{})
		_ = first.client.Reset()
		return
	}
	var live *liveConn
	session := relay.Start(first.client, up, relay.Config{FromClient: peeked, HalfClosedTimeout: halfClosed}, func(res relay.Result) {
		reason, rule := res.Reason.String(), v.Rule
		if why := i.p.live.remove(live); why.Reason != "" {
			reason, rule = string(why.Reason), why.Rule
		}
		m.Closed(res.Reason.String(), res.ToUpstream, res.ToClient)
		i.logConn(reason, rule, audits, started, res)
	})
	live = i.p.live.add(i, &asked{Call: call}, cutter(l, session))
}

// upstream is the connection to the app: dialled before, or now.
func (i *inbound) upstream(first *firstBytes) (*loop.Conn, error) {
	if first.dialing != nil {
		if up, err := first.takeUpstream(); err == nil {
			return up, nil
		}
	}
	return i.dialApp()
}

// logConn writes the line of a connection in the access log.
func (i *inbound) logConn(reason, rule, audits string, started time.Time, res relay.Result) {
	i.p.logConn(&telemetry.Record{
		Time: started, Direction: telemetry.Inbound, Source: source(i.caller, i.lc.Peer()), Destination: i.p.cfg.Service.String(),
		Endpoint: i.dst.String(), Reason: reason, Route: rule, Audit: audits,
	}, i.lc, res)
}

// deny counts and logs a refused call.
func (i *inbound) deny(v policy.Verdict) {
	i.p.ownMetrics().Denied(string(v.Reason), v.Rule)
	i.p.log.Info("denied", zap.String("caller", source(i.caller, i.lc.Peer())), zap.Uint16("port", i.dst.Port()),
		zap.String("reason", string(v.Reason)), zap.String("rule", v.Rule))
}

// audit counts and logs the rules of that kind that are about a call, and gives
// their ids with spaces between.
func (i *inbound) audit(g *guard, call *policy.Call) (ids string) {
	g.Audit(call, func(rule string) {
		i.p.ownMetrics().Audited(rule)
		i.p.log.Info("audit", zap.String("caller", source(i.caller, i.lc.Peer())), zap.Uint16("port", i.dst.Port()), zap.String("rule", rule))
		ids = strings.TrimPrefix(ids+" "+rule, " ")
	})
	return ids
}

// serveHTTP runs the HTTP engine and, after an upgrade, the relay.
func (i *inbound) serveHTTP(c loop.Stream, peeked []byte) {
	i.p.conns.inboundHTTP.Opened()
	i.p.h1.Begin(&i.requests, c, peeked, i)
}

// relayUpgraded carries what follows an upgrade, for as long as the request that
// asked for it would be allowed.
func (i *inbound) relayUpgraded(m *telemetry.Connections) {
	var live *liveConn
	session := i.p.relayUpgraded(i.lc, i.upgraded, m, &i.p.conns.inboundUpgraded, func() { i.p.live.remove(live) })
	live = i.p.live.add(i, i.asked, cutter(i.lc.Loop(), session))
}

// Draining is asked between requests.
func (i *inbound) Draining() bool { return i.lc.Listener().Draining() }

// Ended is told how a connection of requests ended.
func (i *inbound) Ended(err error) {
	m := i.p.conns.inboundHTTP
	switch {
	case errors.Is(err, h1.ErrUpgraded):
		i.relayUpgraded(m)
	case err != nil:
		m.Closed("failed", 0, 0)
		i.p.log.Debug("inbound connection", zap.Stringer("peer", i.lc.Peer()), zap.Error(err))
	default:
		m.Closed("eof", 0, 0)
	}
}
