package h2

import (
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
	"github.com/weir-mesh/weir/proxy/loop"
)

// session is a client's connection.
type session struct {
	mux
	user   User
	active int // requests whose handler has not returned

	incoming *Exchange // whose head is being read
	trailing *stream   // whose trailer section is being read
	scratch  hpack.Head
	last     *Exchange // to be handled by the reader's own task

	idleSince  time.Duration // the loop's age when the last request ended
	going      going
	connecting bool   // extended CONNECT was offered
	cut        bool   // with requests at hand
	lastID     uint32 // of the last GOAWAY: streams after it are not looked at
	reported   bool
}

// going is how far the end of a session has come, RFC 9113 section 6.8: the client is
// asked to begin nothing, and after a round trip it is told what was looked at.
type going uint8

const (
	staying going = iota
	asked
	told
)

func newSession(cfg *Config, s loop.Stream, u User) *session {
	c := &session{user: u}
	c.init(s, cfg, c)
	c.lastID = maxStreamID
	c.expect = preface
	return c
}

// begin greets the client and serves what is there.
func (s *session) begin(peeked []byte) {
	if len(peeked) > bufferSize {
		s.dead = errPeeked
		s.close()
		return
	}
	out := appendHeader(s.room(), 18, frameSettings, 0, 0)
	length := len(out) - 9
	out = appendSetting(out, settingMaxStreams, s.cfg.MaxStreams)
	out = appendSetting(out, settingWindow, s.cfg.StreamWindow)
	out = appendSetting(out, settingMaxHeadBytes, s.cfg.MaxHeadBytes)
	if c, ok := s.user.(Connecter); ok && c.Connects() {
		s.connecting = true
		out = appendSetting(out, settingConnect, 1)
	}
	out[length+2] = byte(len(out) - length - 9) // all that was set
	if more := s.cfg.connWindow() - defaultWindow; more > 0 {
		out = appendWindowUpdate(out, 0, more)
	}
	s.out = out
	s.touch()
	s.idleSince = s.l.Age()
	s.noteParts()
	if len(peeked) > 0 {
		s.buf = s.stock.take(bufferSize)
		s.w = copy(s.buf, peeked)
		s.reading = true
		if e := s.parse(); e != nil {
			s.fatal(e)
			s.r = s.w
		}
		s.reading = false
		if s.closed {
			s.dropInput()
		}
		s.release()
	}
	s.Run()
}

var errPeeked = errors.New("more was peeked than a buffer holds")

// Run is the reader.
func (s *session) Run() {
	if s.pull() {
		if s.tend(); !s.closed {
			s.conn.Park(s)
		}
	}
	s.settle()
	if x := s.last; x != nil {
		s.last = nil
		x.Run()
	}
}

// due implements side.
func (s *session) due(now time.Time) time.Time {
	if s.leaving {
		return time.Time{}
	}
	if s.going == staying && s.user.Draining() {
		s.drain()
	}
	if s.active > 0 {
		return time.Time{}
	}
	until := s.l.At(s.idleSince).Add(s.cfg.IdleTimeout)
	if now.Before(until) {
		return until
	}
	s.dead = errIdle
	s.out = appendGoAway(s.room(), s.maxID, NoError, "")
	s.leave()
	return time.Time{}
}

var errIdle = errors.New("idle for too long")

// drainPing asks for the answer that shows that the first GOAWAY was read.
var drainPing = [8]byte{'w', 'e', 'i', 'r', 'b', 'y', 'e', 0}

// drainTime is how long that answer may take.
const drainTime = time.Second

func (s *session) drain() {
	if s.going != staying || s.dead != nil {
		return
	}
	s.going = asked
	s.out = appendGoAway(s.room(), maxStreamID, NoError, "")
	s.out = appendPing(s.out, 0, drainPing[:])
	s.touch()
	s.l.AfterFunc(drainTime, func() { s.drained(); s.settle() })
}

// drained says what was looked at: all that came until now.
func (s *session) drained() {
	if s.going != asked || s.dead != nil {
		return
	}
	s.going, s.lastID = told, s.maxID
	s.out = appendGoAway(s.room(), s.maxID, NoError, "")
	s.touch()
	s.finishIfDone()
}

func (s *session) finishIfDone() {
	if s.going == told && s.active == 0 && s.dead == nil {
		s.dead = errDrained
		s.leave()
	}
}

var errDrained = errors.New("drained")

func (s *session) ponged(payload [8]byte) {
	// Who has just connected is about to ask for something, and net/http gives up a
	// request whose connection ends before its first: it gets drainTime.
	if payload == drainPing && s.maxID > 0 {
		s.drained()
	}
}

func (s *session) goneAway(uint32, ErrCode) {} // the client begins nothing more, and may want its answers
func (s *session) grew()                    {}

// beginHead implements side.
func (s *session) beginHead(id uint32) (*hpack.Head, *connError) {
	s.incoming, s.trailing = nil, nil
	if id&1 == 0 {
		return nil, protocol(ProtocolError, "a client's stream has an even number")
	}
	if id <= s.maxID {
		return s.beginTrailers(id)
	}
	s.maxID = id
	if id > s.lastID {
		s.scratch.Reset()
		return &s.scratch, nil
	}
	x := s.stock.takeExchange()
	x.s = s
	s.incoming = x
	return &x.req.head, nil
}

func (s *session) beginTrailers(id uint32) (*hpack.Head, *connError) {
	s.scratch.Reset()
	st := s.streams.find(id)
	switch {
	case st != nil && !st.inEnded:
		s.trailing = st
		return &st.x.trailers, nil
	case st != nil:
		s.fail(st, StreamClosed, errClosedHead)
	case !s.streams.wasReset(id):
		return nil, protocol(StreamClosed, "HEADERS of a stream that is over")
	}
	return &s.scratch, nil // the table of the decoder has to learn of it
}

// endHead implements side.
func (s *session) endHead(id uint32, end bool) *connError {
	if st := s.trailing; st != nil {
		s.trailing = nil
		if st.listed && st.id == id {
			st.endTrailers(&st.x.trailers, end)
		}
		return nil
	}
	x := s.incoming
	if s.incoming = nil; x == nil {
		return nil
	}
	if s.streams.count >= s.cfg.MaxStreams || s.active >= 2*s.cfg.MaxStreams {
		s.out = appendReset(s.room(), id, RefusedStream)
		s.streams.remember(id)
		s.touch()
		s.inVain()
		x.free()
		return nil
	}
	err := x.req.read()
	if err == nil && x.req.protocol != "" && !s.connecting {
		err = errPseudo
	}
	if err == nil && end && x.req.length > 0 {
		err = errLengthWrong
	}
	if err != nil {
		s.refuse(id, x, err, end)
		x.free()
		return nil
	}
	x.begin(id, end)
	if s.last != nil {
		s.conn.Socket().Begin(s.last)
	}
	s.last = x
	return nil
}

// refuse answers a request that could not be read.
func (s *session) refuse(id uint32, x *Exchange, err *refusal, end bool) {
	s.inVain()
	st := &x.client
	st.begin(&s.mux, id, x)
	st.inEnded = end
	if err.status == 0 || s.free() <= 0 {
		s.sendReset(st, ProtocolError)
		return
	}
	if x.req.GRPC() {
		x.appendGRPC(grpcOf(err.status), err.text)
	} else {
		var body []byte
		var header []string
		if s.cfg.Refusal != nil {
			body, header = s.cfg.Refusal(err.status)
		}
		if x.req.method == http.MethodHead || st.most(len(body)) < len(body) {
			body = nil
		}
		if body = x.appendReply(err.status, body, header); len(body) > 0 {
			st.sendData(body, true)
		}
	}
	if !end {
		s.sendReset(st, NoError)
	}
	s.streams.remove(st)
}

// endTrailers takes a trailer section that was decoded.
func (s *stream) endTrailers(h *hpack.Head, end bool) {
	var err *refusal
	switch {
	case !end:
		err = errTrailers
	case h.Over:
		err = errHeadLarge
	case s.length >= 0 && s.got != s.length:
		err = errLengthWrong
	default:
		err = checkTrailers(h)
	}
	if err != nil {
		s.m.malformed(s, err)
		return
	}
	s.trailers, s.inEnded = h, true
	s.pump(maxWindow)
	s.wake()
}

// broken implements side.
func (s *session) broken(st *stream) {
	if st.err == nil {
		st.err = s.dead
	}
	st.unlink()
	st.discard()
	st.wake()
}

// ended implements side.
func (s *session) ended() {
	if !s.closed || s.reported {
		return
	}
	if s.active > 0 { // the last of them comes here again
		s.cut = true
		return
	}
	s.reported = true
	s.user.Ended(s.fault())
}

// fault is what the user is told of the end.
func (s *session) fault() error {
	err := s.dead
	var ce *connError
	switch {
	case s.cut, errors.As(err, &ce), err == errPeeked:
	case errors.Is(err, ErrTruncated), errors.Is(err, io.EOF), errors.Is(err, errIdle), errors.Is(err, errDrained),
		errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
		return nil
	}
	e := &Error{Side: SideClient, Step: ReadRequest, Timeout: isTimeout(err) || errors.Is(err, errSlow), Err: err}
	e.Status = statusFor(SideClient, e.Timeout)
	return e
}
