package listen

import (
	"net/netip"
	"syscall"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Conn is an accepted connection and what is known of it.
type Conn struct {
	loop.Conn
	shard   *shard
	peer    place
	dst     place
	unknown *error // why dst is not known; nil if it is, or was not asked for
}

var _ syscall.Conn = (*Conn)(nil) // for redirect.OriginalDst

// Listener is who accepted the connection.
func (c *Conn) Listener() *Listener { return c.shard.l }

// Shard is the number of the connection's loop among those of Run.
func (c *Conn) Shard() int { return c.shard.index }

// Peer is who called, also after the end. An IPv4 address is never in its mapped
// IPv6 form, here and in OriginalDst.
func (c *Conn) Peer() netip.AddrPort { return c.peer.addrPort() }

// OriginalDst is where the client was going; the connection's own address when
// not Redirected.
func (c *Conn) OriginalDst() netip.AddrPort { return c.dst.addrPort() }

// Redirected tells that OriginalDst is known and differs from the connection's
// own address.
func (c *Conn) Redirected() bool { return c.dst.redirected }

// OriginalDstErr is why the original destination is not known, nil if it is or
// was not asked for.
func (c *Conn) OriginalDstErr() error {
	if c.unknown == nil {
		return nil
	}
	return *c.unknown
}

// describe asks where the connection was going.
func (c *Conn) describe(originalDst func(syscall.Conn) (netip.AddrPort, error)) {
	local := c.Local()
	c.dst = placeOf(local)
	if originalDst == nil {
		return
	}
	at := &c.shard.asked
	at.Conn, at.local = c, local
	dst, err := originalDst(at)
	at.Conn = nil
	if err != nil {
		c.unknown = &err
		return
	}
	c.dst = placeOf(dst)
	c.dst.redirected = withoutZone(c.OriginalDst()) != withoutZone(local)
}

// asked is a connection that remembers its own address while it is asked about.
type asked struct {
	*Conn
	local netip.AddrPort
}

// Local is the connection's own address.
func (a *asked) Local() netip.AddrPort { return a.local }

// place is an address and a port in half the memory of a netip.AddrPort, if it is
// of IPv4: there are two for each connection.
type place struct {
	other      *netip.AddrPort // nil: of IPv4
	v4         [4]byte
	port       uint16
	redirected bool // of a destination: here it takes no room
}

func placeOf(a netip.AddrPort) place {
	if a = unmapped(a); a.Addr().Is4() {
		return place{v4: a.Addr().As4(), port: a.Port()}
	}
	other := a // else the parameter itself would be on the heap, of IPv4 too
	return place{other: &other}
}

func (p *place) addrPort() netip.AddrPort {
	if p.other != nil {
		return *p.other
	}
	return netip.AddrPortFrom(netip.AddrFrom4(p.v4), p.port)
}

func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
