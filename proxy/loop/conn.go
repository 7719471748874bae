package loop

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection on a loop, and a net.Conn for the loop's tasks: Read
// and Write wait by letting other tasks run. One task may read while another
// writes. Closing it, or setting a deadline, wakes who waits.
//
// There are two for each connection that is relayed, most of them idle: what only
// some need, or only for a while, is elsewhere (see waits).
type Conn struct {
	l          *Loop
	fd         int32
	generation int32
	timer      int32 // its place among the deadlines, plus one; 0: it has none
	state      state
	keep       uint8  // which keep-alive is to be set if the connection lasts, plus one
	short      uint8  // what ShortCut found, once asked, and how crowded it is
	sent       uint8  // so many times sentPiece was written since HasRoom looked
	waits      *waits // nil: nobody waits and there is no deadline
	idle       Task   // to be begun when a parked connection has something to say
	owner      any    // an Owner, or the *Acceptor of a listening socket
}

// state is what is known of a connection.
type state uint8

const (
	watched  state = 1 << iota // is in the epoll set
	readable                   // there may be bytes, or an end, to read
	ended                      // FIN or an error came: it stays readable
	hung                       // both directions ended, or an error came
	room                       // the kernel said that it can be written to
	closed
	filled // the last read filled its buffer
	urgent // urgent data came: a read stops before it, whatever is behind
)

func (c *Conn) is(s state) bool { return c.state&s != 0 }
func (c *Conn) set(s state)     { c.state |= s }
func (c *Conn) unset(s state)   { c.state &^= s }

// Owner is told, on the loop, that its connection was closed.
type Owner interface{ Closed(*Conn) }

// SetOwner names who is to be told of the connection's end.
func (c *Conn) SetOwner(o Owner) { c.owner = o }

// Owner is who SetOwner named, or nil.
func (c *Conn) Owner() Owner {
	o, _ := c.owner.(Owner)
	return o
}

// newConn takes over a connected, non-blocking socket.
func (l *Loop) newConn(c *Conn, fd int) {
	l.generation++
	*c = Conn{l: l, fd: int32(fd), generation: l.generation}
	if fd >= len(l.conns) { // a quarter more each time: at most so much is held in vain
		l.conns = append(make([]*Conn, 0, fd+fd/4+64), l.conns...)
		l.conns = l.conns[:cap(l.conns)]
	}
	l.conns[fd] = c
}

// listening is the Acceptor whose socket this is, nil for a connection.
func (c *Conn) listening() *Acceptor {
	a, _ := c.owner.(*Acceptor)
	return a
}

// Loop is where the connection lives.
func (c *Conn) Loop() *Loop { return c.l }

// note takes down what the kernel says.
func (c *Conn) note(events uint32) {
	if a := c.listening(); a != nil {
		a.accept()
		return
	}
	const end = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if events&(unix.EPOLLIN|unix.EPOLLPRI|end) != 0 {
		c.set(readable)
		if events&end != 0 {
			c.set(ended)
		}
		if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			c.set(hung)
		}
		if events&unix.EPOLLPRI != 0 {
			c.set(urgent)
		}
		c.Wake()
	}
	if w := c.waits; w != nil && w.writer != nil && events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.set(room)
		c.l.wake(w.writer)
	}
}

// watch puts the connection into the epoll set, once, before the first wait: a
// connection that never waits is never in it. Edge-triggered: each arrival tells
// itself, so what is known is out of date only in saying too much.
func (c *Conn) watch() error {
	if c.is(watched) {
		return nil
	}
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd:     c.fd, Pad: c.generation,
	}
	if err := rawEpollCtl(c.l.epoll, unix.EPOLL_CTL_ADD, int(c.fd), &ev); err != 0 {
		return os.NewSyscallError("epoll_ctl", err)
	}
	c.set(watched)
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
	case c.is(closed):
		return 0, net.ErrClosed
	case len(b) == 0:
		return 0, nil
	case !c.is(readable):
		return 0, ErrWouldBlock
	}
	n, err := ignoringEINTR(int(c.fd), b, rawRead)
	switch {
	case err == unix.EAGAIN:
		c.unset(readable)
		return 0, ErrWouldBlock
	case err != 0:
		return 0, c.failed("read", err)
	case n == 0:
		return 0, io.EOF
	}
	if n < len(b) && !c.is(ended|urgent) && !(c.is(filled) && c.ShortCut()) {
		c.unset(readable)
	}
	if c.unset(filled); n == len(b) {
		c.set(filled)
	}
	return n, nil
}

// Readable reports whether there may be bytes, an end or an error to read. It
// makes no system call.
func (c *Conn) Readable() bool { return c.is(readable | closed) }

// Write writes all of b, waiting for room where there is none.
func (c *Conn) Write(b []byte) (int, error) {
	for done := 0; ; {
		if c.is(closed) {
			return done, net.ErrClosed
		}
		n, err := 0, unix.EAGAIN
		if c.HasRoom() {
			n, err = ignoringEINTR(int(c.fd), b[done:], rawWrite)
		}
		if n > 0 {
			done += n
			c.Wrote(n)
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
	if c.is(closed) {
		return 0, net.ErrClosed
	}
	if !c.HasRoom() {
		return 0, nil
	}
	n, errno := ignoringEINTR(int(c.fd), b, rawWrite)
	if errno != 0 && errno != unix.EAGAIN {
		return 0, c.failed("write", errno)
	}
	c.Wrote(max(n, 0))
	return max(n, 0), nil
}

// Task is what Park begins.
type Task interface{ Run() }

// Func is a function as a Task.
type Func func()

// Run implements Task.
func (f Func) Run() { f() }

// Park has t begun as a task once there is something to read, the read deadline
// passes, or the connection is closed. Until then the connection costs nothing
// but itself.
func (c *Conn) Park(t Task) {
	c.idle = t
	if c.is(closed|readable) || c.watch() != nil || c.late() {
		c.unpark()
	} else if w := c.waits; w != nil {
		c.arm(w.readBy)
	}
}

// Parked reports whether the connection waits for what Park said.
func (c *Conn) Parked() bool { return c.idle != nil }

func (c *Conn) unpark() {
	t := c.idle
	c.idle = nil
	c.Begin(t)
}

// Begin begins a task that works on the connection: if it panics the connection
// is reset.
func (c *Conn) Begin(t Task) { c.l.begin(t).conn = c }

// Go is Begin of a function.
func (c *Conn) Go(f func()) { c.Begin(Func(f)) }

// Wake wakes whoever waits to read, or begins the task of a parked connection.
func (c *Conn) Wake() {
	if c.idle != nil {
		c.unpark()
	} else if w := c.waits; w != nil && w.reader != nil {
		c.l.wake(w.reader)
	}
}

// CloseWrite sends FIN.
func (c *Conn) CloseWrite() error {
	if c.is(closed) {
		return net.ErrClosed
	}
	if err := rawShutdown(int(c.fd), unix.SHUT_WR); err != 0 {
		return os.NewSyscallError("shutdown", err)
	}
	return nil
}

// Close closes the connection. Bytes that were not read make it a reset.
func (c *Conn) Close() error {
	if c.is(closed) {
		return net.ErrClosed
	}
	c.set(closed)
	c.l.conns[c.fd] = nil
	c.l.deadlines.drop(c)
	err := rawClose(int(c.fd)) // which takes it out of the epoll set
	if w := c.waits; w != nil {
		w.readBy, w.writeBy = noDeadline, noDeadline
		if w.writer != nil {
			c.l.wake(w.writer)
		}
	}
	c.Wake()
	c.rest()
	if o := c.Owner(); o != nil {
		o.Closed(c)
	}
	if err != 0 {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// Reset closes the connection so that its peer sees a reset, not an end.
func (c *Conn) Reset() error {
	if !c.is(closed) {
		_ = unix.SetsockoptLinger(int(c.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	return c.Close()
}

// Closed reports whether Close or Reset was called.
func (c *Conn) Closed() bool { return c.is(closed) }

// FD is the descriptor, for what only a system call can do; the connection
// keeps it. It is -1 once closed.
func (c *Conn) FD() int {
	if c.is(closed) {
		return -1
	}
	return int(c.fd)
}

// Hung reports whether both directions are known to have ended, as after a reset.
func (c *Conn) Hung() bool { return c.is(hung) }

// SyscallConn gives access to the descriptor as net.TCPConn does, for options;
// its Read and Write are not there.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if c.is(closed) {
		return nil, net.ErrClosed
	}
	return Raw(c.fd), nil
}

// Raw is a descriptor as a syscall.RawConn of which only Control works.
type Raw int

// FD is the descriptor.
func (r Raw) FD() int { return int(r) }

// Control implements syscall.RawConn.
func (r Raw) Control(f func(fd uintptr)) error { f(uintptr(r)); return nil }

// Read implements syscall.RawConn.
func (r Raw) Read(func(uintptr) bool) error { return errors.ErrUnsupported }

// Write implements syscall.RawConn.
func (r Raw) Write(func(uintptr) bool) error { return errors.ErrUnsupported }

// Drained takes down that a read by other means than Read found nothing.
func (c *Conn) Drained() { c.unset(readable) }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Local()) }

// Local is LocalAddr. The kernel is asked, here and in Remote: to keep either
// would cost each connection 32 bytes.
func (c *Conn) Local() netip.AddrPort {
	var sa sockaddr
	if c.is(closed) || rawLocal(int(c.fd), &sa) != 0 {
		return netip.AddrPort{}
	}
	return sa.addrPort()
}

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Remote()) }

// Remote is RemoteAddr: nothing once the connection was closed or reset.
func (c *Conn) Remote() netip.AddrPort {
	var sa sockaddr
	if c.is(closed) || rawRemote(int(c.fd), &sa) != 0 {
		return netip.AddrPort{}
	}
	return sa.addrPort()
}

func (c *Conn) failed(op string, err syscall.Errno) error { return c.failedTo(op, op, err) }

func (c *Conn) failedTo(op, call string, err syscall.Errno) error {
	e := &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(call, err)}
	if to := c.Remote(); to.IsValid() {
		e.Addr = net.TCPAddrFromAddrPort(to)
	}
	return e
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
