package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// AppSource says what the app sees as the address of its callers. The zero value
// is an address of this namespace's own, as the kernel chooses it.
type AppSource struct {
	// Client is the caller's own address, with another port. The rules of the
	// namespace must bring the app's answers back (redirect.Config.PreserveSource).
	// An app that listens on loopback only sees loopback's.
	Client bool
	// Fixed is one address for all, like 127.0.0.6, by which the app or a firewall
	// tells what came through the proxy.
	Fixed netip.Addr
	// ProxyProtocol tells the caller's address and port by a header before the
	// first byte (PROXY protocol, version 2), which the app must expect.
	ProxyProtocol bool
}

// ParseAppSource reads "own", "client", "proxy-protocol" or an address.
func ParseAppSource(s string) (AppSource, error) {
	switch s {
	case "own":
		return AppSource{}, nil
	case "client":
		return AppSource{Client: true}, nil
	case "proxy-protocol":
		return AppSource{ProxyProtocol: true}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
		return AppSource{}, fmt.Errorf("%q: want own, client, proxy-protocol or an address like 127.0.0.6", s)
	}
	return AppSource{Fixed: a}, nil
}

// check tells at the start that the kernel does not let the proxy do it.
func (s AppSource) check() error {
	if !s.Client && !s.Fixed.IsValid() {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return fmt.Errorf("be the source of connections to the app: %w; the proxy needs CAP_NET_ADMIN or CAP_NET_RAW, or app-source own or proxy-protocol", err)
	}
	return nil
}

// perCaller is whose connections to the app may be used again for whom: those of
// the same caller only, as far as the app is told of callers.
func (s AppSource) perCaller(peer netip.AddrPort) netip.AddrPort {
	switch {
	case s.ProxyProtocol:
		return peer
	case s.Client:
		return netip.AddrPortFrom(peer.Addr(), 0)
	}
	return netip.AddrPort{}
}

// callerAt is who connects, and where to.
type callerAt struct{ peer, dst netip.AddrPort }

// dial connects to the app, which is at to, for a caller.
func (s AppSource) dial(l *loop.Loop, d loop.Dialer, who callerAt, to netip.AddrPort, limit time.Time) (*loop.Conn, error) {
	from := s.Fixed
	if s.Client && !to.Addr().IsLoopback() { // the kernel routes no answer from 127.0.0.1 to an address elsewhere
		from = who.peer.Addr()
	}
	if from.IsValid() && from.Is4() == to.Addr().Is4() {
		control := d.Control
		d.Control = func(fd int, to netip.AddrPort) error {
			if control != nil {
				if err := control(fd, to); err != nil {
					return err
				}
			}
			return bindTo(fd, from)
		}
	}
	c, err := l.Dial(d, to, limit)
	if err != nil || !s.ProxyProtocol {
		return c, err
	}
	if _, err := c.Write(proxyHeader(who.peer, who.dst)); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// bindTo has a socket connect from an address, its own or not; the port is chosen
// when it connects, by both ends.
func bindTo(fd int, from netip.Addr) error {
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(from.AsSlice())}
	level, transparent := unix.SOL_IP, unix.IP_TRANSPARENT
	if from.Is6() {
		sa = &unix.SockaddrInet6{Addr: from.As16()}
		level, transparent = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	return errors.Join(
		unix.SetsockoptInt(fd, level, transparent, 1),
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.Bind(fd, sa),
	)
}

// proxyHeader is the header of the PROXY protocol, version 2 (haproxy.org,
// proxy-protocol.txt, section 2.2): a caller by TCP, without extensions.
func proxyHeader(from, to netip.AddrPort) []byte {
	const version2Proxy, tcp4, tcp6 = 0x21, 0x11, 0x21
	b := append(make([]byte, 0, 52), "\r\n\r\n\x00\r\nQUIT\n"...)
	family := byte(tcp4)
	if from.Addr().Is6() {
		family = tcp6
	}
	b = append(b, version2Proxy, family)
	b = binary.BigEndian.AppendUint16(b, uint16(from.Addr().BitLen()/8*2+4))
	b = append(b, from.Addr().AsSlice()...)
	b = append(b, to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	return binary.BigEndian.AppendUint16(b, to.Port())
}
