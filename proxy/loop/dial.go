package loop

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Socket options of a connection that is dialled.
type Dialer struct {
	// Control prepares the socket before it connects, as net.Dialer's does but
	// with the descriptor itself; nil does nothing.
	Control func(fd int, to netip.AddrPort) error
	// KeepAlive is set on the socket; its zero value sets nothing.
	KeepAlive net.KeepAliveConfig
}

// Dial connects, waiting until deadline at most; zero is no limit. TCP_NODELAY
// is set. The error is a *net.OpError.
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
	family, sa := sockaddr(to)
	if sa == nil {
		return nil, errNotTCP
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := d.prepare(fd, to); err != nil {
		unix.Close(fd)
		return nil, err
	}
	err = unix.Connect(fd, sa)
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	c := l.newConn(fd)
	c.remote = to
	if err == nil {
		return c, nil
	}
	if err := c.connected(deadline); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// connected waits for the handshake's end.
func (c *Conn) connected(deadline time.Time) error {
	c.writeBy = c.deadline(deadline)
	err := c.WaitWrite()
	if err != nil {
		return err
	}
	c.writeBy = noDeadline
	if !c.ended { // an error or a hang-up would have said so
		return nil
	}
	code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if code != 0 {
		return os.NewSyscallError("connect", unix.Errno(code))
	}
	return nil
}

func (d *Dialer) prepare(fd int, to netip.AddrPort) error {
	if d.Control != nil {
		if err := d.Control(fd, to); err != nil {
			return err
		}
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if !d.KeepAlive.Enable {
		return nil
	}
	return setKeepAlive(fd, d.KeepAlive)
}

func setKeepAlive(fd int, k net.KeepAliveConfig) error {
	for _, o := range [...]struct{ level, option, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(k.Idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(k.Interval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, k.Count},
	} {
		if o.value <= 0 {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			return fmt.Errorf("set keep-alive: %w", err)
		}
	}
	return nil
}

func sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	ip := a.Addr().Unmap()
	switch {
	case ip.Is4():
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	case ip.Is6():
		s := &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16()}
		if z := ip.Zone(); z != "" {
			if ifi, err := net.InterfaceByName(z); err == nil {
				s.ZoneId = uint32(ifi.Index)
			}
		}
		return unix.AF_INET6, s
	}
	return 0, nil
}
