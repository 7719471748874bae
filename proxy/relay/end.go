package relay

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const tcpClose = unix.BPF_TCP_CLOSE // TCP_CLOSE of the kernel's tcp_states.h; bpf only carries it

// end is one of the two connections, with what was found out about it.
type end struct {
	conn net.Conn
	// raw is set when conn is a TCP socket with nothing around it, so that its
	// bytes can be had without a buffer waiting for them.
	raw syscall.RawConn
	// lowest is the transport at the bottom: conn itself, or what it says it is
	// built on (tls.Conn.NetConn).
	lowest net.Conn

	finished atomic.Bool // its peer was told that no more will come
	closed   atomic.Bool // and only Close was there to tell it with
}

func (e *end) init(c net.Conn) {
	e.conn, e.lowest = c, c
	if tcp, ok := c.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			e.raw = raw
		}
	}
	for {
		over, ok := e.lowest.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		e.lowest = over.NetConn()
	}
}

// closeWrite tells the peer that no more will come. A side that is gone
// already is no failure here: its own flow tells.
func (e *end) closeWrite() error {
	e.finished.Store(true)
	half, ok := e.conn.(interface{ CloseWrite() error })
	if !ok {
		// The end of the stream must be said. Without a half-close this costs
		// the other direction.
		e.closed.Store(true)
		return ignoreGone(e.conn.Close())
	}
	return ignoreGone(half.CloseWrite())
}

func ignoreGone(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

func (e *end) close() { _ = e.conn.Close() }

// reset ends the connection so that its peer sees an error, where the transport
// has a way to say that. It does not wait: tls.Conn.Close would, for a peer that
// does not read, so the socket beneath is closed. It may be called again, and
// while the connection is read or written.
func (e *end) reset() {
	switch c := e.lowest.(type) {
	case interface{ Reset() error }:
		_ = c.Reset()
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0) // close then sends RST, socket(7) and RFC 9293 section 3.6.1
	}
	_ = e.lowest.Close()
}

// unsent is the number of bytes that the peer's kernel has not acknowledged, 0
// where that cannot be known or no longer matters.
func (e *end) unsent() int {
	n := 0
	e.control(func(fd int) {
		// A reset socket keeps the count it had.
		if tcpState(fd) == tcpClose {
			return
		}
		if v, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err == nil {
			n = v
		}
	})
	return n
}

// wasReset tells whether a stream that seemed to end was in truth reset. The
// kernel reports a reset once, to whichever call comes first; when a write took
// it, the read sees a plain end, and a cut stream would be passed on as whole.
func (e *end) wasReset() bool {
	if e.raw == nil || e.finished.Load() {
		return false // after our own half-close an orderly end leaves that state too
	}
	reset := false
	e.control(func(fd int) { reset = tcpState(fd) == tcpClose })
	return reset
}

func tcpState(fd int) uint8 {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return tcpClose
	}
	return info.State
}

// control calls f with the socket at the bottom, if it is one and still open.
func (e *end) control(f func(fd int)) {
	sc, ok := e.lowest.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) }) // an error: closed, nothing to ask
	}
}
