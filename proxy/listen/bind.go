package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is one listening socket. It is not with the runtime's poller, which
// would be woken for every newcomer to no purpose.
type socket struct {
	fd   int // -1 once closed
	addr netip.AddrPort
	// inherits: its connections have their options from it. Those of a socket
	// that was handed over are set one by one.
	inherits bool
}

// take takes a socket out of the runtime's poller.
func take(ln *net.TCPListener, inherits bool) (socket, error) {
	s := socket{fd: -1, addr: addrPort(ln.Addr()), inherits: inherits}
	defer func() { _ = ln.Close() }()
	raw, err := ln.SyscallConn()
	if err != nil {
		return s, fmt.Errorf("listen: %s: %w", s.addr, err)
	}
	var derr error
	err = raw.Control(func(fd uintptr) { s.fd, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, derr); err != nil {
		return s, fmt.Errorf("listen: %s: %w", s.addr, err)
	}
	return s, nil
}

func (s *socket) dup() (int, error) {
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("listen: duplicate the socket of %s: %w", s.addr, err)
	}
	return fd, nil
}

func (s *socket) close() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

func (l *Listener) bind() error {
	var errs error
	for _, given := range l.cfg.Listeners { // all are ours, whatever fails
		s, err := take(given, false)
		errs = errors.Join(errs, err)
		l.sockets = append(l.sockets, s)
	}
	if errs != nil {
		return errs
	}
	for _, addr := range l.cfg.Addrs {
		ln, err := listenOn(addr, l.cfg.keepAlive())
		if err != nil {
			return err
		}
		s, err := take(ln, true)
		if err != nil {
			return err
		}
		l.sockets = append(l.sockets, s)
	}
	if len(l.sockets) == 0 {
		return errors.New("listen: no address is given")
	}
	return nil
}

func listenOn(addr string, keepAlive net.KeepAliveConfig) (*net.TCPListener, error) {
	network, err := networkOf(addr)
	if err != nil {
		return nil, fmt.Errorf("listen: address %q: %w", addr, err)
	}
	lc := net.ListenConfig{
		// Set once on the socket below and inherited, where Go would set it
		// with five calls on each connection, TCP_NODELAY included.
		KeepAlive: -1,
		Control: func(_, _ string, raw syscall.RawConn) error {
			var serr error
			err := raw.Control(func(fd uintptr) {
				serr = errors.Join(setKeepAlive(int(fd), keepAlive), setOptions(int(fd)))
			})
			return errors.Join(err, serr)
		},
	}
	// The original destination, splice and sockmap are of plain TCP sockets; Go
	// listens with multipath TCP unless told.
	lc.SetMultipathTCP(false)
	s, err := lc.Listen(context.Background(), network, addr)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("listen: %s is in use by another program: %w", addr, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen: this machine does not have the address of %s: %w", addr, err)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("listen: %s: %w: ports below net.ipv4.ip_unprivileged_port_start (1024) need CAP_NET_BIND_SERVICE; grant it, or take a higher port", addr, err)
	case err != nil:
		return nil, fmt.Errorf("listen: %s: %w", addr, err)
	}
	return s.(*net.TCPListener), nil
}

// setOptions is for listening sockets, whose connections inherit it, and for
// connections that cannot. Urgent data is left in its place in the stream (RFC
// 6093 section 6): else a relay would lose it.
func setOptions(fd int) error {
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1),
	)
}

// networkOf keeps the families apart, so that "0.0.0.0" and "[::]" can be bound
// beside each other with the same port.
func networkOf(addr string) (string, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if host == "" {
		return "tcp", nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", err
	}
	if ip.Is4() {
		return "tcp4", nil
	}
	return "tcp6", nil
}

func setKeepAlive(fd int, cfg net.KeepAliveConfig) error {
	if !cfg.Enable {
		return nil
	}
	set := func(level, opt, value int) error {
		return unix.SetsockoptInt(fd, level, opt, value)
	}
	seconds := func(d time.Duration) int { return max(1, int((d+time.Second-1)/time.Second)) }
	err := set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	if cfg.Idle > 0 {
		err = errors.Join(err, set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(cfg.Idle)))
	}
	if cfg.Interval > 0 {
		err = errors.Join(err, set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(cfg.Interval)))
	}
	if cfg.Count > 0 {
		err = errors.Join(err, set(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, cfg.Count))
	}
	if err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	return nil
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
