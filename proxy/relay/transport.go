package relay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// Transport goes between a socket and crypto/tls, and lets Run tell a stream
// that its sender ended from one that was cut. crypto/tls reports the end of the
// socket at a record boundary as io.EOF, as if close_notify had come, because
// web sites forget it (RFC 8446 section 6.1 calls it an attack). Between
// proxies it is never forgotten, so there a cut is passed on as a reset.
//
// Any other type with the methods NetConn and SawEOF, below a tls.Conn, does
// the same.
type Transport struct {
	net.Conn
	eof atomic.Bool
}

// NewTransport returns c, to be given to tls.Server or tls.Client.
func NewTransport(c net.Conn) *Transport { return &Transport{Conn: c} }

// Read reads from the socket and takes note of its end.
func (t *Transport) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		t.eof.Store(true)
	}
	return n, err
}

// SawEOF tells whether the socket itself ended. After close_notify nothing more
// is read, so an orderly stream ends without.
func (t *Transport) SawEOF() bool { return t.eof.Load() }

// NetConn returns the socket.
func (t *Transport) NetConn() net.Conn { return t.Conn }

// wasCut tells whether the transport ended beneath a layer that says its stream
// has ended.
func (e *end) wasCut() bool {
	for c := e.conn; ; {
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return false
		}
		c = over.NetConn()
		if t, ok := c.(interface{ SawEOF() bool }); ok && t.SawEOF() {
			return true
		}
	}
}
