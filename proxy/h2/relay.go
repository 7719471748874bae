package h2

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

var (
	errNoResponse = errors.New("no response of this upstream is waiting")
	errAnswered   = errors.New("the request was answered already")
	errReply      = errors.New("not a final status, or a header name without its value")
)

// Relay passes the response on to the client: head, body and trailer section, as
// they come and as the client takes them. Afterwards up belongs to the caller again,
// who puts it back. On error (an *Error) the client's stream was reset, or is when the
// Handler returns, so that a short body is never taken for a whole one.
func (x *Exchange) Relay(up *Upstream) error {
	err := x.toClient.err
	if x.up == nil || x.up != up {
		err = errNoResponse
	}
	if err != nil {
		return &Error{Side: SideLocal, Step: WriteResponse, Status: http.StatusInternalServerError, Err: err}
	}
	x.up, x.answered = nil, true
	c := &x.client
	if !x.kept {
		c.keep, c.whole = 0, false // it will not be asked for again
	}
	e := x.relay(up)
	if e != nil {
		e.Sent, e.Got, e.Reused = true, true, up.reused
		x.err = e
		up.cancel = Cancel
		x.s.sendReset(c, x.resetCode())
	}
	up.unlink()
	if up.resp.EndStream {
		x.tail, up.resp.head = up.resp.head, x.tail
	} else if up.trailers != nil {
		x.tail, up.tail = up.tail, x.tail
	}
	up.finish()
	x.s.settle()
	if e != nil {
		return e
	}
	return nil
}

func (x *Exchange) relay(up *Upstream) *Error {
	c := &x.client
	if e := x.awaitRoom(); e != nil {
		return e
	}
	end := up.inEnded && up.in.left == 0 && up.trailers == nil
	c.edits = &x.toClient
	x.appendResponse(&up.resp, &x.toClient, end)
	c.outBegun, c.outEnded = true, end
	if !end {
		up.stream.link(c)
		up.pump(maxWindow)
	}
	x.s.settle()
	var flow, silence progress
	for !c.outEnded {
		if e := x.clientError(WriteResponse); e != nil {
			return e
		}
		if up.err != nil && !up.inEnded {
			return x.upstreamError(ReadContent, up.err)
		}
		now := x.s.now()
		var by time.Time
		if up.in.left > 0 || up.inEnded {
			if by = flow.until(now, c.sent, x.s.cfg.StallTimeout); !now.Before(by) {
				return x.clientSlow(WriteResponse)
			}
			silence = progress{}
		} else {
			if by = silence.until(now, up.got, x.streamIdle()); !now.Before(by) {
				return x.upstreamError(ReadContent, errSlow)
			}
			flow = progress{}
			by = earlier(by, now.Add(x.s.cfg.StallTimeout)) // the client may stall meanwhile, which wakes nobody
		}
		_ = x.w.Wait(by) // why it ended is seen above
	}
	return nil
}

// awaitRoom waits until a head may be added to what the client has to take.
func (x *Exchange) awaitRoom() *Error {
	c := &x.client
	var p progress
	for {
		if e := x.clientError(WriteResponse); e != nil {
			return e
		}
		if c.m.free() > 0 {
			return nil
		}
		now := x.s.now()
		by := p.until(now, 0, x.s.cfg.StallTimeout)
		if !now.Before(by) {
			return x.clientSlow(WriteResponse)
		}
		c.m.heads.add(x)
		_ = x.w.Wait(by) // why it ended is seen above
		c.m.heads.remove(x)
	}
}

// appendResponse encodes the head of a response for the client.
func (x *Exchange) appendResponse(r *Response, changed *edits, end bool) {
	m := x.client.m
	out, from := m.beginHeaders(x.client.id, end)
	for i := range r.head.Fields {
		f := &r.head.Fields[i]
		if !changed.drops(f.Name) {
			out = m.enc.Field(out, f)
		}
	}
	out = changed.appendTo(out, &m.enc, plain)
	m.endHeaders(out, from)
}

// interim passes a 1xx on. One 100 is enough for a client, however many upstreams
// are tried.
func (x *Exchange) interim(r *Response) {
	c := &x.client
	if x.answered || c.err != nil || c.m.free() <= 0 || r.Status == http.StatusContinue && x.continued {
		return
	}
	x.continued = x.continued || r.Status == http.StatusContinue
	x.appendResponse(r, &noEdits, false)
}

var noEdits edits

// Discard drops the response.
func (x *Exchange) Discard(up *Upstream) {
	if x.up == nil || x.up != up {
		return
	}
	x.up = nil
	up.finish()
	x.s.settle()
}

// Reply answers the request here. header holds names and values in turn;
// Content-Length and Date are added, the changes of SetResponse apply, and HEAD gets
// no body. A response that waits is dropped first. It waits until the client's
// windows allow the body, StallTimeout at most.
func (x *Exchange) Reply(status int, body []byte, header ...string) error {
	if e := x.mayReply(status < 200 || status > 599 || len(header)%2 != 0); e != nil {
		return e
	}
	for i := 0; i < len(header); i += 2 {
		if _, err := x.toClient.editable(header[i], header[i+1], editSet); err != nil {
			return &Error{Side: SideLocal, Step: WriteResponse, Status: http.StatusInternalServerError, Err: err}
		}
	}
	return x.reply(func() []byte {
		return x.appendReply(status, body, header)
	})
}

// ReplyGRPC answers a call of gRPC here, with a head alone ("Trailers-Only"): its
// status, such as 14 for UNAVAILABLE, and a message, which is percent-encoded.
func (x *Exchange) ReplyGRPC(code int, message string) error {
	if e := x.mayReply(code < 0); e != nil {
		return e
	}
	return x.reply(func() []byte {
		x.appendGRPC(code, message)
		return nil
	})
}

func (x *Exchange) mayReply(wrong bool) error {
	if x.up != nil {
		x.Discard(x.up)
	}
	err := x.toClient.err
	switch {
	case x.answered:
		err = errAnswered
	case wrong:
		err = errReply
	}
	if err != nil {
		return &Error{Side: SideLocal, Step: WriteResponse, Status: http.StatusInternalServerError, Err: err}
	}
	x.client.unlink()
	return nil
}

// reply writes an answer, whose head appends what then is to follow of the body.
func (x *Exchange) reply(head func() (body []byte)) error {
	x.answered = true
	e := x.awaitRoom()
	if e == nil {
		if body := head(); len(body) > 0 {
			e = x.sendBody(body)
		}
	}
	x.s.settle()
	if e != nil {
		x.err = e
		return e
	}
	return nil
}

func (x *Exchange) sendBody(body []byte) *Error {
	c := &x.client
	var p progress
	for {
		for n := c.most(len(body)); n > 0; n = c.most(len(body)) {
			c.sendData(body[:n], n == len(body))
			body = body[n:]
		}
		if len(body) == 0 {
			return nil
		}
		if e := x.clientError(WriteResponse); e != nil {
			return e
		}
		now := x.s.now()
		by := p.until(now, c.sent, x.s.cfg.StallTimeout)
		if !now.Before(by) {
			return x.clientSlow(WriteResponse)
		}
		if x.s.settle(); c.window > 0 {
			c.m.heads.add(x)
		}
		_ = x.w.Wait(by) // why it ended is seen above
		c.m.heads.remove(x)
	}
}

// appendReply encodes the head of an answer and returns what is to follow of the
// body; what can go with it is sent already.
func (x *Exchange) appendReply(status int, body []byte, header []string) []byte {
	hasLength := status != http.StatusNoContent && status != http.StatusNotModified
	length := len(body)
	if !hasLength || x.req.method == http.MethodHead {
		body = nil
	}
	m, c := x.client.m, &x.client
	out, from := m.beginHeaders(c.id, len(body) == 0)
	st := &x.s.stock.texts
	st.field(":status", strconv.AppendInt(st.b[:0], int64(status), 10))
	out = m.enc.Field(out, &st.f)
	for i := 0; i+1 < len(header); i += 2 {
		f, ok := x.toClient.names.check(header[i])
		if f.Value = header[i+1]; ok && !x.toClient.drops(f.Name) {
			out = m.enc.Field(out, &f)
		}
	}
	out = x.toClient.appendTo(out, &m.enc, plain)
	if _, set := x.toClient.value("date"); !set {
		st.field("date", x.s.now().UTC().AppendFormat(st.b[:0], http.TimeFormat))
		out = m.enc.Field(out, &st.f)
	}
	if hasLength {
		st.field("content-length", strconv.AppendInt(st.b[:0], int64(length), 10))
		out = m.enc.Field(out, &st.f)
	}
	m.endHeaders(out, from)
	c.outBegun, c.outEnded = true, len(body) == 0
	return body
}

// appendGRPC encodes an answer of gRPC that is a head alone.
func (x *Exchange) appendGRPC(code int, message string) {
	m, c := x.client.m, &x.client
	out, from := m.beginHeaders(c.id, true)
	st := &x.s.stock.texts
	for _, f := range grpcHead {
		out = m.enc.Field(out, &f)
	}
	st.field("grpc-status", strconv.AppendInt(st.b[:0], int64(code), 10))
	out = m.enc.Field(out, &st.f)
	if message != "" {
		st.b = appendGRPCMessage(st.b[:0], message)
		st.field("grpc-message", st.b)
		out = m.enc.Field(out, &st.f)
	}
	out = x.toClient.appendTo(out, &m.enc, plain)
	m.endHeaders(out, from)
	c.outBegun, c.outEnded = true, true
}

var grpcHead = [...]hpack.Field{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"}}

// appendGRPCMessage percent-encodes what is not printable ASCII, as gRPC over HTTP/2
// says.
func appendGRPCMessage(out []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			out = append(out, c)
		} else {
			out = append(out, '%', digits[c>>4], digits[c&15])
		}
	}
	return out
}

// grpcOf is the status of gRPC that fits a refusal.
func grpcOf(status int) int {
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		return 8 // RESOURCE_EXHAUSTED
	case http.StatusNotImplemented:
		return 12 // UNIMPLEMENTED
	}
	return 13 // INTERNAL
}

// text is a field made here, in memory that is used again.
type text struct {
	b []byte
	f hpack.Field
}

func (t *text) field(name string, value []byte) {
	t.b = value
	t.f = hpack.Field{Name: name, Value: view(value)}
}
