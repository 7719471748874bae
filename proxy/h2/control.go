package h2

import (
	"encoding/binary"
	"strconv"
)

func itoa(n int) string { return strconv.Itoa(n) }

// settings handles SETTINGS, RFC 9113 section 6.5.
func (m *mux) settings(h *frameHeader, b []byte) *connError {
	switch {
	case h.id != 0:
		return protocol(ProtocolError, "SETTINGS of a stream")
	case h.has(flagAck) && len(b) != 0, len(b)%6 != 0:
		return protocol(FrameSizeError, "SETTINGS of a wrong size")
	case h.has(flagAck):
		m.acked = true
		return m.idleControl()
	}
	before := m.initial
	for ; len(b) > 0; b = b[6:] {
		if e := m.setting(binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:])); e != nil {
			return e
		}
	}
	first := !m.greeted
	m.greeted = true
	m.out = appendHeader(m.room(), 0, frameSettings, flagAck, 0)
	m.touch()
	if m.initial > before { // after the acknowledgement, as those expect who count
		m.streams.each((*stream).opened)
	}
	if first {
		m.side.grew()
		return nil
	}
	return m.idleControl()
}

func (m *mux) setting(id uint16, v uint32) *connError {
	switch id {
	case settingTableSize:
		m.enc.SetMaxTableSize(v)
	case settingPush:
		if v > 1 {
			return protocol(ProtocolError, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")
		}
	case settingMaxStreams:
		m.peerStreams, m.limited = v, true
		if m.greeted {
			m.side.grew()
		}
	case settingConnect:
		m.connects = v == 1
	case settingWindow:
		return m.setInitial(v)
	case settingMaxFrame:
		if v < maxFrame || v > 1<<24-1 {
			return protocol(ProtocolError, "SETTINGS_MAX_FRAME_SIZE out of bounds")
		}
	}
	return nil
}

// setInitial moves the windows of all streams, RFC 9113 section 6.9.2.
func (m *mux) setInitial(v uint32) *connError {
	if v > maxWindow {
		return protocol(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE out of bounds")
	}
	delta := int(v) - m.initial
	m.initial = int(v)
	var e *connError
	m.streams.each(func(s *stream) {
		if s.window += delta; s.window > maxWindow {
			e = protocol(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE overflows a window")
		}
	})
	return e
}

// ping answers PING, RFC 9113 section 6.7.
func (m *mux) ping(h *frameHeader, b []byte) *connError {
	switch {
	case h.id != 0:
		return protocol(ProtocolError, "PING of a stream")
	case len(b) != 8:
		return protocol(FrameSizeError, "PING of a wrong size")
	case h.has(flagAck):
		m.side.ponged([8]byte(b))
		return m.idleControl()
	}
	m.out = appendPing(m.room(), flagAck, b)
	m.touch()
	return m.idleControl()
}

// windowUpdate takes new credit, RFC 9113 section 6.9.
func (m *mux) windowUpdate(h *frameHeader, b []byte) *connError {
	if len(b) != 4 {
		return protocol(FrameSizeError, "WINDOW_UPDATE of a wrong size")
	}
	n := int(binary.BigEndian.Uint32(b) & maxWindow)
	if n >= smallestData && n <= m.sentData { // it gives back what was sent, in fair pieces
		m.sentData -= n
	} else if e := m.idleControl(); e != nil {
		return e
	}
	if h.id == 0 {
		if n == 0 {
			return protocol(ProtocolError, "WINDOW_UPDATE by nothing")
		}
		if m.window += n; m.window > maxWindow {
			return protocol(FlowControlError, "WINDOW_UPDATE overflows the window of the connection")
		}
		m.serve()
		return nil
	}
	s := m.streams.find(h.id)
	switch {
	case s == nil && !m.known(h.id):
		return protocol(ProtocolError, "WINDOW_UPDATE of a stream that was not begun")
	case s == nil: // it is over: both may be on their way at once
		return nil
	case n == 0:
		m.fail(s, ProtocolError, errNoCredit)
		return nil
	}
	if s.window += n; s.window > maxWindow {
		m.fail(s, FlowControlError, errOverflow)
		return nil
	}
	s.opened()
	return nil
}

// reset handles RST_STREAM, RFC 9113 section 6.4.
func (m *mux) reset(h *frameHeader, b []byte) *connError {
	switch {
	case h.id == 0:
		return protocol(ProtocolError, "RST_STREAM of no stream")
	case len(b) != 4:
		return protocol(FrameSizeError, "RST_STREAM of a wrong size")
	}
	s := m.streams.find(h.id)
	switch {
	case s == nil && !m.known(h.id):
		return protocol(ProtocolError, "RST_STREAM of a stream that was not begun")
	case s == nil:
		return m.idleControl()
	}
	code := ErrCode(binary.BigEndian.Uint32(b))
	early := !s.outBegun
	s.safe = s.safe || code == RefusedStream
	s.over(&ResetError{code})
	if early {
		m.inVain()
	}
	return nil
}

// goAway handles GOAWAY, RFC 9113 section 6.8.
func (m *mux) goAway(h *frameHeader, b []byte) *connError {
	switch {
	case h.id != 0:
		return protocol(ProtocolError, "GOAWAY of a stream")
	case len(b) < 8:
		return protocol(FrameSizeError, "GOAWAY of a wrong size")
	}
	m.side.goneAway(binary.BigEndian.Uint32(b)&maxStreamID, ErrCode(binary.BigEndian.Uint32(b[4:])))
	return m.idleControl()
}

// streamFault resets a stream for a fault in a frame that is not its own, if it is there.
func (m *mux) streamFault(id uint32, code ErrCode) *connError {
	if s := m.streams.find(id); s != nil {
		m.fail(s, code, errFrame)
		return nil
	}
	m.out = appendReset(m.room(), id, code)
	m.touch()
	m.inVain()
	return nil
}
