package h1

import (
	"bytes"
	"net/http"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Handed is a connection that was taken over, and what had been read of it
// beyond the head.
type Handed struct {
	Conn   loop.Stream
	Unread []byte
}

// Upgraded relays the 101 that RoundTrip returned and hands both connections
// over. The caller closes both. The connection ends with ErrUpgraded once the
// handler has returned: relay after that, so that the exchange's buffers are free
// meanwhile. On error the client connection is cut, and up is the caller's to
// close.
func (x *Exchange) Upgraded(up *Upstream) (client, upstream Handed, err error) {
	if x.up == nil || x.up != up || x.resp.Status != http.StatusSwitchingProtocols {
		return client, upstream, &Error{Side: SideLocal, Step: WriteResponse, Err: errNoResponse}
	}
	x.up, x.answered = nil, true
	b := x.s.stock.take(largeBuffer)
	defer x.s.stock.give(b)
	out := x.appendResponse(b[:0], &x.toClient)
	out = append(out, "Connection: Upgrade\r\n\r\n"...)
	if e := x.writeClient(out); e != nil {
		up.unfit()
		x.err = e
		return client, upstream, e
	}
	x.upgraded = true
	client, upstream = handOver(&x.s.wire), handOver(&up.wire)
	up.used, up.ok = true, false
	up.release()
	return client, upstream, nil
}

// handOver takes the connection out of w, with what was read from it.
func handOver(w *wire) Handed {
	_ = w.conn.SetDeadline(time.Time{}) // fails on a closed connection only
	h := Handed{Conn: w.conn}
	if rest := w.unread(); len(rest) > 0 {
		h.Unread = bytes.Clone(rest)
	}
	w.r = w.w // the buffer itself stays until the exchange is over: views of the head may be in use
	return h
}
