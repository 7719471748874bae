package h1

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wire is a connection with its read buffer and its deadlines. At one time one
// goroutine may read and one may write.
type wire struct {
	conn   net.Conn
	direct syscall.RawConn // for reads that take a buffer only once bytes are there; nil unless plain TCP or Unix
	socket syscall.RawConn // for looking at the socket under whatever wraps it; may be nil
	size   int             // of the first buffer: small or large

	buf  []byte // nil while there is nothing in it
	r, w int    // unread bytes are buf[r:w]
	one  [1]byte

	readBy, writeBy time.Time // deadlines that are set; zero if unknown

	// Made once, because a closure per call would be an allocation; what follows
	// is what they work with.
	onReady func(fd uintptr) bool
	onLook  func(fd uintptr)
	quiet   bool
	dst     []byte // where to read to; nil: a buffer, taken when there is something to put in
	n       int
	err     error
	ask     asking // what to send before waiting for an answer
}

// asking is the sending half of a lockstep exchange: the bytes are written once
// the poller was made ready for the answer and before the wait, so one wait does
// for both and no read is made in vain. The look whether the peer closed while
// idle comes at the same point: no edge can be lost between look and wait.
type asking struct {
	pending []byte // not sent yet
	look    bool   // look first whether the peer closed or spoke out of turn
	fresh   bool   // a first request: a server that is full may speak at once
	spoke   bool   // it did
	stale   bool   // closed, or spoke out of turn
	sent    bool   // some of it went out
	err     error
}

func (w *wire) init(conn net.Conn, size int) {
	*w = wire{conn: conn, size: size}
	w.onReady, w.onLook = w.ready, w.look
	switch c := conn.(type) {
	case *net.TCPConn:
		w.direct, _ = c.SyscallConn()
	case *net.UnixConn:
		w.direct, _ = c.SyscallConn()
	}
	w.socket = w.direct
	if w.socket == nil {
		w.socket = socketUnder(conn)
	}
}

// socketUnder looks through wrappers such as *tls.Conn, to ask the kernel about
// the socket; never to read or write past the wrapper.
func socketUnder(conn net.Conn) syscall.RawConn {
	for range 4 {
		switch c := conn.(type) {
		case *net.TCPConn:
			raw, _ := c.SyscallConn()
			return raw
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
	return nil
}

// unread is what came and was not used yet.
func (w *wire) unread() []byte { return w.buf[w.r:w.w] }

// release gives the buffer back if nothing is in it.
func (w *wire) release() {
	if w.r == w.w {
		giveBuffer(w.buf)
		w.buf, w.r, w.w = nil, 0, 0
	}
}

// fill reads more behind the unread bytes. Views of the buffer are void after it.
func (w *wire) fill() error {
	if w.buf == nil {
		return w.fillEmpty()
	}
	if w.w == len(w.buf) {
		w.makeRoom()
	}
	n, err := w.read(w.buf[w.w:])
	w.w += n
	return err
}

// makeRoom moves the unread bytes to the front, of a large buffer if need be.
// The limit on heads is one large buffer, so there is room then.
func (w *wire) makeRoom() {
	if w.r == 0 && len(w.buf) < largeBuffer {
		b := takeBuffer(largeBuffer)
		copy(b, w.buf[:w.w])
		giveBuffer(w.buf)
		w.buf = b
		return
	}
	w.w = copy(w.buf, w.buf[w.r:w.w])
	w.r = 0
}

// fillEmpty waits without holding a buffer.
func (w *wire) fillEmpty() error {
	if w.direct != nil {
		n, err := w.read(nil)
		w.w = n
		return err
	}
	// One byte is enough to wait for: a TLS connection keeps the rest of the
	// record, and the next read has it without a system call.
	n, err := w.conn.Read(w.one[:])
	if n == 1 {
		w.buf = takeBuffer(w.size)
		w.buf[0], w.w = w.one[0], 1
		return nil
	}
	return eofIfNil(err)
}

func eofIfNil(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// read reads at least one byte into dst, or with dst nil into a fresh w.buf.
func (w *wire) read(dst []byte) (int, error) {
	if w.direct == nil {
		n, err := w.conn.Read(dst)
		if n > 0 {
			return n, nil
		}
		return 0, eofIfNil(err)
	}
	w.dst, w.n, w.err = dst, 0, nil
	if err := w.direct.Read(w.onReady); err != nil {
		return 0, err
	}
	return w.n, w.err
}

// ready is called by the poller's read loop: at once, and whenever the socket
// may have become readable. It reports whether the wait is over.
func (w *wire) ready(fd uintptr) bool {
	if len(w.ask.pending) > 0 {
		if !w.send(int(fd)) {
			return true
		}
		if !w.ask.spoke {
			return false
		}
	}
	dst := w.dst
	if dst == nil {
		dst = takeBuffer(w.size)
	}
	n, err := retryRead(int(fd), dst)
	switch {
	case n > 0:
		w.n = n
		if w.dst == nil {
			w.buf = dst
		}
		return true
	case err == nil:
		w.err = io.EOF
	case err != unix.EAGAIN:
		w.err = err
	}
	if w.dst == nil {
		giveBuffer(dst)
	}
	return err != unix.EAGAIN
}

func retryRead(fd int, dst []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, dst)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// send writes w.ask; false ends the wait: stale, failed, or not all could be
// written without waiting.
func (w *wire) send(fd int) bool {
	a := &w.ask
	if a.look {
		a.look = false
		n, err := w.peek(fd)
		quiet := err == unix.EAGAIN
		a.spoke = err == 0 && n > 0 && a.fresh
		if a.stale = !quiet && !a.spoke; a.stale {
			return false
		}
	}
	for {
		n, err := syscall.Write(fd, a.pending)
		switch {
		case n > 0:
			a.sent = true
			a.pending = a.pending[n:]
			return len(a.pending) == 0
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return false
		default:
			a.err = err
			return false
		}
	}
}

// write writes all of b.
func (w *wire) write(b []byte) (int, error) { return w.conn.Write(b) }

// armRead sets the read deadline near wake, which is not in the past: an
// earlier one that is at least half as far away does as well, for whoever reads
// looks at the clock when it fires. So a busy connection sets a timer once in a
// while and not once per read.
func (w *wire) armRead(now, wake time.Time) {
	if w.readBy.IsZero() || w.readBy.After(wake) || w.readBy.Sub(now) < wake.Sub(now)/2 {
		w.readBy = wake
		_ = w.conn.SetReadDeadline(wake) // fails on a closed connection only, as the read will
	}
}

// armWrite sets the write deadline somewhere in [by, late]: a write that timed
// out cannot be resumed on TLS, so it must never come early.
func (w *wire) armWrite(by, late time.Time) {
	if w.writeBy.IsZero() || w.writeBy.Before(by) || w.writeBy.After(late) {
		w.writeBy = late
		_ = w.conn.SetWriteDeadline(late)
	}
}

var longAgo = time.Unix(1, 0)

// wakeReader makes a read that is going on return at once.
func (w *wire) wakeReader() { _ = w.conn.SetReadDeadline(longAgo) }

// forget says that the deadlines set are no longer those taken down.
func (w *wire) forget() { w.readBy, w.writeBy = time.Time{}, time.Time{} }

// silent reports whether nothing came and nobody closed, without waiting. What
// it cannot know it takes for silence.
func (w *wire) silent() bool {
	if w.r != w.w {
		return false
	}
	if w.socket == nil {
		return true
	}
	w.quiet = false
	_ = w.socket.Control(w.onLook) // fails on a closed connection only
	return w.quiet
}

func (w *wire) look(fd uintptr) {
	_, err := w.peek(int(fd))
	w.quiet = err == unix.EAGAIN
}

// peek looks at the next byte. It never blocks, so the scheduler need not hear of
// it; and unix.Recvfrom would allocate the address that is not asked for.
func (w *wire) peek(fd int) (n int, err syscall.Errno) {
	got, _, err := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&w.one[0])), 1,
		unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return int(got), err
}

type peerState uint8

const (
	peerThere  peerState = iota
	peerClosed           // sent FIN
	peerReset
)

// peer asks the kernel for the state of the connection, which it knows whatever
// lies unread before the FIN.
func (w *wire) peer() peerState {
	if w.socket == nil {
		return peerThere
	}
	state := peerThere
	_ = w.socket.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		switch {
		case err != nil: // a Unix socket
		case info.State == unix.BPF_TCP_CLOSE_WAIT:
			state = peerClosed
		case info.State == unix.BPF_TCP_CLOSE:
			state = peerReset
		}
	})
	return state
}

// abort closes so that the peer notices: RST on TCP, no close_notify on TLS.
// A body that ends with its connection can be cut short in no other way.
func (w *wire) abort() {
	conn := w.conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = conn.Close()
}
