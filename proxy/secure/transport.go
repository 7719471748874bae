package secure

import (
	"crypto/tls"
	"io"
	"net"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// transport is the net.Conn below crypto/tls. It hands over one record at a
// time, gathers what is to be sent, and waits in the handshake only: later it
// says loop.ErrWouldBlock, which crypto/tls passes on and forgets, because it is
// a net.Error that says Temporary.
type transport struct {
	sock *loop.Conn

	peeked  []byte  // read before us; comes first
	in      *buffer // read ahead; nil when empty
	class   uint8   // of the next buffer to read into
	eof     bool    // the socket has ended
	waits   bool    // the handshake is under way
	records cutter

	out      *buffer // to be sent; nil when empty
	wrote    uint64  // bytes that the socket took, ever
	unheard  bool    // a write failed that nobody waited for
	flushing bool    // a task is sending what out was
	notified bool    // close_notify was the last that may be sent
}

// maxOwed is how much of what crypto/tls sends by itself, answers to key updates
// above all, may wait for a peer that does not read. An honest peer asks for one
// and then reads; 16 KiB are six hundred.
const maxOwed = 16 << 10

// Read hands crypto/tls what there is of the current record.
func (t *transport) Read(p []byte) (int, error) {
	for !t.holds() {
		err := t.fill()
		if err == loop.ErrWouldBlock && t.waits {
			err = t.await()
		}
		if err != nil {
			return 0, err
		}
	}
	if len(t.peeked) > 0 {
		n := t.records.take(p, t.peeked)
		if t.peeked = t.peeked[n:]; len(t.peeked) == 0 {
			t.peeked = nil // it is the caller's
		}
		return n, nil
	}
	n := t.records.take(p, t.in.data)
	if t.in.data = t.in.data[n:]; len(t.in.data) == 0 {
		t.dropInput()
	}
	return n, nil
}

// await waits for the peer's part of the handshake, after ours has gone.
func (t *transport) await() error {
	if err := t.flush(); err != nil {
		return err
	}
	return t.sock.WaitRead()
}

// fill reads ahead, if anything is there. The buffer is of the size that would
// have been right last time.
func (t *transport) fill() error {
	if !t.sock.Readable() && !t.sock.Closed() {
		return loop.ErrWouldBlock
	}
	b := lend(t.class)
	n, err := t.sock.TryRead(b.room())
	if err != nil {
		b.free()
		t.eof = t.eof || err == io.EOF
		return err
	}
	t.class = classFor(n + 1)
	b.data = b.room()[:n]
	t.in = b
	return nil
}

func (t *transport) holds() bool { return t.in != nil || len(t.peeked) > 0 }

func (t *transport) dropInput() {
	t.peeked = nil
	if t.in != nil {
		t.in.free()
		t.in = nil
	}
}

// Write takes what crypto/tls sends. It never waits: the locks of crypto/tls are
// held.
func (t *transport) Write(p []byte) (int, error) {
	if t.notified {
		// An answer or an alert after close_notify: the peer would not read it, and
		// so send a reset when it closes, which may overtake what it sent before.
		return len(p), nil
	}
	t.reserve(len(p))
	t.out.data = append(t.out.data, p...)
	return len(p), nil
}

// reserve sees that n more bytes have room in out.
func (t *transport) reserve(n int) {
	if t.out == nil {
		t.out = lend(classFor(n))
		return
	}
	if need := len(t.out.data) + n; need > cap(t.out.data) {
		b := lend(classFor(need))
		b.data = append(b.data, t.out.data...)
		t.out.free()
		t.out = b
	}
}

// flush sends what was gathered, and what another task adds meanwhile. It waits
// for room.
func (t *transport) flush() error {
	t.flushing = true
	defer func() { t.flushing = false }()
	for t.out != nil {
		b := t.out
		t.out = nil
		n, err := t.sock.Write(b.data)
		t.wrote += uint64(n)
		b.free()
		if err != nil {
			t.dropOutput()
			return err
		}
	}
	return nil
}

// offer sends as much of what was gathered as there is room for. The rest goes
// before what is written next.
func (t *transport) offer() {
	if t.out == nil {
		return
	}
	n, err := t.sock.TryWrite(t.out.data)
	t.wrote += uint64(n)
	t.unheard = t.unheard || err != nil
	if t.out.data = t.out.data[n:]; err != nil || len(t.out.data) == 0 {
		t.dropOutput()
	}
}

// owed is how much there is besides what a writer is sending.
func (t *transport) owed() int {
	if t.out == nil {
		return 0
	}
	return len(t.out.data)
}

func (t *transport) dropOutput() {
	if t.out != nil {
		t.out.free()
		t.out = nil
	}
}

// notify gathers close_notify, once.
func (t *transport) notify(c *tls.Conn) {
	if !t.notified {
		_ = c.CloseWrite() // cannot fail: nothing is sent yet
		t.notified = true
	}
}

// Close is for crypto/tls, which is never asked to close.
func (t *transport) Close() error { return t.sock.Close() }

// LocalAddr implements net.Conn.
func (t *transport) LocalAddr() net.Addr { return t.sock.LocalAddr() }

// RemoteAddr implements net.Conn.
func (t *transport) RemoteAddr() net.Addr { return t.sock.RemoteAddr() }

// SetDeadline does nothing, as its siblings below: crypto/tls limits by itself
// how long close_notify may take, but here sending it does not wait.
func (t *transport) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (t *transport) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (t *transport) SetWriteDeadline(time.Time) error { return nil }
