package h2

import (
	"errors"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

// stream is one end of an exchange: its client's, or its upstream's.
type stream struct {
	m      *mux
	id     uint32
	x      *Exchange // whom to tell; nil once there is nobody
	up     *Upstream // whose stream it is; nil of a client's
	next   *stream   // in the table
	listed bool      // in the table

	in       queue // what came of the body
	inEnded  bool
	recvLeft int   // what the peer may still send
	owed     int   // taken from it and not granted anew yet
	length   int64 // what content-length says, -1: nothing
	got      int64 // bytes of the body that came
	trailers *hpack.Head
	to       *stream // where what comes goes on; nil: nowhere yet
	keep     int     // so many bytes may stay in the queue after they went on
	whole    bool    // everything that came is still in the queue

	from     *stream // what goes out comes from there
	window   int     // what may be sent
	outBegun bool    // HEADERS of a final answer, or of the request, were sent
	outEnded bool
	sent     int64  // bytes of DATA that were sent
	edits    *edits // of what goes out, for its trailer section

	waits      *list // whose member it is
	prev, more *stream

	err  error // why it is over before its end; nil while it is not
	safe bool  // the peer surely did nothing of it
	ours bool  // we found the fault
}

// Faults of a stream for which it is reset.
var (
	errClosedData = errors.New("DATA after END_STREAM")
	errClosedHead = errors.New("HEADERS after END_STREAM")
	errBeyond     = errors.New("DATA beyond the window of the stream")
	errNoCredit   = errors.New("WINDOW_UPDATE by nothing")
	errOverflow   = errors.New("WINDOW_UPDATE overflows the window of the stream")
	errFrame      = errors.New("a frame of a wrong form")
)

// begin makes s ready for a new stream of m and lists it there.
func (s *stream) begin(m *mux, id uint32, x *Exchange) {
	pieces := s.in.pieces
	*s = stream{m: m, id: id, x: x, up: s.up, length: -1, whole: true, window: m.initial, in: queue{pieces: pieces[:0]}}
	s.recvLeft = m.cfg.StreamWindow
	if !m.acked {
		s.recvLeft = max(s.recvLeft, defaultWindow)
	}
	m.streams.add(s)
}

// receive takes what came of the body; last says that it was all.
func (s *stream) receive(b []byte, last bool) {
	s.got += int64(len(b))
	if s.length >= 0 && (s.got > s.length || last && s.got != s.length) {
		s.m.grant(len(b))
		s.m.malformed(s, errLengthWrong)
		return
	}
	s.inEnded = last
	if d := s.to; d != nil && s.keep == 0 && s.in.left == 0 && d.m.blocked.first == nil {
		b = s.forward(d, b, last)
		if d.outEnded {
			return
		}
	}
	if len(b) > 0 {
		s.in.append(s.m.stock, b)
	}
	s.pump(maxWindow)
	if last {
		s.wake()
	}
}

// forward sends b on, without a stay in the queue, and returns what could not be sent.
func (s *stream) forward(d *stream, b []byte, last bool) []byte {
	for len(b) > 0 && d.err == nil && !d.outEnded {
		n := d.most(len(b))
		if n == 0 {
			break
		}
		d.sendData(b[:n], last && n == len(b) && s.trailers == nil)
		s.whole = false
		s.took(n)
		b = b[n:]
	}
	return b
}

// most is how much of n bytes may be sent at once.
func (s *stream) most(n int) int {
	m := s.m
	most := min(n, maxFrame, s.window, m.window, m.free())
	if most <= 0 || most < n && most < smallestData && most == m.free() {
		return 0
	}
	return most
}

// pump sends on what is in the queue, at most about so much while others wait.
func (s *stream) pump(limit int) {
	d := s.to
	if d == nil || d.outEnded || d.err != nil || d.m.dead != nil {
		return
	}
	for s.in.left > 0 {
		b := s.in.next()
		n := d.most(len(b))
		if n == 0 || limit <= 0 && d.m.blocked.first != nil {
			if d.window > 0 {
				d.m.blocked.add(s)
			}
			return
		}
		d.sendData(b[:n], s.inEnded && n == s.in.left && s.trailers == nil)
		s.in.pass(n)
		if s.in.kept > s.keep {
			s.whole = false
			s.in.drop(s.m.stock)
		}
		s.took(n)
		limit -= n
	}
	if s.inEnded && !d.outEnded {
		d.sendEnd(s.trailers)
	}
}

// took says that n bytes need not be held any more: the peer may send as many.
func (s *stream) took(n int) {
	s.m.grant(n)
	if s.owed += n; s.owed >= s.m.cfg.StreamWindow/2 && !s.inEnded && s.listed {
		s.m.out = appendWindowUpdate(s.m.room(), s.id, s.owed)
		s.recvLeft += s.owed
		s.owed = 0
		s.m.touch()
	}
}

// sendData sends b, which most allowed.
func (s *stream) sendData(b []byte, end bool) {
	flags := uint8(0)
	if end {
		flags, s.outEnded = flagEndStream, true
	}
	m := s.m
	m.out = append(appendHeader(m.room(), len(b), frameData, flags, s.id), b...)
	s.window -= len(b)
	m.window -= len(b)
	m.sentData += 2 * len(b)
	s.sent += int64(len(b))
	m.useful()
	m.touch()
	if end {
		s.wake()
	}
}

// sendEnd ends what is sent, with a trailer section if there is one.
func (s *stream) sendEnd(trailers *hpack.Head) {
	s.outEnded = true
	s.wake()
	if trailers != nil {
		out, from := s.m.beginHeaders(s.id, true)
		begun := len(out)
		for i := range trailers.Fields {
			f := &trailers.Fields[i]
			if inTrailer(f) && !(s.edits != nil && s.edits.drops(f.Name)) {
				out = s.m.enc.Field(out, f)
			}
		}
		if len(out) > begun {
			s.m.endHeaders(out, from)
			return
		}
		s.m.out = out[:from]
	}
	s.m.out = appendHeader(s.m.room(), 0, frameData, flagEndStream, s.id)
	s.m.touch()
}

// opened goes on sending, after the peer gave new credit.
func (s *stream) opened() {
	if s.window <= 0 {
		return
	}
	if s.from != nil {
		s.from.pump(maxWindow)
	} else {
		s.wake()
	}
}

// link has what comes on s go out on d.
func (s *stream) link(d *stream) { s.to, d.from = d, s }

func (s *stream) unlink() {
	if s.waits != nil {
		s.waits.remove(s)
	}
	if s.to != nil {
		s.to.from = nil
		s.to = nil
	}
}

// over ends s because the peer reset it or the connection is over. An answer that is
// whole is not spoilt by that.
func (s *stream) over(err error) {
	s.m.streams.remove(s)
	if s.err == nil {
		s.err = err
	}
	if s.up == nil { // nobody will answer it: what came is of no use
		s.unlink()
		s.discard()
	}
	s.wake()
}

// wake has the exchange's task look again.
func (s *stream) wake() {
	if s.x != nil {
		s.x.w.Wake()
	}
}

// fail resets s for a fault of the peer.
func (m *mux) fail(s *stream, code ErrCode, err error) {
	s.ours = true
	m.sendReset(s, code)
	s.over(err)
	m.inVain()
}

// malformed resets s for a message that is.
func (m *mux) malformed(s *stream, err *refusal) { m.fail(s, ProtocolError, err) }

// sendReset tells the peer that s is over, if it is not for it.
func (m *mux) sendReset(s *stream, code ErrCode) {
	if !s.listed || m.closed {
		return
	}
	m.out = appendReset(m.room(), s.id, code)
	m.touch()
	m.streams.remember(s.id)
	m.streams.remove(s)
}

// discard gives back what is in the queue, with its credit.
func (s *stream) discard() {
	if s.m == nil {
		return
	}
	if s.in.left > 0 {
		s.m.grant(s.in.left)
	}
	s.in.reset(s.m.stock)
}
