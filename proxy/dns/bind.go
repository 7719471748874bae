package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// udpSocket answers from the address that was asked. On the unspecified address
// the kernel would choose another, and the redirection, which knows the flow by
// its addresses, would not turn the answer back.
type udpSocket struct {
	conn *net.UDPConn
	addr netip.AddrPort
	any  bool // bound to the unspecified address
}

// sender is who asked, and where.
type sender struct {
	addr netip.AddrPort
	oob  []byte // the control message that names the address that was asked
}

func (s *Server) bind() error {
	if len(s.cfg.Addrs) == 0 {
		return errors.New("dns: no address is given")
	}
	for _, addr := range s.cfg.Addrs {
		a, err := netip.ParseAddrPort(addr)
		if err != nil {
			return fmt.Errorf("dns: address %q: %w", addr, err)
		}
		p, err := bindPair(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		if err != nil {
			return err
		}
		s.pairs = append(s.pairs, p)
	}
	return nil
}

// bindPair binds UDP and TCP to one port. A free port of one may be taken in
// the other, so port 0 gets some tries.
func bindPair(a netip.AddrPort) (pair, error) {
	for tries := 1; ; tries++ {
		p, err := tryPair(a)
		if err == nil || a.Port() != 0 || tries == 10 || !errors.Is(err, unix.EADDRINUSE) {
			return p, err
		}
	}
}

func tryPair(a netip.AddrPort) (pair, error) {
	family := "6"
	if a.Addr().Is4() {
		family = "4"
	}
	u := &udpSocket{any: a.Addr().IsUnspecified()}
	lc := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		if !u.any || network[:3] != "udp" {
			return nil
		}
		var serr error
		err := raw.Control(func(fd uintptr) { serr = wantDestination(int(fd), a.Addr().Is4()) })
		return errors.Join(err, serr)
	}}
	lc.SetMultipathTCP(false)
	udp, err := lc.ListenPacket(context.Background(), "udp"+family, a.String())
	if err != nil {
		return pair{}, bindError("udp", a, err)
	}
	u.conn = udp.(*net.UDPConn)
	bound := u.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	u.addr = netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())
	tcp, err := lc.Listen(context.Background(), "tcp"+family, u.addr.String())
	if err != nil {
		u.conn.Close()
		return pair{}, bindError("tcp", u.addr, err)
	}
	return pair{udp: u, tcp: tcp.(*net.TCPListener)}, nil
}

func bindError(network string, a netip.AddrPort, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("dns: %s %v is in use by another program: %w", network, a, err)
	}
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("dns: bind %s %v: %w: ports below net.ipv4.ip_unprivileged_port_start (1024) need CAP_NET_BIND_SERVICE; grant it, or take a higher port", network, a, err)
	}
	return fmt.Errorf("dns: bind %s %v: %w", network, a, err)
}

// wantDestination asks for the address that each datagram was sent to, ip(7)
// and ipv6(7).
func wantDestination(fd int, v4 bool) error {
	if v4 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
}

// read takes one datagram.
func (u *udpSocket) read(buf []byte) (n int, from sender, err error) {
	if !u.any {
		n, from.addr, err = u.conn.ReadFromUDPAddrPort(buf)
		return n, from, err
	}
	var oob [128]byte
	n, m, _, addr, err := u.conn.ReadMsgUDPAddrPort(buf, oob[:])
	from.addr = addr
	if err == nil {
		from.oob = answerFrom(oob[:m])
	}
	return n, from, err
}

// write answers; nil is no answer. Its error would be the client's loss, which
// asks again.
func (u *udpSocket) write(msg []byte, to sender) {
	if msg != nil {
		_, _, _ = u.conn.WriteMsgUDPAddrPort(msg, to.oob, to.addr)
	}
}

// answerFrom turns the control message of a query into that of its answer.
func answerFrom(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			// struct in_pktinfo: interface, local address, the address in the
			// header. To send, the second is the source.
			var info unix.Inet4Pktinfo
			copy(info.Spec_dst[:], m.Data[8:12])
			return unix.PktInfo4(&info)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			var info unix.Inet6Pktinfo
			copy(info.Addr[:], m.Data[:16])
			return unix.PktInfo6(&info)
		}
	}
	return nil
}
