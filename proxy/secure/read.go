package secure

import (
	"io"
	"net"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Read reads what is there, waiting for it if there is nothing. io.EOF means
// that the peer sent close_notify; a stream that was cut, even between two
// records, ends with io.ErrUnexpectedEOF (RFC 8446 section 6.1), or with the
// socket's error.
func (c *Conn) Read(b []byte) (int, error) {
	for {
		n, err := c.TryRead(b)
		if err != loop.ErrWouldBlock {
			return n, err
		}
		if err := c.WaitRead(); err != nil {
			return 0, err
		}
	}
}

// TryRead is Read that does not wait: its error is loop.ErrWouldBlock when no
// plaintext can be had yet, though part of a record may have been taken.
func (c *Conn) TryRead(b []byte) (int, error) {
	switch {
	case c.readErr != nil:
		return 0, c.readErr
	case c.phase != established:
		return 0, errNoHandshake
	case len(b) == 0:
		return 0, nil
	case c.sock.Closed(): // by others than us
		return 0, net.ErrClosed
	case !c.Readable():
		return 0, loop.ErrWouldBlock
	}
	c.borrow()
	n, err := c.tls.Read(b)
	if c.more = c.holdsMore(n == len(b)); !c.more && !c.below.holds() {
		c.giveBack()
	}
	if c.below.out != nil && !c.below.flushing {
		c.below.offer() // the answer to a key update, or an alert
	}
	switch {
	case err != nil && err != loop.ErrWouldBlock:
		c.readFailed(err)
		return n, c.readErr
	case c.below.owed() > maxOwed:
		c.readFailed(errUnread)
	}
	return n, err
}

// readFailed settles how reading ends. crypto/tls takes the end of the socket
// between two records for close_notify, because web sites forget to send it.
func (c *Conn) readFailed(err error) {
	if err == io.EOF && c.below.eof {
		err = io.ErrUnexpectedEOF
	}
	c.readErr = err
	c.below.dropInput()
}

// Readable reports whether TryRead may find something. False is certain, because
// crypto/tls never holds ciphertext of more than the record it waits for.
func (c *Conn) Readable() bool {
	return c.more || c.below.holds() || c.readErr != nil || c.sock.Readable()
}

// WaitRead waits until Readable.
func (c *Conn) WaitRead() error {
	if c.sock.Closed() {
		return net.ErrClosed
	}
	if c.Readable() {
		return nil
	}
	return c.sock.WaitRead()
}

// Park has t begun as a task once the connection is readable, its read deadline
// passes or it is closed. Parts of a record, and records without plaintext,
// begin it too: TryRead then finds nothing.
func (c *Conn) Park(t loop.Task) {
	if c.Readable() {
		c.sock.Begin(t)
		return
	}
	c.sock.Park(t)
}
