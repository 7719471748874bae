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
	// OriginalDst is where the client was going; the connection's own address
	// when not Redirected. An IPv4 address is never in its mapped IPv6 form, here
	// and in Peer.
	OriginalDst netip.AddrPort
	// Redirected: OriginalDst is known and differs from the connection's own address.
	Redirected bool
	// OriginalDstErr is why the original destination is not known, nil if it is
	// or was not asked for.
	OriginalDstErr error
}

var _ syscall.Conn = (*Conn)(nil) // for redirect.OriginalDst

// Peer is who called.
func (c *Conn) Peer() netip.AddrPort { return c.Remote() }

// describe asks where the connection was going.
func (c *Conn) describe(originalDst func(syscall.Conn) (netip.AddrPort, error)) {
	if originalDst == nil {
		c.OriginalDst = c.Local()
		return
	}
	at := &asked{Conn: c, local: c.Local()}
	dst, err := originalDst(at)
	if err != nil {
		c.OriginalDst, c.OriginalDstErr = at.local, err
		return
	}
	c.OriginalDst = unmapped(dst)
	c.Redirected = withoutZone(c.OriginalDst) != withoutZone(at.local)
}

// asked is a connection that remembers its own address while it is asked about.
type asked struct {
	*Conn
	local netip.AddrPort
}

// Local is the connection's own address.
func (a *asked) Local() netip.AddrPort { return a.local }

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
