package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/identity"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/secure"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// peers are the connections with other workloads, to be cut when one of those is
// revoked: by loop, and those of no loop.
type peers struct {
	groups map[*loop.Loop]*peerGroups // made before anything runs, never changed

	mu    sync.Mutex // guards what follows
	loose map[*looseConn]struct{}
}

// peerGroups are one loop's.
type peerGroups struct{ inbound, outbound secure.Group }

// looseConn is a connection of no loop, which leaves when it is closed.
type looseConn struct {
	*tls.Conn
	peers *peers
}

// Close implements net.Conn.
func (c *looseConn) Close() error {
	c.peers.mu.Lock()
	delete(c.peers.loose, c)
	c.peers.mu.Unlock()
	return c.Conn.Close()
}

// keep watches a connection whose handshake is over. What was revoked meanwhile is
// refused here: who revokes later finds it among the others.
func (p *Proxy) keep(c *secure.Conn, d telemetry.Direction) error {
	if g := p.peers.groups[c.Socket().Loop()]; g != nil {
		if d == telemetry.Inbound {
			c.Join(&g.inbound)
		} else {
			c.Join(&g.outbound)
		}
	}
	return p.id.Revoked(c.ConnectionState())
}

// keepLoose is keep for a connection of no loop.
func (p *Proxy) keepLoose(tc *tls.Conn) (net.Conn, error) {
	c := &looseConn{tc, &p.peers}
	p.peers.mu.Lock()
	if p.peers.loose == nil {
		p.peers.loose = map[*looseConn]struct{}{}
	}
	p.peers.loose[c] = struct{}{}
	p.peers.mu.Unlock()
	if err := p.id.Revoked(tc.ConnectionState()); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// refusedPeer counts a handshake that a revocation ended.
func (p *Proxy) refusedPeer(d telemetry.Direction, err error) {
	if errors.Is(err, identity.ErrRevoked) {
		p.metrics.Revoked(d, "handshake")
		p.log.Warn("a peer is refused", zap.String("direction", string(d)), zap.String("reason", "revoked"), zap.Error(err))
	}
}

// setRevoked takes what is trusted no more, and cuts the connections with it.
func (p *Proxy) setRevoked(list []policy.Revocation) {
	p.id.SetRevoked(list)
	if len(list) == 0 {
		return
	}
	for l, g := range p.peers.groups {
		l.Post(func() {
			g.inbound.Each(func(c *secure.Conn) { p.cutRevoked(c, c.ConnectionState(), telemetry.Inbound) })
			g.outbound.Each(func(c *secure.Conn) { p.cutRevoked(c, c.ConnectionState(), telemetry.Outbound) })
		})
	}
	p.peers.mu.Lock()
	var loose []*looseConn
	for c := range p.peers.loose {
		loose = append(loose, c)
	}
	p.peers.mu.Unlock()
	for _, c := range loose {
		p.cutRevoked(looseReset{c}, c.ConnectionState(), telemetry.Outbound)
	}
}

// looseReset cuts without close_notify, for which Close would wait.
type looseReset struct{ *looseConn }

func (c looseReset) Reset() error {
	if tcp, ok := c.NetConn().(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.NetConn().Close()
	return c.Close()
}

type peerConn interface {
	Reset() error
	RemoteAddr() net.Addr
}

// cutRevoked ends a connection whose peer is trusted no more.
func (p *Proxy) cutRevoked(c peerConn, cs tls.ConnectionState, d telemetry.Direction) {
	err := p.id.Revoked(cs)
	if err == nil {
		return
	}
	p.metrics.Revoked(d, "connection")
	p.log.Warn("a connection is cut", zap.String("direction", string(d)), zap.Stringer("peer", c.RemoteAddr()), zap.String("reason", "revoked"), zap.Error(err))
	_ = c.Reset()
}
