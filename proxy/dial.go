package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/identity"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/secure"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// Control prepares a socket before it connects, as net.Dialer's Control does:
// here so that the namespace's redirection leaves the proxy's own alone.
type Control func(network, address string, c syscall.RawConn) error

// dialer makes such sockets.
type dialer struct{ control Control }

// Under conntrack's 60 s of close_wait, so that a half-closed connection's
// entry is not dropped while one side still speaks.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// DialContext is net.Dialer's.
func (d *dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	nd := net.Dialer{Control: d.control, KeepAliveConfig: keepAlive}
	return nd.DialContext(ctx, network, addr)
}

// check tells at the start, not at the first connection, that sockets cannot be
// prepared.
func (d *dialer) check() error {
	if d.control == nil {
		return nil
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.SyscallConn()
	if err == nil {
		err = d.control("udp4", "", raw)
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: the proxy needs CAP_NET_RAW (before Linux 5.17 CAP_NET_ADMIN) and nothing else. Give it with `AmbientCapabilities=CAP_NET_RAW` in a systemd unit, `setpriv --inh-caps +net_raw --ambient-caps +net_raw`, `setcap cap_net_raw+ep` on the program's file, or `capabilities: add: [NET_RAW]` of a container; or do without: --mark none, under the uid given to weir-init --proxy-uid", err)
	}
	return err
}

// handshakeError is a failure to agree on TLS with a workload, or with a server
// outside the mesh, after the network had connected.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "TLS handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// onLoop is the dialer for connections on a loop.
func (d *dialer) onLoop() loop.Dialer {
	ld := loop.Dialer{KeepAlive: &keepAlive}
	if d.control != nil {
		ld.Control = func(fd int, to netip.AddrPort) error {
			network := "tcp4"
			if to.Addr().Is6() {
				network = "tcp6"
			}
			return d.control(network, "", loop.Raw(fd))
		}
	}
	return ld
}

// dialEndpoint connects to an endpoint: with mTLS if a proxy is beside it and
// policy does not say otherwise. The deadline, if it is not zero, and the
// proxy's limit bound dial and handshake.
func (p *Proxy) dialEndpoint(l *loop.Loop, d *destination, e *endpoint, deadline time.Time) (loop.Stream, error) {
	return p.dialAs(l, d, e, e.origin, deadline)
}

// dialAs does it with TLS begun for the app, or none.
func (p *Proxy) dialAs(l *loop.Loop, d *destination, e *endpoint, begin *origin, deadline time.Time) (loop.Stream, error) {
	limit := l.Now().Add(p.cfg.ConnectLimit)
	if !deadline.IsZero() && deadline.Before(limit) {
		limit = deadline
	}
	if err := p.admit(l, d, limit); err != nil {
		return nil, err
	}
	c, err := l.Dial(p.meshDialer, e.addr, limit)
	if err != nil {
		d.gates.conns.Leave()
		return nil, err
	}
	c.SetOwner(d.gates)
	var tc *secure.Conn
	switch {
	case e.mtls:
		tc = secure.Client(c, p.id.ClientTLSAt(d.svc.Name, e.at))
	case begin != nil:
		tc = secure.Client(c, begin.cfg)
	default:
		return c, nil
	}
	err = tc.Handshake(limit)
	if err == nil && e.mtls {
		err = p.keep(tc, telemetry.Outbound)
	}
	if err != nil {
		_ = tc.Close()
		p.refusedPeer(telemetry.Outbound, err)
		if e.mtls {
			p.metrics.HandshakeFailed(telemetry.Client, identity.FailureReason(err))
		} else { // mostly a wrong ca or server_name, which nobody would find in a 502
			p.log.Info("TLS to a host outside the mesh failed", zap.Stringer("service", d.svc.Name), zap.String("host", e.host), zap.Error(err))
		}
		return nil, &handshakeError{err}
	}
	if e.mtls {
		p.metrics.HandshakeDone(telemetry.Client, tc.ConnectionState().DidResume)
	}
	return tc, nil
}

// dialApp connects to the local app at the address its caller, peer, asked for. An app
// that listens on loopback only is reached there, but only at a port that was
// declared as the app's: other loopback ports are not for callers from outside.
func (p *Proxy) dialApp(l *loop.Loop, peer, dst netip.AddrPort) (*loop.Conn, error) {
	limit := l.Now().Add(p.cfg.ConnectLimit)
	c, err := p.cfg.AppSource.dial(l, p.appDialer, callerAt{peer, dst}, dst, limit)
	if err == nil || !errors.Is(err, unix.ECONNREFUSED) || !p.isAppPort(dst.Port()) || dst.Addr().IsLoopback() {
		return c, err
	}
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if c, lerr := p.cfg.AppSource.dial(l, p.appDialer, callerAt{peer, dst}, netip.AddrPortFrom(loopback, dst.Port()), limit); lerr == nil {
			return c, nil
		}
	}
	return nil, err
}

// isAppPort tells whether a port was declared with the proxy or registered for
// its service at this host.
func (p *Proxy) isAppPort(port uint16) bool {
	for _, a := range p.cfg.AppPorts {
		if a.Port == port {
			return true
		}
	}
	_, ok := p.appProtocol(port)
	return ok
}

// appProtocol is the protocol declared for a port of the local app.
func (p *Proxy) appProtocol(port uint16) (string, bool) {
	for _, a := range p.cfg.AppPorts {
		if a.Port == port {
			return a.Protocol, true
		}
	}
	if d := p.dests.Load().byName[p.cfg.Service]; d != nil {
		for _, t := range d.svc.Endpoints {
			if t.Port == int(port) && p.local[t.Addr().Addr()] {
				return t.Protocol, true
			}
		}
	}
	return "", false
}

// clientFirst tells whether with a declared protocol it is the client who
// speaks first, so that nothing is to be heard of the server before.
func clientFirst(protocol string) bool {
	switch protocol {
	case "http", "http2", "grpc", "tls":
		return true
	}
	return false
}

// opaque tells whether what is said with a declared protocol is not looked at.
func opaque(protocol string) bool { return protocol == "tls" || !clientFirst(protocol) }

// carriage is how a connection is carried.
type carriage uint8

const (
	asBytes    carriage = iota
	asRequests          // of HTTP/1.1
	asStreams           // of HTTP/2
)

// carriageOf tells how to carry a connection by what is declared for its port and by
// its first bytes. Where HTTP is declared everything is read as HTTP, in the version
// that the client speaks, except the app's own TLS: bytes that only look like
// something else would carry forged headers past the proxy.
func carriageOf(protocol string, declared bool, found detect.Result) carriage {
	if declared && protocol != "http" && protocol != "http2" && protocol != "grpc" {
		return asBytes
	}
	switch {
	case found.Kind == detect.HTTP2:
		return asStreams
	case found.Kind == detect.HTTP1, declared && protocol == "http" && found.Kind != detect.TLS:
		return asRequests
	case declared && found.Kind != detect.TLS:
		return asStreams
	}
	return asBytes
}
