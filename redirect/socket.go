package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST alike, of
// linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h.
const soOriginalDst = 80

// ErrNotRedirected is what OriginalDst returns for a connection that came to
// this socket's own address.
var ErrNotRedirected = errors.New("redirect: the connection was not redirected")

// OriginalDst is where an accepted TCP connection was going before it was
// redirected here. IPv4 on a dual-stack listener gives an IPv4 address. A
// connection that came here by itself gives ErrNotRedirected. A c that knows its
// own address says so by a method Local() netip.AddrPort, never in mapped form;
// else the kernel is asked. One with a method FD() int is asked without SyscallConn,
// which costs three allocations.
func OriginalDst(c syscall.Conn) (netip.AddrPort, error) {
	var local netip.AddrPort
	if known, ok := c.(interface{ Local() netip.AddrPort }); ok {
		local = known.Local()
	}
	if bare, ok := c.(descriptor); ok {
		return originalDst(bare.FD(), local)
	}
	return originalDstOf(c, local)
}

// descriptor is a socket that gives its descriptor without a callback.
type descriptor interface{ FD() int }

func originalDstOf(c syscall.Conn, local netip.AddrPort) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("redirect: original destination: %w", err)
	}
	var dst netip.AddrPort
	var inner error
	if err := raw.Control(func(fd uintptr) { dst, inner = originalDst(int(fd), local) }); err != nil {
		return netip.AddrPort{}, fmt.Errorf("redirect: original destination: %w", err)
	}
	return dst, inner
}

// originalDst asks for the socket's own address unless it is known.
func originalDst(fd int, local netip.AddrPort) (netip.AddrPort, error) {
	v6 := local.Addr().Is6()
	if !local.IsValid() {
		var err error
		if local, v6, err = localAddr(fd); err != nil {
			return netip.AddrPort{}, fmt.Errorf("redirect: original destination: own address: %w", err)
		}
	}
	dst, err := conntrackDst(fd, v6)
	// ENOENT: conntrack does not know the connection. ENOPROTOOPT: there is no conntrack.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) || (err == nil && dst == local) {
		return netip.AddrPort{}, ErrNotRedirected
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("redirect: original destination: getsockopt: %w", err)
	}
	return dst, nil
}

// localAddr also says whether the connection itself, not only the socket, is IPv6.
func localAddr(fd int) (netip.AddrPort, bool, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, false, err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), false, nil
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr)
		if a.Is4In6() {
			return netip.AddrPortFrom(a.Unmap(), uint16(sa.Port)), false, nil
		}
		return netip.AddrPortFrom(withZone(a, sa.ZoneId), uint16(sa.Port)), true, nil
	}
	return netip.AddrPort{}, false, fmt.Errorf("%T is not an address of TCP", sa)
}

// conntrackDst asks by structures that x/sys has for other options and that are
// large enough for an address.
func conntrackDst(fd int, v6 bool) (netip.AddrPort, error) {
	if !v6 {
		m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
		if err != nil {
			return netip.AddrPort{}, err
		}
		b := m.Multiaddr // sockaddr_in: family, port, address, as on the wire
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
	}
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	// The field holds network order whatever the machine's own order is.
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, m.Addr.Port))
	return netip.AddrPortFrom(withZone(netip.AddrFrom16(m.Addr.Addr), m.Addr.Scope_id), port), nil
}

func withZone(a netip.Addr, zone uint32) netip.Addr {
	if zone == 0 {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(zone), 10))
}

// UpstreamControl is for net.Dialer.Control and net.ListenConfig.Control of the
// proxy: connections it makes to others then pass the rules of a plan of cfg.
func UpstreamControl(cfg Config) func(network, address string, c syscall.RawConn) error {
	return passControl(cfg, cfg.Mark, upstreamDSCP)
}

// InboundControl is UpstreamControl for connections that hand inbound traffic on
// to the proxy's own app.
func InboundControl(cfg Config) func(network, address string, c syscall.RawConn) error {
	return passControl(cfg, cfg.InboundMark, inboundDSCP)
}

func passControl(cfg Config, mark uint32, dscp int) func(network, address string, c syscall.RawConn) error {
	set := func(fd int) error {
		if cfg.ProxyUID == nil {
			return setMark(fd, mark)
		}
		return setDSCP(fd, dscp)
	}
	return func(_, _ string, c syscall.RawConn) error {
		if bare, ok := c.(descriptor); ok {
			return set(bare.FD())
		}
		return onDescriptor(c, set)
	}
}

func onDescriptor(c syscall.RawConn, set func(fd int) error) error {
	var inner error
	err := c.Control(func(fd uintptr) { inner = set(int(fd)) })
	return errors.Join(err, inner)
}

func setMark(fd int, mark uint32) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("redirect: set the socket mark: %w (CAP_NET_RAW or CAP_NET_ADMIN sets marks)", err)
	}
	return nil
}

// setDSCP sets the upper six bits of the field; the lower two are ECN's.
func setDSCP(fd, dscp int) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err == nil && family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TCLASS, dscp<<2)
	}
	if err == nil { // an IPv6 socket may carry IPv4 too
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TOS, dscp<<2)
	}
	if err != nil {
		return fmt.Errorf("redirect: set the code point: %w", err)
	}
	return nil
}
