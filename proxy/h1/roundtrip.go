package h1

import (
	"errors"
	"net/http"
	"time"
)

// maxInterim bounds the interim responses to one request.
const maxInterim = 64

// RoundTrip sends the request to up and returns with the head of the final
// response. Interim responses (100, 103) are relayed to the client meanwhile, as
// is a 101 only to a client that asked. The deadline covers all until the
// response head is there; zero means none. On error up is closed, and the error
// is an *Error. Otherwise one of Relay, Discard, Reply or Upgraded must follow.
func (x *Exchange) RoundTrip(up *Upstream, deadline time.Time) (*Response, error) {
	if e := x.mayAsk(); e != nil {
		return nil, e
	}
	now := x.s.cfg.now(x.s)
	if deadline.IsZero() {
		deadline = now.Add(forever)
	}
	x.got = false
	return x.take(up, deadline, x.ask(up, now, deadline))
}

// take reads the head of the answer to a request that was sent, if it was.
func (x *Exchange) take(up *Upstream, deadline time.Time, e *Error) (*Response, error) {
	if e == nil {
		e = x.awaitHead(up, deadline)
	}
	if e != nil {
		return nil, x.fail(up, e)
	}
	x.s.stock.give(x.out)
	x.out = nil
	x.up = up
	x.pump.headCame()
	return &x.resp, nil
}

// mayAsk refuses what only a mistake of the caller can ask for.
func (x *Exchange) mayAsk() *Error {
	err := x.toUpstream.err
	if err == nil && (x.up != nil || !x.CanRetry()) {
		err = ErrNoReplay
	}
	if err == nil {
		return nil
	}
	return &Error{Side: SideLocal, Step: WriteHead, Status: http.StatusInternalServerError, Err: err}
}

// ask sends the request. What does not fit the socket goes on in the pump, while
// the answer is awaited.
func (x *Exchange) ask(up *Upstream, now, deadline time.Time) *Error {
	up.ok, up.before = false, up.written()
	x.pump.reset()
	x.resp.reset()
	x.body.sent = x.body.from
	x.out = x.appendRequest(x.s.stock.take(largeBuffer)[:0])
	switch heard := up.look(now.Sub(up.idleSince)); {
	case heard == spoke && !up.used:
		return nil // a server that is full may speak at once
	case heard != quiet:
		return &Error{Side: SideUpstream, Step: WriteHead, Err: ErrStale}
	}
	if !x.body.done || len(x.out)+len(x.body.data())+len(x.body.chunks.trailer)+32 > cap(x.out) {
		x.pump.start(x, up, deadline, false)
		return nil
	}
	x.out = x.appendBody(x.out)
	n, err := x.tell(up, deadline)
	if err != nil {
		return x.lastWords(up, err)
	}
	if n < len(x.out) {
		x.out = x.out[:copy(x.out, x.out[n:])]
		x.pump.start(x, up, deadline, true)
		return nil
	}
	x.s.stock.give(x.out) // for whoever is next while this one waits
	x.out = nil
	return nil
}

// tell writes x.out, as far as there is room at once. TLS waits for more: a
// record cannot be left half written.
func (x *Exchange) tell(up *Upstream, deadline time.Time) (int, error) {
	if up.bare != nil {
		return up.gave(up.bare.TryWrite(x.out))
	}
	_ = up.conn.SetWriteDeadline(deadline) // fails on a closed connection only, as the write will
	return up.write(x.out)
}

// appendBody frames the data at hand, and the end of the body if it is there.
func (x *Exchange) appendBody(out []byte) []byte {
	b := &x.body
	if b.kind != byChunks {
		return append(out, b.data()...)
	}
	out = appendChunk(out, b.data())
	if b.done {
		out = append(out, "0\r\n"...)
		out = b.chunks.appendTrailer(out, &x.toUpstream)
		out = append(out, '\r', '\n')
	}
	return out
}

// awaitHead reads up to the end of the final response head.
func (x *Exchange) awaitHead(up *Upstream, deadline time.Time) *Error {
	for interim := 0; ; {
		done, err := x.resp.parse(up.unread(), x.s.cfg)
		if err != nil {
			return x.upstreamError(ReadResponse, err)
		}
		if !done {
			if e := x.fillHead(up, deadline); e != nil {
				return e
			}
			continue
		}
		up.r += len(x.resp.b)
		if x.resp.Status >= 200 || x.resp.Status == http.StatusSwitchingProtocols {
			break
		}
		if interim++; interim > maxInterim || x.resp.cl > 0 || x.resp.chunked {
			return x.upstreamError(ReadResponse, errInterim)
		}
		if e := x.relayInterim(); e != nil {
			return e
		}
		x.resp.reset()
	}
	if x.resp.Status == http.StatusSwitchingProtocols && !x.switches() {
		return x.upstreamError(ReadResponse, errUnasked)
	}
	return x.beginContent(up)
}

var (
	errInterim = errors.New("too many interim responses, or one with a body")
	errUnasked = errors.New("101 to a request that did not ask for it")
)

// fillHead reads more of a response head.
func (x *Exchange) fillHead(up *Upstream, deadline time.Time) *Error {
	if err := x.waitUpstream(up, deadline, nil); err != nil {
		return x.upstreamError(ReadResponse, err)
	}
	x.got = true
	return nil
}

// lastWords reads what an upstream said that does not take the request: often
// it has answered 413 or 503 and closed. If it said nothing, the write error stands.
func (x *Exchange) lastWords(up *Upstream, writeErr error) *Error {
	e := x.upstreamError(WriteHead, writeErr)
	if e.Timeout {
		return e
	}
	x.pump.broken = true
	if err := x.waitUpstream(up, x.s.cfg.now(x.s).Add(time.Second), nil); err != nil {
		return e
	}
	x.got = true
	return nil
}

// waitUpstream reads into dst, or into up's buffer with dst nil, until bytes
// come or the time is over. While it waits it looks after the client.
func (x *Exchange) waitUpstream(up *Upstream, until time.Time, content *body) error {
	watch := watchEvery
	if g := x.s.cfg.HalfCloseGrace; g > 0 && g < watch {
		watch = g
	}
	now := x.s.cfg.now(x.s)
	for {
		wake := now.Add(watch)
		if until.Before(wake) {
			wake = until
		}
		_ = up.conn.SetReadDeadline(wake) // fails on a closed connection only, as the read will
		if e := x.pump.failure(); e != nil {
			return e
		}
		if x.rival != nil && x.rival.answered {
			return errRival
		}
		err := up.more(content)
		if err == nil || !isTimeout(err) {
			return err
		}
		if now = x.s.cfg.now(x.s); !now.Before(until) {
			return errSlow
		}
		if x.clientGone(now) {
			return &Error{Side: SideClient, Step: ReadResponse, Status: http.StatusBadRequest, Err: ErrGone}
		}
	}
}

// Gone reports whether the client is known to have left, by a look at its socket: by a
// reset, or a FIN that is older than Config.HalfCloseGrace. The exchange is over then.
func (x *Exchange) Gone() bool {
	if x.err == nil && !x.answered && x.clientGone(x.s.cfg.now(x.s)) {
		x.err = clientError(ReadResponse, ErrGone)
	}
	return x.err != nil
}

// clientGone looks at the client's socket. A pump reads there itself.
func (x *Exchange) clientGone(now time.Time) bool {
	if x.pump.running {
		return false
	}
	switch x.s.peer() {
	case peerReset:
		return true
	case peerClosed:
		if x.finSeen.IsZero() {
			x.finSeen = now
		}
		grace := x.s.cfg.HalfCloseGrace
		return grace >= 0 && now.Sub(x.finSeen) >= grace
	}
	return false
}

// upstreamError wraps err, unless it is an *Error already (of the client's side, then).
func (x *Exchange) upstreamError(step Step, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	err = truncatedIfEOF(err)
	timeout := isTimeout(err)
	return &Error{Side: SideUpstream, Step: step, Timeout: timeout, Status: statusFor(SideUpstream, timeout), Err: err}
}

// fail ends a round trip: up is of no use any more.
func (x *Exchange) fail(up *Upstream, e *Error) *Error {
	x.pump.stop()
	broke := e.Err
	if p := x.pump.err; p != nil && e.Side == SideUpstream && !x.got {
		e = p // what broke first explains the rest
	}
	e.Sent, e.Got, e.Reused = up.written() != up.before, x.got, up.used
	if e.Sent && !e.Got && e.Side == SideUpstream && !e.Timeout {
		e.Sent = !up.untaken(broke)
	}
	if e.Status == 0 {
		e.Status = statusFor(e.Side, e.Timeout)
	}
	if e.Side == SideClient {
		x.err = e
	}
	x.s.stock.give(x.out)
	x.out = nil
	_ = up.Close()
	return e
}

// beginContent looks at what of the response body came with the head.
func (x *Exchange) beginContent(up *Upstream) *Error {
	r := &x.resp
	x.content.begin(r.framing(x.Req.Method), r.cl, up.buf, up.r, up.w)
	if err := x.content.advance(); err != nil {
		return x.upstreamError(ReadContent, err)
	}
	return nil
}

// relayInterim passes a 1xx on. HTTP/1.0 knows none (RFC 9110 section 15.2), and
// one 100 is enough for a client, however many upstreams are tried.
func (x *Exchange) relayInterim() *Error {
	r := &x.resp
	if x.Req.Minor == 0 || r.Status == http.StatusContinue && x.continued {
		return nil
	}
	x.continued = x.continued || r.Status == http.StatusContinue
	b := x.s.stock.take(largeBuffer)
	defer x.s.stock.give(b)
	return x.writeClient(append(x.appendResponse(b[:0], &noEdits), '\r', '\n'))
}

var noEdits edits
