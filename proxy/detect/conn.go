package detect

import (
	"errors"
	"net"
)

// Conn is a connection that gives again what was read from it before.
type Conn struct {
	net.Conn
	unread []byte
}

// Read gives the bytes that were read before, then those of the connection.
func (c *Conn) Read(b []byte) (int, error) {
	if len(c.unread) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.unread)
	c.unread = c.unread[n:]
	if len(c.unread) == 0 {
		c.unread = nil // the buffer is not held for the life of the connection
	}
	return n, nil
}

// Unwrap returns the connection beneath and the bytes of it that were not read
// yet, so that a relay can do without this one. Conn is not to be read after.
func (c *Conn) Unwrap() (net.Conn, []byte) {
	unread := c.unread
	c.unread = nil
	return c.Conn, unread
}

// NetConn returns the connection beneath, for its address, options and reset.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// CloseWrite passes a half-close on to the connection beneath; the error is
// errors.ErrUnsupported where that has none.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
