package redirect

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// dns asks an address that nobody has.
func (v *verifier) dns() {
	if !v.cfg.DNS {
		return
	}
	to, ok := v.elsewhere()
	if !ok { // ignored ranges are captured all the same
		to = map[bool]netip.Addr{false: netip.AddrFrom4([4]byte{192, 0, 2, 1}), true: netip.MustParseAddr("2001:db8::1")}[v.f.v6]
	}
	server := netip.AddrPortFrom(to, 53)
	v.tcpIfRouted(v.name("DNS over TCP"), server, v.loopback(v.cfg.DNSPort))
	v.udp(v.name("DNS over UDP"), server)
}

// proxyPatience is how long a proxy may take to find that none of its resolvers
// answers, and to say so.
const proxyPatience = 6 * time.Second

// rootQuery asks for the name servers of the root: the shortest question.
var rootQuery = []byte{0x77, 0x65, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1}

func (v *verifier) udp(name string, server netip.AddrPort) {
	l, err := net.ListenUDP(v.network("udp"), net.UDPAddrFromAddrPort(v.loopback(v.cfg.DNSPort)))
	busy := errors.Is(err, unix.EADDRINUSE)
	if err != nil && !busy {
		v.report.add(name, Skipped, "", "cannot listen on port %d: %v", v.cfg.DNSPort, err)
		return
	}
	if l != nil {
		defer l.Close()
	}
	c, err := net.DialUDP(v.network("udp"), nil, net.UDPAddrFromAddrPort(server))
	if errors.Is(err, unix.ENETUNREACH) {
		v.report.add(name, Skipped, "", "no route to %s, so nothing leaves", server)
		return
	}
	if err == nil {
		defer c.Close()
		patience := verifyPatience
		if busy {
			patience = proxyPatience
		}
		err = v.askUDP(c, l, patience)
	}
	switch {
	case err != nil && busy:
		v.report.add(name, Failed, todoProxy, "port %d is in use, but nothing answers a query to %s: %v", v.cfg.DNSPort, server, err)
	case err != nil:
		v.report.add(name, Failed, todoApply, "a query to %s and its answer did not go by port %d: %v", server, v.cfg.DNSPort, err)
	case busy:
		v.report.add(name, OK, "", "port %d is in use, and something answers for %s", v.cfg.DNSPort, server)
	default:
		v.report.add(name, OK, "", "a query to %s arrived at port %d, and the answer came back", server, v.cfg.DNSPort)
	}
}

// askUDP sends a query, answers it where l is ours, and waits for the answer.
func (v *verifier) askUDP(c, l *net.UDPConn, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	if _, err := c.Write(rootQuery); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	if l != nil {
		_ = l.SetDeadline(deadline)
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		if _, err := l.WriteToUDPAddrPort(buf[:n], from); err != nil {
			return err
		}
	}
	_ = c.SetDeadline(deadline)
	_, err := c.Read(buf)
	return err
}
