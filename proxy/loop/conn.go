package loop

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection on a loop, and a net.Conn for the loop's tasks: Read
// and Write wait by letting other tasks run. One task may read while another
// writes. Closing it, or setting a deadline, wakes who waits.
type Conn struct {
	l          *Loop
	fd         int
	generation int32

	watched  bool // is in the epoll set
	readable bool // there may be bytes, or an end, to read
	ended    bool // FIN or an error came: it stays readable
	hung     bool // both directions ended, or an error came
	room     bool // the kernel said that it can be written to
	closed   bool

	reader, writer  *task // who waits
	readBy, writeBy time.Duration
	idle            func() // what to do when a parked connection has something to say
	timer           timer
	remote          netip.AddrPort
	listening       *Acceptor // the entry of a listening socket
	owner           Owner
	keep            *net.KeepAliveConfig // to be set if the connection lasts
}

// Owner is told, on the loop, that its connection was closed.
type Owner interface{ Closed(*Conn) }

// SetOwner names who is to be told of the connection's end.
func (c *Conn) SetOwner(o Owner) { c.owner = o }

// Owner is who SetOwner named, or nil.
func (c *Conn) Owner() Owner { return c.owner }

// noDeadline is later than any.
const noDeadline = time.Duration(1<<63 - 1)

// newConn takes over a connected, non-blocking socket.
func (l *Loop) newConn(fd int) *Conn {
	c := &Conn{l: l, fd: fd, readBy: noDeadline, writeBy: noDeadline}
	c.timer.conn = c
	l.generation++
	c.generation = l.generation
	for fd >= len(l.conns) {
		l.conns = append(l.conns, make([]*Conn, max(64, len(l.conns)))...)
	}
	l.conns[fd] = c
	return c
}

// Loop is where the connection lives.
func (c *Conn) Loop() *Loop { return c.l }

// note takes down what the kernel says.
func (c *Conn) note(events uint32) {
	if c.listening != nil {
		c.listening.accept()
		return
	}
	const end = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if events&(unix.EPOLLIN|end) != 0 {
		c.readable = true
		c.ended = c.ended || events&end != 0
		c.hung = c.hung || events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
		if c.reader != nil {
			c.l.wake(c.reader)
		} else if c.idle != nil {
			c.unpark()
		}
	}
	if c.writer != nil && events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.room = true
		c.l.wake(c.writer)
	}
}

// watch puts the connection into the epoll set, once, before the first wait: a
// connection that never waits is never in it. Edge-triggered: each arrival tells
// itself, so what is known is out of date only in saying too much.
func (c *Conn) watch() error {
	if c.watched {
		return nil
	}
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd:     int32(c.fd), Pad: c.generation,
	}
	if err := rawEpollCtl(c.l.epoll, unix.EPOLL_CTL_ADD, c.fd, &ev); err != 0 {
		return os.NewSyscallError("epoll_ctl", err)
	}
	c.watched = true
	return nil
}

// Read reads what is there, waiting for it if there is nothing. A read that does
// not fill b was the last of what had come, so the next waits without asking.
func (c *Conn) Read(b []byte) (int, error) {
	for {
		n, err := c.TryRead(b)
		if err != ErrWouldBlock {
			return n, err
		}
		if err := c.WaitRead(); err != nil {
			return 0, err
		}
	}
}

// TryRead is Read that does not wait: its error is ErrWouldBlock when there is
// nothing.
func (c *Conn) TryRead(b []byte) (int, error) {
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case len(b) == 0:
		return 0, nil
	case !c.readable:
		return 0, ErrWouldBlock
	}
	n, err := ignoringEINTR(c.fd, b, rawRead)
	switch {
	case err == unix.EAGAIN:
		c.readable = false
		return 0, ErrWouldBlock
	case err != 0:
		return 0, c.failed("read", err)
	case n == 0:
		return 0, io.EOF
	}
	if n < len(b) && !c.ended {
		c.readable = false
	}
	return n, nil
}

// Readable reports whether there may be bytes, an end or an error to read. It
// makes no system call.
func (c *Conn) Readable() bool { return c.readable || c.closed }

// WaitRead waits until there is something to read, without a buffer to read it
// to. It fails at the read deadline and when the connection is closed.
func (c *Conn) WaitRead() error {
	for {
		switch {
		case c.closed:
			return net.ErrClosed
		case c.readBy <= c.l.since(c.l.now):
			return os.ErrDeadlineExceeded
		case c.readable:
			return nil
		}
		if err := c.watch(); err != nil {
			return err
		}
		c.arm(c.readBy)
		c.reader = c.l.current
		c.l.pause()
		c.reader = nil
	}
}

// Write writes all of b, waiting for room where there is none.
func (c *Conn) Write(b []byte) (int, error) {
	for done := 0; ; {
		if c.closed {
			return done, net.ErrClosed
		}
		n, err := ignoringEINTR(c.fd, b[done:], rawWrite)
		if n > 0 {
			done += n
		}
		switch {
		case done == len(b):
			return done, nil
		case err != 0 && err != unix.EAGAIN:
			return done, c.failed("write", err)
		}
		if err := c.WaitWrite(); err != nil {
			return done, err
		}
	}
}

// TryWrite writes what there is room for; n may be 0.
func (c *Conn) TryWrite(b []byte) (n int, err error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	n, errno := ignoringEINTR(c.fd, b, rawWrite)
	if errno != 0 && errno != unix.EAGAIN {
		return 0, c.failed("write", errno)
	}
	return max(n, 0), nil
}

// WaitWrite waits until the kernel says that there is room, after a write or a
// splice that found none.
func (c *Conn) WaitWrite() error {
	if c.closed {
		return net.ErrClosed
	}
	if err := c.watch(); err != nil {
		return err
	}
	for c.room = false; ; {
		switch {
		case c.closed:
			return net.ErrClosed
		case c.room:
			return nil
		case c.writeBy <= c.l.since(c.l.now):
			return os.ErrDeadlineExceeded
		}
		c.arm(c.writeBy)
		c.writer = c.l.current
		c.l.pause()
		c.writer = nil
	}
}

// Park has f begun as a task once there is something to read, the read deadline
// passes, or the connection is closed. Until then the connection costs nothing
// but itself.
func (c *Conn) Park(f func()) {
	c.idle = f
	if c.closed || c.readable || c.watch() != nil || c.readBy <= c.l.since(c.l.now) {
		c.unpark()
		return
	}
	c.arm(c.readBy)
}

// Parked reports whether the connection waits for what Park said.
func (c *Conn) Parked() bool { return c.idle != nil }

func (c *Conn) unpark() {
	f := c.idle
	c.idle = nil
	c.Go(f)
}

// Go begins a task that works on the connection: if it panics the connection is
// reset.
func (c *Conn) Go(f func()) { c.l.begin(f).conn = c }

// Wake wakes whoever waits to read, or begins the task of a parked connection.
func (c *Conn) Wake() {
	if c.idle != nil {
		c.unpark()
	} else if c.reader != nil {
		c.l.wake(c.reader)
	}
}

// arm sees that the deadline is noticed.
func (c *Conn) arm(by time.Duration) {
	if by != noDeadline && (c.timer.index == 0 || by < c.timer.due) {
		c.l.timers.set(&c.timer, by)
	}
}

// expire is the timer's: some deadline may have passed, or have been moved.
func (c *Conn) expire() {
	now := c.l.since(c.l.now)
	if by := c.readBy; c.reader != nil || c.idle != nil {
		if by > now {
			c.arm(by)
		} else {
			c.Wake()
		}
	}
	if by := c.writeBy; c.writer != nil {
		if by > now {
			c.arm(by)
		} else {
			c.l.wake(c.writer)
		}
	}
}

// SetReadDeadline implements net.Conn. Zero is none; one that has passed wakes
// who waits.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.closed {
		return net.ErrClosed
	}
	if c.readBy = c.deadline(t); c.reader != nil || c.idle != nil {
		if c.readBy <= c.l.since(c.l.now) {
			c.Wake()
		} else {
			c.arm(c.readBy)
		}
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.closed {
		return net.ErrClosed
	}
	if c.writeBy = c.deadline(t); c.writer != nil {
		if c.writeBy <= c.l.since(c.l.now) {
			c.l.wake(c.writer)
		} else {
			c.arm(c.writeBy)
		}
	}
	return nil
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *Conn) deadline(t time.Time) time.Duration {
	if t.IsZero() {
		return noDeadline
	}
	return c.l.since(t)
}

// CloseWrite sends FIN.
func (c *Conn) CloseWrite() error {
	if c.closed {
		return net.ErrClosed
	}
	if err := rawShutdown(c.fd, unix.SHUT_WR); err != 0 {
		return os.NewSyscallError("shutdown", err)
	}
	return nil
}

// Close closes the connection. Bytes that were not read make it a reset.
func (c *Conn) Close() error {
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.l.conns[c.fd] = nil
	c.l.timers.drop(&c.timer)
	err := rawClose(c.fd) // which takes it out of the epoll set
	if c.writer != nil {
		c.l.wake(c.writer)
	}
	c.Wake()
	if c.owner != nil {
		c.owner.Closed(c)
	}
	if err != 0 {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// Reset closes the connection so that its peer sees a reset, not an end.
func (c *Conn) Reset() error {
	if !c.closed {
		_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	return c.Close()
}

// Closed reports whether Close or Reset was called.
func (c *Conn) Closed() bool { return c.closed }

// FD is the descriptor, for what only a system call can do; the connection
// keeps it. It is -1 once closed.
func (c *Conn) FD() int {
	if c.closed {
		return -1
	}
	return c.fd
}

// Hung reports whether both directions are known to have ended, as after a reset.
func (c *Conn) Hung() bool { return c.hung }

// SyscallConn gives access to the descriptor as net.TCPConn does, for options;
// its Read and Write are not there.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if c.closed {
		return nil, net.ErrClosed
	}
	return Raw(c.fd), nil
}

// Raw is a descriptor as a syscall.RawConn of which only Control works.
type Raw int

// Control implements syscall.RawConn.
func (r Raw) Control(f func(fd uintptr)) error { f(uintptr(r)); return nil }

// Read implements syscall.RawConn.
func (r Raw) Read(func(uintptr) bool) error { return errors.ErrUnsupported }

// Write implements syscall.RawConn.
func (r Raw) Write(func(uintptr) bool) error { return errors.ErrUnsupported }

// Drained takes down that a read by other means than Read found nothing.
func (c *Conn) Drained() { c.readable = false }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Local()) }

// Local is LocalAddr. The kernel is asked: to keep it would cost each connection
// 32 bytes.
func (c *Conn) Local() netip.AddrPort {
	var sa sockaddr
	if c.closed || rawLocal(c.fd, &sa) != 0 {
		return netip.AddrPort{}
	}
	return sa.addrPort()
}

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// Remote is RemoteAddr.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

func (c *Conn) failed(op string, err syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: net.TCPAddrFromAddrPort(c.remote), Err: os.NewSyscallError(op, err)}
}

func zoneOf(id uint32) string {
	if ifi, err := net.InterfaceByIndex(int(id)); err == nil {
		return ifi.Name
	}
	return ""
}

func zoneID(name string) uint32 {
	if name == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(name); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}

var errNotTCP = errors.New("loop: not a TCP address")
