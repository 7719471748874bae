package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"sync"
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
}

// listen hears the caller's first bytes. Where the app may speak first and the
// caller might be allowed without TLS, the app is dialled meanwhile.
func (i *inbound) listen(then func(*firstBytes, error)) {
	g := i.p.guard.Load()
	dial := i.dialApp
	if clientFirst(i.protocol) || !g.TakesPlaintext() || !g.Authorize(i.caller, "").Allow {
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
	if err != nil {
		first.dropUpstream()
		i.p.conns.handshakeFailed.Opened()
		i.p.conns.handshakeFailed.Closed("handshake", 0, 0)
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
	case !i.p.guard.Load().Authorize(i.caller, "").Allow:
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
	v := i.p.guard.Load().Authorize(i.caller, "")
	if !v.Allow || v.RequireJWT {
		word := string(v.Reason)
		if v.Allow {
			word = string(tokenMissing.word)
		}
		first.dropUpstream()
		i.deny(word)
		m.Closed("denied", 0, 0)
		i.p.logConn(telemetry.Inbound, i.lc, i.p.cfg.Service.String(), i.dst.String(), word, started, relay.Result{})
		_ = first.client.Reset()
		return
	}
	peeked := bytes.Clone(first.peeked)
	up, err := i.upstream(first)
	if err != nil {
		m.Closed("app-unavailable", 0, 0)
		i.p.log.Info("the app does not answer", zap.Stringer("address", i.dst), zap.Error(err))
		i.p.logConn(telemetry.Inbound, i.lc, i.p.cfg.Service.String(), i.dst.String(), "app-unavailable", started, relay.Result{})
		_ = first.client.Reset()
		return
	}
	var live *liveConn
	session := relay.Start(first.client, up, relay.Config{FromClient: peeked, HalfClosedTimeout: halfClosed}, func(res relay.Result) {
		i.p.live.remove(live)
		m.Closed(res.Reason.String(), res.ToUpstream, res.ToClient)
		i.p.logConn(telemetry.Inbound, i.lc, i.p.cfg.Service.String(), i.dst.String(), res.Reason.String(), started, res)
	})
	live = i.p.live.add(i.caller, cutter(l, session))
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

// deny counts and logs a refused call.
func (i *inbound) deny(word string) {
	i.p.ownMetrics().Denied(word)
	i.p.log.Info("denied", zap.String("caller", source(i.caller, i.lc.Peer())), zap.String("reason", word))
}

// serveHTTP runs the HTTP engine and, after an upgrade, the relay.
func (i *inbound) serveHTTP(c loop.Stream, peeked []byte) {
	i.p.conns.inboundHTTP.Opened()
	i.p.h1.Begin(&i.requests, c, peeked, i)
}

// Draining is asked between requests.
func (i *inbound) Draining() bool { return i.lc.Listener().Draining() }

// Ended is told how a connection of requests ended.
func (i *inbound) Ended(err error) {
	m := i.p.conns.inboundHTTP
	switch {
	case errors.Is(err, h1.ErrUpgraded):
		var live *liveConn
		session := i.p.relayUpgraded(i.lc, i.upgraded, m, &i.p.conns.inboundUpgraded, func() { i.p.live.remove(live) })
		live = i.p.live.add(i.caller, cutter(i.lc.Loop(), session))
	case err != nil:
		m.Closed("failed", 0, 0)
		i.p.log.Debug("inbound connection", zap.Stringer("peer", i.lc.Peer()), zap.Error(err))
	default:
		m.Closed("eof", 0, 0)
	}
}

// liveConns are the connections that policy is asked about again when it
// changes.
type liveConns struct {
	mu    sync.Mutex // guards what follows
	conns map[*liveConn]struct{}
}

type liveConn struct {
	caller policy.Caller
	cut    func() // from any goroutine
}

// cutter cuts a relay from any goroutine.
func cutter(l *loop.Loop, s *relay.Session) func() {
	return func() { l.Post(func() { s.Abort(relay.Cancelled) }) }
}

func (l *liveConns) add(caller policy.Caller, cut func()) *liveConn {
	c := &liveConn{caller: caller, cut: cut}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = map[*liveConn]struct{}{}
	}
	l.conns[c] = struct{}{}
	return c
}

func (l *liveConns) remove(c *liveConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// recheck cuts the connections that are allowed no more and says how many.
func (l *liveConns) recheck(g *policy.Guard) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for c := range l.conns {
		if !g.Authorize(c.caller, "").Allow {
			c.cut()
			delete(l.conns, c)
			n++
		}
	}
	return n
}
