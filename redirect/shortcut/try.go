package shortcut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tryPatience bounds a trial on a machine that does something else.
const tryPatience = 5 * time.Second

// try makes a connection in a namespace that exists for the moment and looks
// whether this kernel does what the programs build on. It costs some milliseconds
// once. Where this process is not in the cgroup it cannot, and says so.
func (s *set) try(cgroup string, notes *[]string) error {
	if !inCgroup(cgroup) {
		*notes = append(*notes, fmt.Sprintf("the short cut was not tried: weir-init itself is not in cgroup %s", cgroup))
		return nil
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		done <- s.tryHere()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("try the short cut on this kernel: %w", err)
	}
	return nil
}

func (s *set) tryHere() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	// Go's listeners are Multipath TCP's where the kernel has it; this is about TCP.
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	self, err := cookie()
	if err != nil {
		return err
	}
	if _, err := s.put(self, Config{OutboundPort: uint16(l.Addr().(*net.TCPAddr).Port)}); err != nil {
		return err
	}
	defer func() { _ = s.namespaces.Delete(self) }()
	return tryPair(l)
}

func tryPair(l net.Listener) error {
	app, err := net.DialTimeout("tcp4", l.Addr().String(), tryPatience)
	if err != nil {
		return err
	}
	defer app.Close()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(tryPatience))
	proxy, err := l.Accept()
	if err != nil {
		return err
	}
	defer proxy.Close()
	deadline := time.Now().Add(tryPatience)
	if err := errors.Join(app.SetDeadline(deadline), proxy.SetDeadline(deadline)); err != nil {
		return err
	}
	if err := tryWay(app, proxy); err != nil {
		return fmt.Errorf("from app to proxy: %w", err)
	}
	if err := tryWay(proxy, app); err != nil {
		return fmt.Errorf("from proxy to app: %w", err)
	}
	return nil
}

// tryWay sends and looks how it came.
func tryWay(from, to net.Conn) error {
	sent := bytes.Repeat([]byte("short cut "), 4000)
	if _, err := from.Write(sent); err != nil {
		return err
	}
	segments, charged, err := received(to.(*net.TCPConn))
	if err != nil {
		return err
	}
	if segments > 0 {
		return errors.New("it came through TCP")
	}
	if charged < len(sent) {
		return errors.New("the kernel does not count what waits to be read (Linux 6.14 does), so nothing would bound it")
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(to, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("other bytes came than were sent")
	}
	return nil
}

// received is how many segments with data came by TCP, and for how many bytes
// that wait to be read the socket is charged.
func received(c *net.TCPConn) (segments, charged int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			inner = err
			return
		}
		segments = int(info.Data_segs_in)
		// SO_MEMINFO gives nine numbers; the first, rmem_alloc, is all that fits.
		charged, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MEMINFO)
	})
	return segments, charged, errors.Join(err, inner)
}
