package h1

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// delivery is how a response body is framed for the client.
type delivery uint8

const (
	deliverNothing delivery = iota
	deliverAsIs             // Content-Length
	deliverChunks
	deliverAndClose // to HTTP/1.0, which has no chunks
)

// Relay passes the response on to the client. A body that ends with the
// upstream's connection goes to an HTTP/1.1 client in chunks, so that its
// connection lives on and a cut can be told from an end; to HTTP/1.0 it ends with the
// connection. Afterwards up belongs to the caller again, who closes it or puts it
// back as up.Reusable says. On error (an *Error) the client connection is cut, so
// that a short body is never taken for a whole one.
func (x *Exchange) Relay(up *Upstream) error {
	err := x.toClient.err
	if x.up == nil || x.up != up {
		err = errNoResponse
	}
	if err != nil {
		return &Error{Side: SideLocal, Step: WriteResponse, Status: http.StatusInternalServerError, Err: err}
	}
	x.up, x.answered = nil, true
	how := x.deliver()
	x.out = x.responseHead(x.s.stock.take(largeBuffer)[:0], how)
	e := x.relayContent(up, how)
	x.s.stock.give(x.out)
	x.out = nil
	if e == nil {
		x.settle(up)
		return nil
	}
	x.pump.stop()
	e.Sent, e.Got, e.Reused = true, true, up.used
	up.unfit()
	x.err = e
	if how == deliverAndClose {
		x.s.abort()
	}
	return e
}

var errNoResponse = errors.New("no response of this upstream is waiting")

func (x *Exchange) deliver() delivery {
	switch {
	case x.content.kind == noBody:
		return deliverNothing
	case x.content.kind == byLength:
		return deliverAsIs
	case x.Req.Minor == 0:
		return deliverAndClose
	}
	return deliverChunks
}

// responseHead builds the head for the client, whose connection it may announce to end.
func (x *Exchange) responseHead(out []byte, how delivery) []byte {
	r := &x.resp
	if how == deliverAndClose || x.s.draining() || x.pump.early() {
		x.closing = true
	}
	out = x.appendResponse(out, &x.toClient)
	if how == deliverChunks || how == deliverNothing && r.chunked && x.Req.Minor == 1 && r.Status != http.StatusNoContent {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	if r.Status == http.StatusUpgradeRequired && r.upgrade >= 0 {
		out = append(out, "Connection: Upgrade\r\n"...)
	}
	return append(x.appendPersistence(out), '\r', '\n')
}

func (x *Exchange) appendPersistence(out []byte) []byte {
	switch {
	case x.closing:
		return append(out, "Connection: close\r\n"...)
	case x.Req.Minor == 0:
		return append(out, "Connection: keep-alive\r\n"...)
	}
	return out
}

// relayContent writes x.out, the head, and the body behind it: with the head
// what is there already, then as it comes.
func (x *Exchange) relayContent(up *Upstream, how delivery) *Error {
	c := &x.content
	if x.splices(up, how) {
		if e := x.relaySpliced(up, how); e != nil || c.done {
			return e
		}
	}
	for {
		if e := x.writeContent(how); e != nil {
			return e
		}
		if c.done {
			return nil
		}
		c.recycle()
		err := x.waitUpstream(up, x.s.cfg.now(x.s).Add(x.streamIdle()), c)
		if errors.Is(err, io.EOF) && c.kind == untilClose {
			c.done, err = true, nil
		}
		if err == nil {
			err = c.advance()
		}
		if err != nil {
			return x.upstreamError(ReadContent, err)
		}
	}
}

// writeContent writes x.out and the data at hand, in one write if they fit a buffer.
func (x *Exchange) writeContent(how delivery) *Error {
	const frame = 32 // of a chunk, with its end
	c, data := &x.content, x.content.data()
	x.received += int64(len(data))
	sentFrom := c.sent
	c.sent = c.dec
	if n := len(x.out); n > 0 && how == deliverAsIs && len(data) > copyBelow && n <= sentFrom {
		// The head that came is not needed any more: ours takes its place.
		whole := c.buf[sentFrom-n : sentFrom+len(data)]
		copy(whole, x.out)
		x.out = x.out[:0]
		return x.writeClient(whole)
	}
	fits := len(x.out)+len(data)+len(c.chunks.trailer)+frame <= cap(x.out)
	if len(x.out) > 0 && !fits || how != deliverChunks && len(x.out) == 0 {
		if e := x.writeClient(x.out); e != nil {
			return e
		}
		x.out = x.out[:0]
		if how != deliverChunks {
			return x.writeClient(data)
		}
	}
	if how == deliverChunks {
		x.out = appendChunk(x.out, data)
		if c.done {
			x.out = append(x.out, "0\r\n"...)
			x.out = c.chunks.appendTrailer(x.out, &x.toClient)
			x.out = append(x.out, '\r', '\n')
		}
	} else {
		x.out = append(x.out, data...)
	}
	e := x.writeClient(x.out)
	x.out = x.out[:0]
	return e
}

// copyBelow is how large a body may be to be copied behind its head.
const copyBelow = 4 << 10

// writeClient writes b, unless it is empty.
func (x *Exchange) writeClient(b []byte) *Error {
	if len(b) == 0 {
		return nil
	}
	_ = x.s.conn.SetWriteDeadline(x.s.cfg.now(x.s).Add(x.s.cfg.StallTimeout)) // fails on a closed connection only, as the write will
	if _, err := x.s.conn.Write(b); err != nil {
		return clientError(WriteResponse, err)
	}
	return nil
}

// settle ends an exchange with up that went well: may both connections go on?
func (x *Exchange) settle(up *Upstream) {
	x.pump.stop()
	up.settle(&x.content, &x.resp, x.pump.broken)
}

// settle finds out whether another exchange may follow one whose response was
// read; broken says that the request did not go out whole.
func (u *Upstream) settle(c *body, r *Response, broken bool) {
	u.used, u.life = true, r.life
	u.r, u.w = c.raw, c.end
	u.ok = c.done && u.r == u.w && c.kind != untilClose && !broken &&
		!r.close && (r.minor == 1 || r.keepAlive) &&
		!(r.Status == http.StatusNoContent && (r.cl > 0 || r.chunked)) // which a confused server may yet send
	u.r = u.w
	u.release()
}

// Discard drops the response. If its rest is short and at hand it is read, so
// that up may be used again; see up.Reusable.
func (x *Exchange) Discard(up *Upstream) {
	if x.up == nil || x.up != up {
		return
	}
	x.up = nil
	x.pump.stop()
	if x.pump.broken || x.resp.Status == http.StatusSwitchingProtocols || x.dropContent(up) != nil {
		up.unfit()
		return
	}
	x.settle(up)
}

// Discard reads this much, for this long at most: a new connection is cheaper than more.
const (
	discardBytes = 64 << 10
	discardTime  = 50 * time.Millisecond
)

var errLong = errors.New("too long to discard")

func (x *Exchange) dropContent(up *Upstream) error {
	c := &x.content
	if c.kind == untilClose || c.kind == byLength && c.left > discardBytes {
		return errLong
	}
	until := x.s.cfg.now(x.s).Add(discardTime)
	for !c.done {
		if c.total > discardBytes {
			return errLong
		}
		c.sent = c.dec
		c.recycle()
		if err := x.waitUpstream(up, until, c); err != nil {
			return err
		}
		if err := c.advance(); err != nil {
			return err
		}
	}
	return nil
}

// Reply answers the request here. header holds names and values in turn;
// Content-Length and Date are added, the changes of SetResponse apply, and HEAD
// gets no body. A response that waits is dropped first. When the request body
// has not been read whole the connection ends afterwards.
func (x *Exchange) Reply(status int, body []byte, header ...string) error {
	if x.up != nil {
		x.Discard(x.up)
	}
	x.pump.stop()
	var err error
	switch {
	case x.answered || x.upgraded:
		err = errAnswered
	case status < 200 || status > 599 || len(header)%2 != 0:
		err = errReply
	}
	for i := 0; err == nil && i < len(header); i += 2 {
		err = x.toClient.editable(header[i], header[i+1], editSet)
	}
	if err != nil {
		return &Error{Side: SideLocal, Step: WriteResponse, Status: http.StatusInternalServerError, Err: err}
	}
	if e := x.writeReply(status, body, header); e != nil {
		x.err = e
		return e
	}
	return nil
}

var (
	errAnswered = errors.New("the request was answered already")
	errReply    = errors.New("not a final status, or a header name without its value")
)

func (x *Exchange) writeReply(status int, body []byte, header []string) *Error {
	x.answered = true
	if !x.body.done || x.s.draining() {
		x.closing = true
	}
	out := append(x.s.stock.take(largeBuffer)[:0], "HTTP/1.1 "...)
	x.out = out[:0] // in case it is outgrown: this one goes back
	out = append(appendStatus(out, status), ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, '\r', '\n')
	for i := 0; i+1 < len(header); i += 2 {
		if !x.toClient.drops([]byte(header[i])) {
			out = appendField(out, header[i], header[i+1])
		}
	}
	out = x.toClient.appendTo(out)
	if !x.toClient.sets("Date") {
		out = append(out, "Date: "...)
		out = x.s.cfg.now(x.s).UTC().AppendFormat(out, http.TimeFormat)
		out = append(out, '\r', '\n')
	}
	if status != http.StatusNoContent && status != http.StatusNotModified {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, int64(len(body)), 10)
		out = append(out, '\r', '\n')
	} else {
		body = nil
	}
	out = append(x.appendPersistence(out), '\r', '\n')
	if x.Req.Method != http.MethodHead {
		out = append(out, body...)
		x.received += int64(len(body))
	}
	e := x.writeClient(out)
	x.s.stock.give(x.out)
	x.out = nil
	return e
}
