package h2

import (
	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

const (
	// outMost is how much DATA and how many heads wait for the socket; what answers a
	// peer's frames comes on top of it.
	outMost = bufferSize - 2<<10
	// unreadMost is what may wait of such answers before the peer is taken for one
	// that does not read.
	unreadMost = 256 << 10
	// smallestData is less than what is worth a frame of its own, unless it ends a body
	// or all there is.
	smallestData = 1 << 10
)

// writer is the sending half of a connection.
type writer struct {
	out         []byte // frames to be written; nil if there are none
	enc         hpack.Encoder
	blocked     list  // streams whose data waits for room, or for the window of the connection
	heads       heads // exchanges that wait for room, most often for a head
	flusher     flusher
	hears       bool   // what came is heard though nothing can be written any more
	flushing    bool   // the flusher runs, or will
	dirty       bool   // in stock.dirty
	sentData    int    // bytes of DATA that a stream and the connection may get back
	peerStreams uint32 // how many streams the peer allows
	limited     bool   // it said so
}

// room is m.out, to be appended to.
func (m *mux) room() []byte {
	if m.out == nil && !m.closed {
		m.out = m.stock.take(bufferSize)[:0]
	}
	return m.out
}

// free is how many bytes of DATA may be added.
func (m *mux) free() int { return outMost - len(m.out) }

// touch says that there is something to be written. Whoever calls it, or has it
// called, calls settle in the end.
func (m *mux) touch() {
	if !m.dirty && !m.flushing && !m.closed {
		m.dirty = true
		m.stock.dirty = append(m.stock.dirty, m)
	}
}

// settle sees that everything goes out that is to be written on this loop: at once
// if no other task could add to it, else when those that are ready have run.
func (s *stock) settle() {
	if len(s.dirty) == 0 {
		return
	}
	alone := s.loop.Alone()
	for i := 0; i < len(s.dirty); i++ { // flushing one may touch another
		m := s.dirty[i]
		if s.dirty[i] = nil; m == nil { // was looked after by a call from inside this one
			continue
		}
		if m.dirty = false; m.closed || m.flushing {
			continue
		}
		if alone && m.tryFlush() {
			continue
		}
		if m.flushing = true; !m.closed {
			m.conn.Socket().Begin(&m.flusher)
		}
	}
	s.dirty = s.dirty[:0]
}

func (m *mux) settle() { m.stock.settle() }

// tryFlush writes what there is room for without waiting, and reports whether
// nothing is left to do.
func (m *mux) tryFlush() bool {
	if m.bare == nil {
		return false
	}
	if len(m.out) > 0 {
		n, err := m.bare.TryWrite(m.out)
		if err != nil {
			m.lastWords(err)
			return true
		}
		if n < len(m.out) {
			m.out = m.out[:copy(m.out, m.out[n:])]
			return false
		}
		m.stock.give(m.out)
		m.out = nil
		m.serve()
	}
	return len(m.out) == 0 && !m.leaving
}

// flusher is the task that writes.
type flusher struct{ m *mux }

func (f *flusher) Run() { f.m.flush() }

func (m *mux) flush() {
	for len(m.out) > 0 && !m.closed {
		b := m.out
		m.out = nil
		_ = m.conn.SetWriteDeadline(m.now().Add(m.cfg.StallTimeout)) // fails on a closed connection only, as the write will
		_, err := m.conn.Write(b)
		m.stock.give(b)
		if err != nil {
			m.flushing = false
			if isTimeout(err) {
				err = errSlow
			}
			m.lastWords(err)
			m.settle()
			return
		}
		m.serve()
	}
	m.flushing = false
	if m.leaving && !m.closed {
		_ = m.conn.CloseWrite() // the peer may be gone: then reading says so
	}
	m.settle()
}

// lastWords reads what an upstream said that cannot be written to any more: most often
// it has sent GOAWAY, which tells what of the requests may be sent elsewhere.
func (m *mux) lastWords(err error) {
	for range 4 {
		if !m.hears || m.reading || m.closed || m.leaving || m.fill() != nil || m.parse() != nil {
			break
		}
	}
	m.lost(err)
}

// unread reports that the peer does not take the answers to its own frames.
func (m *mux) unread() *connError {
	if len(m.out) > unreadMost {
		return flood("the answers to frames are not read")
	}
	return nil
}

// serve lets those that wait for room have it, in turn: heads, then a frame each.
func (m *mux) serve() {
	for free := m.free(); len(m.heads) > 0 && free > 0; free -= smallestData { // which most heads are less than
		x := m.heads[0]
		m.heads.remove(x)
		x.w.Wake()
	}
	for m.blocked.first != nil && !m.closed && m.window > 0 && m.free() > smallestData {
		s := m.blocked.first
		m.blocked.remove(s)
		s.pump(maxFrame)
	}
}

// beginHeaders appends the header of a HEADERS frame, to be ended by endHeaders.
func (m *mux) beginHeaders(id uint32, endStream bool) (out []byte, from int) {
	flags := uint8(flagEndHeaders)
	if endStream {
		flags |= flagEndStream
	}
	out = m.room()
	from = len(out)
	return m.enc.Begin(appendHeader(out, 0, frameHeaders, flags, id)), from
}

func (m *mux) endHeaders(out []byte, from int) {
	m.out = patchLength(out, from)
	m.useful()
	m.touch()
}
