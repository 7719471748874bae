// Package secure speaks TLS on an event loop: crypto/tls over a loop.Conn, with read-ahead and gathered records.
// Certificates, whom to trust and which protocols to offer it leaves to the tls.Config of its callers.
//
// Two things must not happen on a loop, and crypto/tls does both: wait while a
// lock is held that another task of the loop may want (Write holds one, and so
// does the alert or the key update that a Read may have to send), and take more
// from the socket than one record, after which nobody can tell whether a read
// would wait. So crypto/tls sits on a transport that never waits once the
// handshake is over, and that hands it one record at a time. The waiting is done
// above crypto/tls, outside its locks.
//
// Configurations do best with DynamicRecordSizingDisabled: the first 128 KiB of
// a connection are else cut into 15 records instead of 8, for browsers on slow
// lines. That is seen by short connections only, not by bulk.
// Renegotiation, which TLS 1.3 has not, is not supported.
package secure

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Conn is a TLS connection, for the tasks of its loop only. One task may read
// while another writes, and any may close it. While it is idle it holds no
// buffer but what crypto/tls keeps.
type Conn struct {
	sock  *loop.Conn
	tls   *tls.Conn
	below transport

	phase    phase
	more     bool    // crypto/tls may hold plaintext
	lent     *buffer // crypto/tls reads records into it
	readErr  error   // what every read says from now on
	writeErr error   // and every write
	place    place
}

type phase uint8

const (
	fresh phase = iota
	shaking
	established
	failed
)

var (
	errNoHandshake = errors.New("secure: there was no handshake that succeeded")
	errShaking     = errors.New("secure: another task is at the handshake")
	errEnded       = errors.New("secure: write after CloseWrite")
	errTwoWriters  = errors.New("secure: another task is writing")
	errUnread      = errors.New("secure: the peer asks for answers that it does not read")
)

var _ loop.Stream = (*Conn)(nil)

// Server makes the server's side of a connection. peeked is what was read from
// c before, and comes first; it must stay as it is until Handshake returns.
// Nothing is sent or read before Handshake.
func Server(c *loop.Conn, peeked []byte, cfg *tls.Config) *Conn {
	s := newConn(c)
	s.below.peeked = peeked
	s.tls = tls.Server(&s.below, cfg)
	return s
}

// Client makes the client's side of a connection. Nothing is sent or read before
// Handshake.
func Client(c *loop.Conn, cfg *tls.Config) *Conn {
	s := newConn(c)
	s.tls = tls.Client(&s.below, cfg)
	return s
}

func newConn(c *loop.Conn) *Conn {
	s := &Conn{sock: c}
	s.below.sock = c
	return s
}

// Handshake makes the connection usable, or fails, by deadline at the latest;
// zero is no limit. It replaces the deadlines of the socket, and there are none
// when it returns. It does not close the socket. What it computes holds up the
// loop: some hundred microseconds for a full handshake.
//
// The error wraps what crypto/tls or the socket said; a peer that went away is
// io.ErrUnexpectedEOF. Called again, it says the same.
func (c *Conn) Handshake(deadline time.Time) error {
	switch c.phase {
	case established:
		return nil
	case shaking:
		return errShaking
	case failed:
		return c.readErr
	}
	if err := c.sock.SetDeadline(deadline); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.phase = shaking
	err := c.shake()
	_ = c.sock.SetDeadline(time.Time{}) // fails if closed: then err is about that
	if err != nil {
		err = fmt.Errorf("TLS handshake: %w", err)
		c.phase = failed
		c.drop(err)
		return err
	}
	c.phase = established
	c.giveBack()
	return nil
}

func (c *Conn) shake() error {
	c.below.waits = true
	err := c.tls.Handshake()
	c.below.waits = false
	if err != nil {
		c.below.offer() // the alert that tells the peer why
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return c.below.flush()
}

// ConnectionState tells what was agreed on. Before the handshake has ended it
// tells nothing.
func (c *Conn) ConnectionState() tls.ConnectionState {
	if c.phase == shaking { // crypto/tls would wait for the lock, and the loop with it
		return tls.ConnectionState{}
	}
	return c.tls.ConnectionState()
}

// Close sends close_notify if that is possible without waiting, and closes the
// connection. It never waits; a task that reads or writes is woken.
func (c *Conn) Close() error {
	if c.phase == established && c.writeErr == nil && !c.below.flushing {
		c.below.notify(c.tls)
		c.below.offer()
	}
	c.leave()
	c.drop(net.ErrClosed)
	return c.sock.Close()
}

// Reset closes so that the peer sees a cut, not an end.
func (c *Conn) Reset() error {
	c.leave()
	c.drop(net.ErrClosed)
	return c.sock.Reset()
}

// drop gives back what is held, and has reads and writes fail from now on.
func (c *Conn) drop(err error) {
	c.readErr, c.writeErr = err, err
	c.below.dropInput()
	c.below.dropOutput()
}

// Socket implements loop.Stream.
func (c *Conn) Socket() *loop.Conn { return c.sock }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.sock.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.sock.RemoteAddr() }

// SetDeadline sets both deadlines of the socket.
func (c *Conn) SetDeadline(t time.Time) error { return c.sock.SetDeadline(t) }

// SetReadDeadline sets the socket's. A read that it ended may be tried again.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.sock.SetReadDeadline(t) }

// SetWriteDeadline sets the socket's. A write that it ended was the last: part
// of a record may have gone.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.sock.SetWriteDeadline(t) }
