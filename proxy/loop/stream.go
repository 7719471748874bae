package loop

import "net"

// Stream is a connection on a loop as what is above it sees it: a Conn, or
// something over one, such as TLS. Its methods may be called by tasks of its
// loop only.
type Stream interface {
	net.Conn
	// TryRead is Read that does not wait; ErrWouldBlock when there is nothing.
	TryRead(b []byte) (int, error)
	// Readable reports whether TryRead may find something. False is certain.
	Readable() bool
	// WaitRead waits until Readable, without a buffer.
	WaitRead() error
	// Park has t begun as a task once the stream is readable, its read deadline
	// passes or it is closed.
	Park(t Task)
	// CloseWrite ends what is sent.
	CloseWrite() error
	// Reset closes so that the peer sees a cut, not an end.
	Reset() error
	// Socket is the connection at the bottom.
	Socket() *Conn
}

var _ Stream = (*Conn)(nil)

// Socket implements Stream.
func (c *Conn) Socket() *Conn { return c }
