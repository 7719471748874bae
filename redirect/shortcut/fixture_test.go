package shortcut

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m, func() error { return goleak.Find() }) }

const (
	patience    = 20 * time.Second // bounds what takes microseconds when it works
	proxyPort   = 15001
	inboundMark = 0x77656973
)

var config = Config{OutboundPort: proxyPort, InboundMark: inboundMark}

// fixture is a host with the short cut. In place of the proxy stand sockets of
// the tests: what makes one the proxy's is its port or its mark.
type fixture struct {
	t    *testing.T
	lab  *netlab.Lab
	host *netlab.Host
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	needRights(t)
	lab := netlab.New(t)
	f := &fixture{t: t, lab: lab, host: lab.MustHost(t, "app")}
	f.install(f.host)
	return f
}

// needRights skips where programs cannot be loaded at all, which the kernel itself
// must say: in a user namespace nobody may.
func needRights(t *testing.T) {
	t.Helper()
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(m)); len(f) == 3 && f[2] == "4294967295" {
		return
	}
	if err := mayLoad(); !errors.Is(err, unix.EPERM) {
		t.Fatalf("a user namespace, but a map of sockets gives %v", err)
	}
	t.Skip("the kernel lets nobody in a user namespace make a map of sockets: EPERM")
}

func (f *fixture) do(h *netlab.Host, what func() error) {
	f.t.Helper()
	if err := h.Do(what); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) install(h *netlab.Host) (res Result) {
	f.t.Helper()
	f.do(h, func() (err error) { res, err = Install(config); return err })
	f.t.Cleanup(func() {
		if err := h.Do(func() error { _, err := Remove(); return err }); err != nil {
			f.t.Error(err)
		}
	})
	return res
}

func (f *fixture) figures() (out Figures) {
	f.t.Helper()
	f.do(f.host, func() error {
		var differs error
		var err error
		out, differs, err = Look(config)
		return errors.Join(differs, err)
	})
	return out
}

// listen listens without Multipath TCP, as the proxy does.
func (f *fixture) listen(addr string) *net.TCPListener {
	f.t.Helper()
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	var l net.Listener
	f.do(f.host, func() (err error) { l, err = lc.Listen(f.t.Context(), "tcp", addr); return err })
	f.t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func mark(m int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, m) })
		return errors.Join(err, inner)
	}
}

// pair dials l and accepts.
func (f *fixture) pair(d net.Dialer, l *net.TCPListener) (dialled, accepted *net.TCPConn) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	a, err := f.host.Dial(ctx, &d, "tcp", l.Addr().String())
	if err != nil {
		f.t.Fatal(err)
	}
	_ = l.SetDeadline(time.Now().Add(patience))
	b, err := l.AcceptTCP()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(patience))
		f.t.Cleanup(func() { c.Close() })
	}
	return a.(*net.TCPConn), b
}

// outbound is an app and the proxy that it reached.
func (f *fixture) outbound() (app, proxy *net.TCPConn) {
	f.t.Helper()
	l := f.listen("127.0.0.1:15001")
	defer l.Close()
	return f.pair(net.Dialer{}, l)
}

// inbound is the proxy and the app that it called.
func (f *fixture) inbound(addr string) (proxy, app *net.TCPConn) {
	f.t.Helper()
	l := f.listen(addr)
	defer l.Close()
	return f.pair(net.Dialer{Control: mark(inboundMark)}, l)
}

// fd calls what with the socket's descriptor.
func fd[T any](t *testing.T, c *net.TCPConn, what func(int) (T, error)) (out T) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { out, inner = what(int(fd)) }); err != nil || inner != nil {
		t.Fatal(err, inner)
	}
	return out
}

func segments(t *testing.T, c *net.TCPConn) int {
	return fd(t, c, func(fd int) (int, error) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return 0, err
		}
		return int(info.Data_segs_in), nil
	})
}

func priority(t *testing.T, c *net.TCPConn) int {
	return fd(t, c, func(fd int) (int, error) { return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY) })
}

// charged is what the kernel charges a socket for bytes that were not read.
func charged(t *testing.T, c *net.TCPConn) int {
	return fd(t, c, func(fd int) (int, error) { return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MEMINFO) })
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	for n := 0; n < len(b); {
		m, err := c.Read(b[n:])
		if n += m; err != nil {
			t.Fatalf("after %q: %v", b[:n], err)
		}
	}
	if string(b) != want {
		t.Fatalf("heard %q, want %q", b, want)
	}
}

func port(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }

// newLab is a lab that its test closes itself.
func newLab(t *testing.T) (*netlab.Lab, error) { return netlab.Open(t.Context(), netlab.Options{}) }
