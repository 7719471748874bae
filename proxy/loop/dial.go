package loop

import (
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Dialer says how sockets are made that connect.
type Dialer struct {
	// Control prepares the socket before it connects, as net.Dialer's does but
	// with the descriptor itself; nil does nothing.
	Control func(fd int, to netip.AddrPort) error
	// KeepAlive is set once the connection has lasted for 10 s or so; nil sets
	// nothing.
	KeepAlive *net.KeepAliveConfig
}

// Dial connects, waiting until deadline at most; zero is no limit. TCP_NODELAY
// is set, and SO_OOBINLINE: else a byte sent as urgent data would be missing from
// the stream. The error is a *net.OpError.
func (l *Loop) Dial(d Dialer, to netip.AddrPort, deadline time.Time) (*Conn, error) {
	c, err := l.dial(d, to, deadline)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

func (l *Loop) dial(d Dialer, to netip.AddrPort, deadline time.Time) (*Conn, error) {
	if l.closing {
		return nil, net.ErrClosed
	}
	var sa sockaddr
	family, ok := sa.set(to)
	if !ok {
		return nil, errNotTCP
	}
	fd, errno := rawSocket(family)
	if errno != 0 {
		return nil, os.NewSyscallError("socket", errno)
	}
	if d.Control != nil {
		if err := d.Control(fd, to); err != nil {
			_ = rawClose(fd)
			return nil, err
		}
	}
	if errno = rawSetInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); errno == 0 {
		errno = rawSetInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	}
	if errno == 0 {
		errno = rawConnect(fd, &sa)
	}
	if errno != 0 && errno != unix.EINPROGRESS {
		_ = rawClose(fd)
		return nil, os.NewSyscallError("connect", errno)
	}
	c := new(Conn)
	l.newConn(c, fd)
	if errno == unix.EINPROGRESS {
		if err := c.connected(deadline); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	if d.KeepAlive != nil {
		c.keepLater(d.KeepAlive)
	}
	return c, nil
}

// connected waits for the handshake's end.
func (c *Conn) connected(deadline time.Time) error {
	if err := c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if err := c.WaitWrite(); err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Time{}) // not closed: WaitWrite would have said so
	if !c.is(ended) {                   // an error or a hang-up would have said so
		return nil
	}
	code, err := unix.GetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if code != 0 {
		return os.NewSyscallError("connect", unix.Errno(code))
	}
	return nil
}

// keepAfter is how long a connection must have lasted, or twice that, before it
// gets its keep-alive: four calls that most connections never need.
const keepAfter = 10 * time.Second

// keepLater notes which keep-alive c is to get. Programs have one or two.
func (c *Conn) keepLater(k *net.KeepAliveConfig) {
	i := slices.Index(c.l.keeps, k)
	if i < 0 {
		if i = len(c.l.keeps); i == math.MaxUint8 {
			setKeepAlive(int(c.fd), k) // no number is left
			return
		}
		c.l.keeps = append(c.l.keeps, k)
	}
	c.keep = uint8(i + 1)
	c.l.keepLater()
}

func (l *Loop) keepLater() {
	if l.keeping {
		return
	}
	l.keeping = true
	var newer int32 // of a generation after this one
	var look func()
	look = func() {
		left := false
		l.Each(func(c *Conn) {
			switch {
			case c.keep == 0:
			case c.generation-newer > 0:
				left = true
			default:
				setKeepAlive(int(c.fd), l.keeps[c.keep-1])
				c.keep = 0
			}
		})
		newer = l.generation
		if l.keeping = left && !l.closing; l.keeping {
			l.AfterFunc(keepAfter, look)
		}
	}
	newer = l.generation - 1
	l.AfterFunc(keepAfter, look)
}

// setKeepAlive does what it can: a connection works without.
func setKeepAlive(fd int, k *net.KeepAliveConfig) {
	if !k.Enable {
		return
	}
	for _, o := range [...]struct{ level, option, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(k.Idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(k.Interval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, k.Count},
	} {
		if o.value > 0 {
			_ = rawSetInt(fd, o.level, o.option, o.value)
		}
	}
}
