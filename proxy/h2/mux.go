package h2

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
	"github.com/weir-mesh/weir/proxy/loop"
)

// mux is one connection: what its two kinds, a client's session and a link to an
// upstream, have in common.
type mux struct {
	conn  loop.Stream
	bare  *loop.Conn // conn, if nothing is over the socket
	l     *loop.Loop
	stock *stock
	cfg   *Config
	side  side

	reader
	writer
	streams table

	recvLeft int    // what the peer may still send on the connection
	owed     int    // taken from it and not granted anew yet
	window   int    // what we may send
	initial  int    // what we may send on a new stream
	acked    bool   // the peer knows our settings
	greeted  bool   // its SETTINGS came
	connects bool   // and said that it takes extended CONNECT
	maxID    uint32 // the highest stream that the client of the connection began

	control budget
	resets  budget
	tired   *connError // a budget is used up

	dead    error     // why the connection is of no use any more; nil while it is
	closed  bool      // the socket was closed
	leaving bool      // GOAWAY said why, or the last request is over: only the end is awaited
	leaveBy time.Time // when it is awaited no longer
	alarmed time.Time // the read deadline; zero: none
}

// side is what differs between the two kinds.
type side interface {
	loop.Task // the reader
	// beginHead gives the place for a head that came on a stream, and endHead is called
	// at once when it was decoded.
	beginHead(id uint32) (*hpack.Head, *connError)
	endHead(id uint32, endStream bool) *connError
	// broken is called for each stream whose connection ended, and ended at last.
	broken(s *stream)
	ended()
	goneAway(last uint32, code ErrCode)
	ponged(payload [8]byte)
	grew() // the peer allows more streams, or fewer
	// due does what is due, and says when something will be; zero: nothing.
	due(now time.Time) time.Time
}

func (m *mux) init(s loop.Stream, cfg *Config, sd side) {
	m.conn, m.l, m.cfg, m.side = s, s.Socket().Loop(), cfg, sd
	m.bare, _ = s.(*loop.Conn)
	m.stock = stockOf(m.l)
	m.dec.Classify = classify
	m.recvLeft, m.window, m.initial = cfg.connWindow(), defaultWindow, defaultWindow
	m.control = budget{left: cfg.MaxControl, most: cfg.MaxControl, perSecond: controlPerSecond}
	m.resets = budget{left: cfg.MaxResets, most: cfg.MaxResets, perSecond: resetsPerSecond}
	m.flusher.m = m
}

func (m *mux) now() time.Time {
	if m.cfg.Now != nil {
		return m.cfg.Now()
	}
	return m.l.Now()
}

// budget is a token bucket of what a peer may ask for in vain.
type budget struct {
	left, most, perSecond int
	since                 time.Duration
}

// take takes one, false when none is left. age is the loop's.
func (b *budget) take(age time.Duration) bool {
	switch b.left {
	case 0:
		if n := int(age-b.since) * b.perSecond / int(time.Second); n > 0 {
			b.left, b.since = min(n, b.most), age
		}
	case b.most:
		b.since = age
	}
	if b.left == 0 {
		return false
	}
	b.left--
	return true
}

// useful is called for each frame of a head or body.
func (m *mux) useful() { m.control.left = min(m.control.left+controlPerFrame, m.control.most) }

// idleControl is called for each frame that carries nothing.
func (m *mux) idleControl() *connError {
	if !m.control.take(m.l.Age()) {
		return flood("too many PING, SETTINGS, PRIORITY, WINDOW_UPDATE or empty frames")
	}
	return nil
}

// inVain is called for each request that came to nothing. The reader ends the
// connection when there are too many.
func (m *mux) inVain() {
	if !m.resets.take(m.l.Age()) {
		m.tired = flood("too many requests that were reset, refused or malformed")
	}
}

// fatal ends the connection for a fault of the peer, who is told.
func (m *mux) fatal(e *connError) {
	if m.dead != nil {
		return
	}
	m.dead = e
	m.out = appendGoAway(m.room(), m.maxID, e.code, e.text)
	m.leave()
	m.breakAll()
}

// lost ends the connection because the socket did, or has to.
func (m *mux) lost(err error) {
	if m.dead == nil {
		if err == io.EOF {
			err = ErrTruncated
		}
		m.dead = err
	}
	m.close()
}

// leave waits for the peer to close, so that what was sent last is read: closing with
// unread bytes would reset the connection and could take it along. It ends after a
// second or 256 KiB, whichever is first.
func (m *mux) leave() {
	if m.leaving || m.closed {
		return
	}
	m.leaving = true
	m.leaveBy = m.now().Add(time.Second)
	m.lingered = 0
	m.alarm(m.leaveBy)
	m.touch()
}

// alarm has the reader look again at a time, or earlier. The deadline of a connection
// moves only for an earlier one, or when it has come.
func (m *mux) alarm(by time.Time) {
	if !by.IsZero() && (m.alarmed.IsZero() || by.Before(m.alarmed)) {
		m.alarmed = by
		_ = m.conn.SetReadDeadline(by) // fails on a closed connection only
	}
}

// tend looks after what is due, whenever something was read or the alarm went off.
func (m *mux) tend() {
	now := m.now()
	if !m.alarmed.IsZero() && !now.Before(m.alarmed) {
		m.alarmed = time.Time{}
		_ = m.conn.SetReadDeadline(m.alarmed) // fails on a closed connection only
	}
	switch {
	case m.leaving && !now.Before(m.leaveBy):
		m.lost(io.EOF)
	case m.leaving:
	case !m.partBy.IsZero() && !now.Before(m.partBy):
		m.fatal(&connError{EnhanceYourCalm, "a frame, a head or the preface took too long", errSlow})
	}
	if m.closed {
		return
	}
	next := m.side.due(now)
	if m.leaving {
		next = m.leaveBy
	} else if !m.partBy.IsZero() && (next.IsZero() || m.partBy.Before(next)) {
		next = m.partBy
	}
	m.alarm(next)
}

// breakAll tells every stream that the connection is over.
func (m *mux) breakAll() {
	for _, s := range m.streams.takeAll() {
		m.side.broken(s)
	}
	for s := m.blocked.first; s != nil; s = m.blocked.first {
		m.blocked.remove(s)
		s.wake()
	}
	for len(m.heads) > 0 {
		x := m.heads[0]
		m.heads.remove(x)
		x.w.Wake()
	}
}

// close closes the socket, tells all streams and then the side.
func (m *mux) close() {
	if m.closed {
		return
	}
	m.closed = true
	if m.dead == nil {
		m.dead = net.ErrClosed
	}
	_ = m.conn.Close()
	m.breakAll()
	m.stock.give(m.out)
	m.out = nil
	if !m.reading {
		m.dropInput()
	}
	m.side.ended()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
