package listen

import (
	"net"
	"net/netip"
)

// Conn is one accepted connection. It is closed when its handler returns.
type Conn struct {
	*net.TCPConn
	// Peer and Local are the two ends as the socket has them. An IPv4 address
	// is never in its mapped IPv6 form, here and in OriginalDst.
	Peer, Local netip.AddrPort
	// OriginalDst is where the client was going; Local when not Redirected.
	OriginalDst netip.AddrPort
	// Redirected: OriginalDst is known and differs from Local.
	Redirected bool
	// OriginalDstErr is why the original destination is not known, nil if it is
	// or was not asked for.
	OriginalDstErr error
	// Draining is closed when the listener begins to drain: a handler that can
	// end its connection at a good moment then does.
	Draining <-chan struct{}
}

// Unwrap returns the bare socket, for a relay that splices. No byte is unread.
func (c *Conn) Unwrap() (net.Conn, []byte) { return c.TCPConn, nil }

// describe fills in the addresses.
func (c *Conn) describe(originalDst func(*net.TCPConn) (netip.AddrPort, error)) {
	c.Peer, c.Local = addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	c.OriginalDst = c.Local
	if originalDst == nil {
		return
	}
	dst, err := originalDst(c.TCPConn)
	if err != nil {
		c.OriginalDstErr = err
		return
	}
	c.OriginalDst = unmapped(dst)
	c.Redirected = withoutZone(c.OriginalDst) != withoutZone(c.Local)
}

// reset closes the connection in a way that its peer does not take for the end.
func (c *Conn) reset() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || tcp == nil {
		return netip.AddrPort{}
	}
	return unmapped(tcp.AddrPort())
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// withoutZone: one of the two sources may know the interface, the other not.
func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
