package h1

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// wire is a connection with its read buffer. At one time one task may read and
// one may write.
type wire struct {
	conn  loop.Stream
	bare  *loop.Conn // conn, if nothing is over the socket
	stock *stock     // of the loop
	size  int        // of the first buffer: small or large
	first int        // so much of it is read to at first; 0: all

	buf  []byte // nil while there is nothing in it
	r, w int    // unread bytes are buf[r:w]
}

func (w *wire) init(conn loop.Stream, size int, of *stock) {
	*w = wire{conn: conn, size: size, stock: of}
	w.bare, _ = conn.(*loop.Conn)
}

// unread is what came and was not used yet.
func (w *wire) unread() []byte { return w.buf[w.r:w.w] }

// release gives the buffer back if nothing is in it.
func (w *wire) release() {
	if w.r == w.w {
		w.stock.give(w.buf)
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
	n, err := w.conn.Read(w.buf[w.w:])
	w.w += n
	return err
}

// makeRoom moves the unread bytes to the front, of a large buffer if need be.
// The limit on heads is one large buffer, so there is room then.
func (w *wire) makeRoom() {
	if w.r == 0 && len(w.buf) < largeBuffer {
		b := w.stock.take(largeBuffer)
		copy(b, w.buf[:w.w])
		w.stock.give(w.buf)
		w.buf = b
		return
	}
	w.w = copy(w.buf, w.buf[w.r:w.w])
	w.r = 0
}

// fillEmpty waits without holding a buffer.
func (w *wire) fillEmpty() error {
	for {
		err := w.tryFill()
		if err != loop.ErrWouldBlock {
			return err
		}
		if err := w.conn.WaitRead(); err != nil {
			return err
		}
	}
}

// tryFill reads into a fresh buffer what is there already.
func (w *wire) tryFill() error {
	if !w.conn.Readable() {
		return loop.ErrWouldBlock
	}
	b := w.stock.take(w.size)
	at := w.headroom()
	end := len(b)
	if w.first > 0 {
		end = at + w.first
	}
	n, err := w.conn.TryRead(b[at:end])
	if n > 0 {
		w.buf, w.r, w.w = b, at, at+n
		return nil
	}
	w.stock.give(b)
	return err
}

// headroom is left free in front of what is first read from an upstream: the
// head that goes to the client then fits before a large body where that is, and
// both go in one write without copying the body.
func (w *wire) headroom() int {
	if w.size == largeBuffer {
		return headroom
	}
	return 0
}

const headroom = 1 << 10

// peek looks at the next byte on the socket, whatever is over it.
func (w *wire) peek() (n int, err error) {
	var one [1]byte
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(w.conn.Socket().FD()), uintptr(unsafe.Pointer(&one[0])), 1,
		unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
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
	info, err := unix.GetsockoptTCPInfo(w.conn.Socket().FD(), unix.IPPROTO_TCP, unix.TCP_INFO)
	switch {
	case err != nil:
		return peerThere
	case info.State == unix.BPF_TCP_CLOSE_WAIT:
		return peerClosed
	case info.State == unix.BPF_TCP_CLOSE:
		return peerReset
	}
	return peerThere
}

var longAgo = time.Unix(1, 0)

// wakeReader makes a read that is going on return at once.
func (w *wire) wakeReader() { _ = w.conn.SetReadDeadline(longAgo) }

// abort closes so that the peer notices: a body that ends with its connection
// can be cut short in no other way.
func (w *wire) abort() { _ = w.conn.Reset() }
