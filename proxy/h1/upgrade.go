package h1

import (
	"bytes"
	"net"
	"net/http"
	"time"
)

// Upgraded relays the 101 that RoundTrip returned and hands both connections
// over. What had been read of either beyond the heads comes first out of its
// Read: it is a *Replay then, else the bare connection. The caller closes both.
// Serve returns ErrUpgraded once the handler has returned: relay after that, so
// that the exchange's buffers are free meanwhile. On error the client connection
// is cut, and up is the caller's to close.
func (x *Exchange) Upgraded(up *Upstream) (client, upstream net.Conn, err error) {
	if x.up == nil || x.up != up || x.resp.Status != http.StatusSwitchingProtocols {
		return nil, nil, &Error{Side: SideLocal, Step: WriteResponse, Err: errNoResponse}
	}
	x.up, x.answered = nil, true
	b := takeBuffer(largeBuffer)
	defer giveBuffer(b)
	out := x.appendResponse(b[:0], &x.toClient)
	out = append(out, "Connection: Upgrade\r\n\r\n"...)
	if e := x.writeClient(out); e != nil {
		up.unfit()
		x.err = e
		return nil, nil, e
	}
	s := x.s
	s.handing.Lock()
	s.handed = true
	s.handing.Unlock()
	x.upgraded = true
	client = handOver(&s.wire)
	upstream = handOver(&up.wire)
	up.used, up.ok = true, false
	up.release()
	return client, upstream, nil
}

// handOver takes the connection out of w, with what was read from it.
func handOver(w *wire) net.Conn {
	_ = w.conn.SetDeadline(time.Time{})
	conn := w.conn
	if rest := w.unread(); len(rest) > 0 {
		conn = &Replay{Conn: w.conn, rest: bytes.Clone(rest)}
	}
	w.r = w.w // the buffer itself stays until the exchange is over: views of the head may be in use
	return conn
}

// Replay is a connection of which some bytes were read before: Read gives these
// first.
type Replay struct {
	net.Conn
	rest []byte
}

// Read gives the bytes read before, then those of the connection.
func (r *Replay) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.rest)
	if r.rest = r.rest[n:]; len(r.rest) == 0 {
		r.rest = nil
	}
	return n, nil
}

// Buffered is what was read before and not given yet. When it is empty,
// NetConn may be used in the place of r.
func (r *Replay) Buffered() []byte { return r.rest }

// NetConn is the connection inside.
func (r *Replay) NetConn() net.Conn { return r.Conn }

// CloseWrite passes a half-close on.
func (r *Replay) CloseWrite() error {
	if cw, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return net.ErrClosed
}
