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

// socket is one listening socket.
type socket struct {
	acceptor
	// inherits: its connections have the keepalive settings from the kernel.
	// Those of a socket that was handed over get Go's instead.
	inherits bool
}

// acceptor is what is needed of a *net.TCPListener.
type acceptor interface {
	AcceptTCP() (*net.TCPConn, error)
	Addr() net.Addr
	Close() error
}

func (l *Listener) bind() error {
	for _, given := range l.cfg.Listeners {
		l.sockets = append(l.sockets, socket{acceptor: given})
	}
	for _, addr := range l.cfg.Addrs {
		s, err := listenOn(addr, l.cfg.keepAlive())
		if err != nil {
			return err
		}
		l.sockets = append(l.sockets, socket{acceptor: s, inherits: true})
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
		// with four calls on each connection.
		KeepAlive: -1,
		Control: func(_, _ string, raw syscall.RawConn) error {
			var serr error
			err := raw.Control(func(fd uintptr) { serr = setKeepAlive(int(fd), keepAlive) })
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
	case err != nil:
		return nil, fmt.Errorf("listen: %s: %w", addr, err)
	}
	return s.(*net.TCPListener), nil
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
