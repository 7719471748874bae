package loop

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// unread is how many bytes the local program at the other end of c has not read
// yet, as the kernel charges its socket for them; 0 where that cannot be known.
//
// The kernel tells about any TCP socket of the network namespace, whoever asks,
// by sock_diag(7). It finds a socket by its two addresses. The other end's are
// ours turned round, unless the rules redirected it to us: then it believes to be
// connected to where it wanted to go.
func (l *Loop) unread(c *Conn) int {
	if l.diag == 0 {
		l.diag = -1 // not allowed, as in some containers: asked once
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
		if err == nil {
			l.diag = fd
		}
	}
	if l.diag < 0 {
		return 0
	}
	remote := c.Remote()
	for _, to := range []netip.AddrPort{c.Local(), originalDst(int(c.fd), remote.Addr().Is6())} {
		if to.IsValid() {
			if n, ok := l.ask(remote, to); ok {
				return n
			}
		}
	}
	return 0
}

// Numbers of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	diagHeader       = 16 // struct nlmsghdr
	diagRequest      = 56 // struct inet_diag_req_v2
	diagAnswer       = 72 // struct inet_diag_msg
	diagSKMemInfo    = 7  // attribute: numbers, the first is rmem_alloc
)

// ask asks for the socket that is at one address and connected to another.
func (l *Loop) ask(at, to netip.AddrPort) (rmem int, ok bool) {
	var req [diagHeader + diagRequest]byte
	ne := binary.NativeEndian
	ne.PutUint32(req[0:], uint32(len(req)))
	ne.PutUint16(req[4:], sockDiagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST)
	b := req[diagHeader:]
	b[0], b[1], b[2] = unix.AF_INET, unix.IPPROTO_TCP, 1<<(diagSKMemInfo-1)
	if at.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	ne.PutUint32(b[4:], 1<<unix.BPF_TCP_ESTABLISHED|1<<unix.BPF_TCP_CLOSE_WAIT|1<<unix.BPF_TCP_FIN_WAIT1|1<<unix.BPF_TCP_FIN_WAIT2)
	binary.BigEndian.PutUint16(b[8:], at.Port())
	binary.BigEndian.PutUint16(b[10:], to.Port())
	copy(b[12:28], at.Addr().AsSlice())
	copy(b[28:44], to.Addr().AsSlice())
	for i := 48; i < 56; i++ {
		b[i] = 0xff // INET_DIAG_NOCOOKIE: whichever it is
	}
	if unix.Sendto(l.diag, req[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return 0, false
	}
	var answer [1024]byte
	n, err := unix.Read(l.diag, answer[:]) // the kernel has answered already
	if err != nil {
		return 0, false
	}
	return rmemOf(answer[:n])
}

// rmemOf reads the kernel's answer. An error, as for a socket that is not there, is not ok.
func rmemOf(b []byte) (rmem int, ok bool) {
	ne := binary.NativeEndian
	if len(b) < diagHeader+diagAnswer || ne.Uint16(b[4:]) != sockDiagByFamily {
		return 0, false
	}
	for b = b[diagHeader+diagAnswer:]; len(b) >= 4; {
		size, kind := int(ne.Uint16(b)), ne.Uint16(b[2:])
		if size < 4 || size > len(b) {
			return 0, false
		}
		if kind == diagSKMemInfo && size >= 8 {
			return int(ne.Uint32(b[4:])), true
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return 0, false
}

// originalDst is where a redirected connection was going, as conntrack knows; not
// valid for others. It is asked by structures that x/sys has for other options
// and that are large enough for an address.
func originalDst(fd int, v6 bool) netip.AddrPort {
	const soOriginalDst = 80 // SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
	if v6 {
		m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
		if err != nil {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, m.Addr.Port)))
	}
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}
	}
	b := m.Multiaddr // sockaddr_in: family, port, address, as on the wire
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
}
