package h2

import (
	"encoding/binary"
	"io"
	"time"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
	"github.com/weir-mesh/weir/proxy/loop"
)

// reader is the receiving half of a connection.
type reader struct {
	buf      []byte // nil while there is nothing in it
	r, w     int    // unread bytes are buf[r:w]
	dec      hpack.Decoder
	expect   string // what is left of the preface that has to come first
	data     dataFrame
	block    block
	partBy   time.Time // when what has begun (a frame, a head, the preface) has to be whole; zero: nothing has
	reading  bool      // in a task
	lingered int
}

// dataFrame is a DATA frame of which not all has come: its content is passed on as it
// comes, so that it need not fit a buffer.
type dataFrame struct {
	s         *stream // nil: nobody wants it
	id        uint32
	left, pad int
	end       bool
	on        bool
}

// block is a head of several frames of which not all have come.
type block struct {
	id     uint32 // 0: there is none
	end    bool   // END_STREAM
	fields []byte
	frames int
}

// pull reads once and takes the frames apart that are there. It reports false when
// the connection is over.
func (m *mux) pull() bool {
	m.reading = true
	defer func() { m.reading = false }()
	err := m.fill()
	switch {
	case m.closed:
	case err == loop.ErrWouldBlock:
	case err != nil:
		m.lost(err)
	case m.leaving:
		if m.lingered += m.w - m.r; m.lingered > 256<<10 {
			m.lost(io.EOF)
		}
		m.r = m.w
	default:
		if e := m.parse(); e != nil {
			m.fatal(e)
			m.r = m.w
		}
	}
	if m.closed {
		m.dropInput()
		return false
	}
	m.release()
	return true
}

// fill reads into the buffer what is there.
func (m *mux) fill() error {
	if !m.conn.Readable() {
		return loop.ErrWouldBlock
	}
	switch {
	case m.buf == nil:
		m.buf = m.stock.take(bufferSize)
	case m.r > 0: // part of a frame is left
		m.w = copy(m.buf, m.buf[m.r:m.w])
		m.r = 0
	}
	n, err := m.conn.TryRead(m.buf[m.w:])
	m.w += max(n, 0)
	if n > 0 {
		return nil
	}
	return err
}

// release gives the buffer back if nothing is in it.
func (m *mux) release() {
	if m.r == m.w && m.buf != nil {
		m.stock.give(m.buf)
		m.buf, m.r, m.w = nil, 0, 0
	}
}

func (m *mux) dropInput() {
	m.r = m.w
	m.release()
	m.data = dataFrame{}
	m.block = block{}
}

// parse takes apart what is in the buffer, up to the beginning of a frame that is not
// whole.
func (m *mux) parse() *connError {
	for !m.leaving && !m.closed {
		if m.tired != nil {
			return m.tired
		}
		if m.expect != "" {
			if e := m.parsePreface(); e != nil {
				return e
			}
			if m.expect != "" {
				break
			}
		}
		if m.data.on && !m.parseData() {
			break
		}
		b := m.buf[m.r:m.w]
		if len(b) < headerLen {
			break
		}
		h := parseHeader(b)
		if e := m.admit(&h); e != nil {
			return e
		}
		if h.kind == frameData {
			e, begun := m.beginData(&h, b[headerLen:])
			if e != nil {
				return e
			}
			if !begun {
				break
			}
			continue
		}
		if len(b) < headerLen+h.length {
			break
		}
		m.r += headerLen + h.length
		if e := m.frame(&h, b[headerLen:headerLen+h.length]); e != nil {
			return e
		}
		if e := m.unread(); e != nil {
			return e
		}
	}
	m.noteParts()
	return nil
}

// noteParts sees that what has begun ends in time.
func (m *mux) noteParts() {
	if m.expect == "" && m.block.id == 0 && (m.r == m.w || m.data.on) {
		m.partBy = time.Time{}
	} else if m.partBy.IsZero() {
		m.partBy = m.now().Add(m.cfg.HeadTimeout)
	}
}

func (m *mux) parsePreface() *connError {
	n := min(m.w-m.r, len(m.expect))
	if string(m.buf[m.r:m.r+n]) != m.expect[:n] {
		return protocol(ProtocolError, "not the connection preface of HTTP/2")
	}
	m.r, m.expect = m.r+n, m.expect[n:]
	return nil
}

// admit checks what a frame's header alone can tell.
func (m *mux) admit(h *frameHeader) *connError {
	switch {
	case h.length > maxFrame:
		return protocol(FrameSizeError, "frame of more than 16384 bytes")
	case !m.greeted && (h.kind != frameSettings || h.has(flagAck)):
		return protocol(ProtocolError, "the first frame is not SETTINGS")
	case m.block.id != 0 && (h.kind != frameContinuation || h.id != m.block.id):
		return protocol(ProtocolError, "a head was broken off by another frame")
	}
	return nil
}

// frame handles a whole frame.
func (m *mux) frame(h *frameHeader, b []byte) *connError {
	switch h.kind {
	case frameHeaders:
		return m.headers(h, b)
	case frameContinuation:
		return m.continuation(h, b)
	case frameReset:
		return m.reset(h, b)
	case frameSettings:
		return m.settings(h, b)
	case framePing:
		return m.ping(h, b)
	case frameGoAway:
		return m.goAway(h, b)
	case frameWindowUpdate:
		return m.windowUpdate(h, b)
	case framePriority:
		if h.id == 0 {
			return protocol(ProtocolError, "PRIORITY of no stream")
		}
		if len(b) != 5 {
			return m.streamFault(h.id, FrameSizeError)
		}
		if binary.BigEndian.Uint32(b)&maxStreamID == h.id {
			return m.streamFault(h.id, ProtocolError)
		}
	case framePush:
		return protocol(ProtocolError, "PUSH_PROMISE, which is not allowed here")
	}
	return m.idleControl()
}

// headers begins a head.
func (m *mux) headers(h *frameHeader, b []byte) *connError {
	if h.id == 0 {
		return protocol(ProtocolError, "HEADERS of no stream")
	}
	pad := 0
	if h.has(flagPadded) {
		if len(b) == 0 {
			return protocol(FrameSizeError, "HEADERS is too short")
		}
		pad, b = int(b[0]), b[1:]
	}
	if h.has(flagPriority) {
		if len(b) < 5 {
			return protocol(FrameSizeError, "HEADERS is too short")
		}
		if binary.BigEndian.Uint32(b)&maxStreamID == h.id {
			return protocol(ProtocolError, "a stream that depends on itself")
		}
		b = b[5:]
	}
	if pad > len(b) {
		return protocol(ProtocolError, "more padding than frame")
	}
	b = b[:len(b)-pad]
	if h.has(flagEndHeaders) {
		return m.decode(h.id, b, h.has(flagEndStream))
	}
	m.block = block{id: h.id, end: h.has(flagEndStream), fields: append([]byte(nil), b...)}
	return nil
}

// continuation goes on with a head. Frames that add little are counted.
func (m *mux) continuation(h *frameHeader, b []byte) *connError {
	p := &m.block
	if p.id == 0 {
		return protocol(ProtocolError, "CONTINUATION of nothing")
	}
	if len(p.fields)+len(b) > m.cfg.MaxHeadBytes {
		return flood("a header block of more than " + sizeText(m.cfg.MaxHeadBytes))
	}
	if p.frames++; p.frames > 2 && len(b) < maxFrame/16 {
		if e := m.idleControl(); e != nil {
			return e
		}
	}
	p.fields = append(p.fields, b...)
	if !h.has(flagEndHeaders) {
		return nil
	}
	whole := *p
	*p = block{}
	return m.decode(whole.id, whole.fields, whole.end)
}

// decode decodes a whole head. Its place is asked for only now: while it came, its
// stream may have ended, and what belonged to it may serve another.
func (m *mux) decode(id uint32, fields []byte, end bool) *connError {
	head, e := m.side.beginHead(id)
	if e != nil {
		return e
	}
	if err := m.dec.Decode(head, fields, hpack.Limits{Size: m.cfg.MaxHeadBytes, Fields: m.cfg.MaxFields}); err != nil {
		return &connError{CompressionError, err.Error(), ErrMalformed}
	}
	m.useful()
	return m.side.endHead(id, end)
}

// beginData begins a DATA frame; false when its header is not whole.
func (m *mux) beginData(h *frameHeader, b []byte) (e *connError, begun bool) {
	if h.id == 0 {
		return protocol(ProtocolError, "DATA of no stream"), false
	}
	overhead, pad := 0, 0
	if h.has(flagPadded) {
		if h.length == 0 {
			return protocol(FrameSizeError, "DATA is too short"), false
		}
		if len(b) == 0 {
			return nil, false
		}
		if overhead, pad = 1, int(b[0]); pad >= h.length {
			return protocol(ProtocolError, "more padding than frame"), false
		}
	}
	m.r += headerLen + overhead
	if m.recvLeft -= h.length; m.recvLeft < 0 {
		return protocol(FlowControlError, "DATA beyond the window of the connection"), false
	}
	m.data = dataFrame{id: h.id, left: h.length - overhead - pad, pad: pad, end: h.has(flagEndStream), on: true}
	m.grant(overhead + pad)
	s := m.streams.find(h.id)
	if m.data.left == 0 && !m.data.end {
		if e := m.idleControl(); e != nil {
			return e, false
		}
	} else {
		m.useful()
	}
	if s == nil {
		return m.dataOfNobody(h), true
	}
	if s.inEnded {
		m.fail(s, StreamClosed, errClosedData)
		return nil, true
	}
	if s.recvLeft -= h.length; s.recvLeft < 0 {
		m.fail(s, FlowControlError, errBeyond)
		return nil, true
	}
	s.owed += overhead + pad
	m.data.s = s
	return nil, true
}

// dataOfNobody is DATA of a stream that is over, or never was.
func (m *mux) dataOfNobody(h *frameHeader) *connError {
	switch {
	case !m.known(h.id):
		return protocol(ProtocolError, "DATA of a stream that was not begun")
	case m.streams.wasReset(h.id): // it was under way when we reset
		return nil
	}
	m.out = appendReset(m.room(), h.id, StreamClosed)
	m.touch()
	m.inVain()
	return nil
}

// known reports whether a stream of that number was ever begun.
func (m *mux) known(id uint32) bool { return id&1 == 1 && id <= m.maxID }

// parseData passes on what came of a DATA frame; false when there is more to come.
func (m *mux) parseData() bool {
	d := &m.data
	n := min(d.left, m.w-m.r)
	b := m.buf[m.r : m.r+n]
	m.r, d.left = m.r+n, d.left-n
	if d.s != nil && d.s.id == d.id && d.s.m == m && d.s.listed {
		if n > 0 || d.end && d.left == 0 {
			d.s.receive(b, d.end && d.left == 0)
		}
	} else {
		m.grant(n)
	}
	skip := min(d.pad, m.w-m.r)
	if d.left > 0 {
		return false
	}
	m.r, d.pad = m.r+skip, d.pad-skip
	if d.pad > 0 {
		return false
	}
	*d = dataFrame{}
	return true
}

// grant gives the peer new credit on the connection, for bytes that are not held.
func (m *mux) grant(n int) {
	if m.owed += n; m.owed >= connSlack && !m.closed {
		m.out = appendWindowUpdate(m.room(), 0, m.owed)
		m.recvLeft += m.owed
		m.owed = 0
		m.touch()
	}
}

func sizeText(n int) string {
	if n >= 1024 {
		return itoa(n/1024) + " KiB"
	}
	return itoa(n) + " bytes"
}
