package h2

import (
	"github.com/weir-mesh/weir/proxy/h2/hpack"
	"github.com/weir-mesh/weir/proxy/loop"
)

// Upstream is the place of one request on a connection to an upstream.
type Upstream struct {
	stream
	link     *link // nil once it was given back
	resp     Response
	tail     hpack.Head // the trailer section of the response
	headDone bool       // the final head came
	interim  bool       // an interim one did
	interims int
	reused   bool
	cancel   ErrCode // what the upstream is told if the request is not over
}

// place takes a place, which must be there.
func (k *link) place() *Upstream {
	up, ok := k.stock.upstreams.take()
	if !ok {
		k.stock.trimLater()
		up = new(Upstream)
	}
	up.link = k
	up.stream.up = up
	up.stream.m = &k.mux
	up.cancel = Cancel
	k.open++
	k.keepAlive()
	return up
}

// Conn is the connection on which it is; nil once it was given back.
func (up *Upstream) Conn() loop.Stream {
	if up.link == nil {
		return nil
	}
	return up.link.conn
}

// Used reports whether the connection has carried a request before.
func (up *Upstream) Used() bool { return up.link != nil && up.link.used }

// Reusable reports whether its connection takes further requests.
func (up *Upstream) Reusable() bool { return up.link != nil && up.link.fit() }

// Close gives the place back, and cancels the request if it is not over. The
// connection lives on.
func (up *Upstream) Close() error {
	up.release()
	return nil
}

// finish ends the stream, whether it is over or not.
func (up *Upstream) finish() {
	s := &up.stream
	if s.from != nil {
		s.from.unlink()
	}
	s.unlink()
	if s.listed {
		if !s.inEnded || !s.outEnded {
			s.m.sendReset(s, up.cancel)
		}
		s.m.streams.remove(s)
	}
	s.discard()
	s.x = nil
}

// release gives the place back and returns the stock to which up may be given; nil
// if that was done already.
func (up *Upstream) release() *stock {
	k := up.link
	if k == nil {
		return nil
	}
	up.finish()
	up.link = nil
	up.resp.reset()
	up.tail.Reset()
	up.headDone, up.interim, up.reused, up.interims = false, false, false, 0
	up.stream = stream{in: queue{pieces: up.in.pieces[:0]}}
	k.open--
	if !k.gone && !k.fit() { // out of numbers
		k.gone = true
		k.pool.drop(k)
	}
	if k.idle = k.l.Age(); k.gone && k.open == 0 && !k.closed {
		k.shut()
	}
	k.pool.roomMade()
	k.settle()
	return k.stock
}
