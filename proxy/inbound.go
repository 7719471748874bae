package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/relay"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// serveInbound carries one connection to the app. This is the way in: the
// mesh's own TLS is ended and tells who calls, anything else is plaintext (the
// app's own TLS included, which is never touched); then policy, then the app.
func (p *Proxy) serveInbound(ctx, soft context.Context, lc *listen.Conn) {
	if !lc.Redirected {
		p.serveDirect(ctx, soft, lc)
		return
	}
	in := &inbound{p: p, lc: lc, dst: lc.OriginalDst, caller: policy.Caller{Addr: lc.Peer.Addr()}}
	in.protocol, in.declared = p.appProtocol(in.dst.Port())
	first, err := in.listen(ctx)
	if err != nil {
		p.log.Debug("inbound connection", zap.Stringer("peer", lc.Peer), zap.Error(err))
		reset(lc.TCPConn)
		return
	}
	if first.found.Hello != nil && first.found.Hello.Mesh {
		in.serveMesh(ctx, soft, first)
		return
	}
	in.servePlain(ctx, soft, lc.TCPConn, first)
}

// inbound is one connection to the app.
type inbound struct {
	p        *Proxy
	lc       *listen.Conn
	dst      netip.AddrPort // where the caller was going
	caller   policy.Caller
	trusted  bool // the local app itself: it may reach its own ports anyway
	protocol string
	declared bool

	requests inboundRequests
}

// listen hears the caller's first bytes. Where the app may speak first and the
// caller might be allowed without TLS, the app is dialled meanwhile.
func (i *inbound) listen(ctx context.Context) (*firstBytes, error) {
	g := i.p.guard.Load()
	if clientFirst(i.protocol) || !g.TakesPlaintext() || !g.Authorize(i.caller, "").Allow {
		return i.p.listenBoth(ctx, i.lc.TCPConn, nil)
	}
	return i.p.listenBoth(ctx, i.lc.TCPConn, i.dial)
}

func (i *inbound) dial(ctx context.Context) (net.Conn, error) { return i.p.dialApp(ctx, i.dst) }

// serveMesh ends the mesh's TLS and serves what is inside.
func (i *inbound) serveMesh(ctx, soft context.Context, first *firstBytes) {
	hctx, cancel := context.WithTimeout(ctx, i.p.cfg.HandshakeTime)
	tc := tls.Server(relay.NewTransport(&replay{TCPConn: i.lc.TCPConn, unread: first.peeked}), i.p.server())
	err := tc.HandshakeContext(hctx)
	cancel()
	if err == nil {
		i.caller.Name, err = i.p.id.Peer(tc.ConnectionState())
	}
	if err != nil {
		first.dropUpstream()
		i.p.conns.handshakeFailed.Opened()
		i.p.conns.handshakeFailed.Closed("handshake", 0, 0)
		i.p.log.Info("mTLS handshake failed", zap.Stringer("peer", i.lc.Peer), zap.Error(err))
		_ = tc.Close()
		return
	}
	i.caller.Verified = true
	first.client, first.peeked = tc, nil
	if i.declared && !clientFirst(i.protocol) {
		i.serveOpaque(ctx, first)
		return
	}
	first.dropUpstream()
	inner, err := i.p.peekInside(ctx, tc, i)
	if err != nil {
		_ = tc.Close()
		return
	}
	i.servePlain(ctx, soft, tc, inner)
}

// peekInside hears the first bytes of a decrypted stream. A caller that says
// nothing is given time where HTTP is declared; elsewhere the app may be the
// one to speak first.
func (p *Proxy) peekInside(ctx context.Context, tc *tls.Conn, i *inbound) (*firstBytes, error) {
	if clientFirst(i.protocol) {
		found, c, err := detect.Peek(ctx, tc, detect.Config{Deadline: time.Now().Add(idleLimit)})
		f := &firstBytes{found: found, cancelDial: func() {}, stopRead: func() {}}
		f.client, f.peeked = c.Unwrap()
		if err == nil && len(f.peeked) == 0 {
			err = errors.New("the caller said nothing")
		}
		return f, err
	}
	if !p.guard.Load().Authorize(i.caller, "").Allow {
		return p.listenBoth(ctx, tc, nil)
	}
	return p.listenBoth(ctx, tc, i.dial)
}

// servePlain serves decrypted or plain bytes: by request where they are
// HTTP/1.1, by connection otherwise.
func (i *inbound) servePlain(ctx, soft context.Context, c net.Conn, first *firstBytes) {
	i.p.metrics.Detected(outcomeWord(first.found))
	if byRequest(i.protocol, i.declared, first.found) {
		first.dropUpstream()
		i.serveHTTP(ctx, soft, c, first.peeked)
		return
	}
	i.serveOpaque(ctx, first)
}

// serveOpaque decides once for the connection, then carries it; a later change
// of policy cuts it.
func (i *inbound) serveOpaque(ctx context.Context, first *firstBytes) {
	started := time.Now()
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
		reset(i.lc.TCPConn)
		return
	}
	up, err := i.upstream(ctx, first)
	if err != nil {
		m.Closed("app-unavailable", 0, 0)
		i.p.log.Info("the app does not answer", zap.Stringer("address", i.dst), zap.Error(err))
		i.p.logConn(telemetry.Inbound, i.lc, i.p.cfg.Service.String(), i.dst.String(), "app-unavailable", started, relay.Result{})
		reset(i.lc.TCPConn)
		return
	}
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	live := i.p.live.add(i.caller, cut)
	defer i.p.live.remove(live)
	res := relay.Run(ctx, first.client, up, relay.Config{FromClient: first.peeked, FromUpstream: first.fromUpstream, HalfClosedTimeout: halfClosed})
	m.Closed(res.Reason.String(), res.ToUpstream, res.ToClient)
	i.p.logConn(telemetry.Inbound, i.lc, i.p.cfg.Service.String(), i.dst.String(), res.Reason.String(), started, res)
}

// upstream is the connection to the app: dialled before, or now.
func (i *inbound) upstream(ctx context.Context, first *firstBytes) (net.Conn, error) {
	if first.dialed != nil {
		if up, err := first.takeUpstream(); err == nil {
			return up, nil
		}
		first.dialed, first.fromUpstream = nil, nil
	}
	return i.dial(ctx)
}

// deny counts and logs a refused call.
func (i *inbound) deny(word string) {
	i.p.ownMetrics().Denied(word)
	i.p.log.Info("denied", zap.String("caller", source(i.caller, i.lc.Peer)), zap.String("reason", word))
}

// serveHTTP runs the HTTP engine and, after an upgrade, the relay.
func (i *inbound) serveHTTP(ctx, soft context.Context, c net.Conn, peeked []byte) {
	m := i.p.conns.inboundHTTP
	m.Opened()
	r := &i.requests
	r.init(ctx, i)
	err := h1.Serve(soft, c, peeked, &i.p.h1, r.serve)
	reason := "eof"
	var in, out int64
	if errors.Is(err, h1.ErrUpgraded) {
		rctx, cut := context.WithCancel(ctx)
		live := i.p.live.add(i.caller, cut)
		res := relay.Run(rctx, r.upgraded.client, r.upgraded.upstream, relay.Config{HalfClosedTimeout: halfClosed})
		i.p.live.remove(live)
		cut()
		reason, in, out = res.Reason.String(), res.ToUpstream, res.ToClient
	} else if err != nil {
		reason = "failed"
		i.p.log.Debug("inbound connection", zap.Stringer("peer", i.lc.Peer), zap.Error(err))
	}
	m.Closed(reason, in, out)
}

// replay gives bytes that were read before, then the connection's.
type replay struct {
	*net.TCPConn
	unread []byte
}

// Read implements net.Conn.
func (r *replay) Read(b []byte) (int, error) {
	if len(r.unread) == 0 {
		return r.TCPConn.Read(b)
	}
	n := copy(b, r.unread)
	r.unread = r.unread[n:]
	return n, nil
}

// liveConns are the connections that policy is asked about again when it
// changes.
type liveConns struct {
	mu    sync.Mutex // guards what follows
	conns map[*liveConn]struct{}
}

type liveConn struct {
	caller policy.Caller
	cut    context.CancelFunc
}

func (l *liveConns) add(caller policy.Caller, cut context.CancelFunc) *liveConn {
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
