package listen

import (
	"net/netip"
	"syscall"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Conn is an accepted connection and what is known of it.
type Conn struct {
	*loop.Conn
	Listener *Listener
	// Shard is the number of the connection's loop among those of Run.
	Shard int
	// Peer is who called. An IPv4 address is never in its mapped IPv6 form, here
	// and in OriginalDst.
	Peer netip.AddrPort
	// OriginalDst is where the client was going; the connection's own address
	// when not Redirected.
	OriginalDst netip.AddrPort
	// Redirected: OriginalDst is known and differs from the connection's own address.
	Redirected bool
	// OriginalDstErr is why the original destination is not known, nil if it is
	// or was not asked for.
	OriginalDstErr error
}

var _ syscall.Conn = (*Conn)(nil) // for redirect.OriginalDst

// describe asks where the connection was going.
func (c *Conn) describe(originalDst func(syscall.Conn) (netip.AddrPort, error)) {
	c.Peer = c.Remote()
	if originalDst == nil {
		c.OriginalDst = c.Local()
		return
	}
	dst, err := originalDst(c)
	if err != nil {
		c.OriginalDst, c.OriginalDstErr = c.Local(), err
		return
	}
	c.OriginalDst = unmapped(dst)
	c.Redirected = withoutZone(c.OriginalDst) != withoutZone(c.Local())
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
