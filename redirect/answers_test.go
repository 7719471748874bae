package redirect

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asCaller is a dialer's control that connects in the name of a caller.
func asCaller(cfg Config, caller netip.Addr) control {
	return func(network, address string, c syscall.RawConn) error {
		if err := InboundControl(cfg)(network, address, c); err != nil {
			return err
		}
		return onDescriptor(c, func(fd int) error {
			if caller.Is6() {
				return errors.Join(unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1), unix.Bind(fd, &unix.SockaddrInet6{Addr: caller.As16()}))
			}
			return errors.Join(unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1), unix.Bind(fd, &unix.SockaddrInet4{Addr: caller.As4()}))
		})
	}
}

func TestAnswersToACallerWhoseAddressTheProxyTookComeBackToIt(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		before := f.saved()
		cfg := modeConfig(mode)
		cfg.PreserveSource = true
		f.apply(cfg)
		if again := f.apply(cfg); again.Changed {
			t.Error("a second apply changed something")
		}
		in := f.listen(f.app, ":15006")
		for _, c := range []struct{ caller, own netip.Addr }{
			{f.peer.Addr4(), f.app.Addr4()}, {f.peer.Addr6(), f.app.Addr6()},
			{netip.MustParseAddr("198.51.100.7"), f.app.Addr4()},
			{f.app.Addr4(), f.app.Addr4()}, // the app calls its own service
		} {
			app := f.listen(f.app, at(c.own, 8080).String())
			f.arrives(f.peer, at(c.own, 8080), nil, in)
			up, err := f.dial(f.app, at(c.own, 8080).String(), asCaller(cfg, c.caller))
			if err != nil {
				t.Errorf("the proxy connects to %s as %s: %v", c.own, c.caller, err)
				continue
			}
			down := f.accept(app)
			if got := down.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != c.caller {
				t.Errorf("the app sees %s, not %s", got, c.caller)
			}
			big := strings.Repeat("answer", 50_000)
			go func() { io.WriteString(down, big); down.Close() }()
			_ = up.SetDeadline(time.Now().Add(patience))
			if b, err := io.ReadAll(up); err != nil || string(b) != big {
				t.Errorf("as %s the proxy read %d bytes, %v", c.caller, len(b), err)
			}
			app.Close()
		}
		// What the app begins itself, and the proxy's other connections, go their ways.
		f.arrives(f.app, at(f.peer.Addr4(), 8080), nil, f.listen(f.app, "127.0.0.1:15001"))
		f.reachesDirectly(f.app, at(f.peer.Addr4(), 8080), UpstreamControl(cfg), f.listen(f.peer, ":8080"))
		f.apply(modeConfig(mode)) // a change of mind
		if rules := f.command(f.app, "ip", "rule") + f.command(f.app, "ip", "-6", "rule"); strings.Contains(rules, "fwmark") {
			t.Errorf("left:\n%s", rules)
		}
		f.apply(cfg)
		f.remove()
		if after := f.saved(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}
