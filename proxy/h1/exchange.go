package h1

import (
	"errors"
	"net/http"
	"time"
)

// Exchange is one request and its answer. It belongs to the Handler it was given
// to, until that returns.
type Exchange struct {
	Req Request

	s          *session
	now        time.Time
	body       body // of the request
	toUpstream edits
	toClient   edits
	up         *Upstream // whose response waits to be relayed or dropped
	resp       Response
	content    body // of the response
	pump       pump
	status
}

// status is what of an exchange begins with zero.
type status struct {
	own      []byte        // the buffer of a request body that did not come with its head
	out      []byte        // what is being built to be written; nil when not
	target   string        // "" unless changed
	pause    time.Duration // 0 unless changed: for Config.StreamIdle
	finSeen  time.Time     // when the client was seen to have sent FIN
	err      *Error        // why the client connection must be cut
	rival    *rival        // the second try, while the answer to either is awaited
	received int64

	given     bool // not all of the body that was read is still there
	got       bool // something of a response came in this round trip
	continued bool // a 100 was relayed
	closing   bool // the client connection ends with this exchange
	answered  bool // a final response was begun
	upgraded  bool
}

func (x *Exchange) begin(s *session) {
	x.s = s
	x.toUpstream.names, x.toClient.names = &s.stock.names, &s.stock.names
	x.Req.reset()
}

// end gives everything back, also after a panic in the handler.
func (x *Exchange) end() {
	if x.pump.stop(); x.pump.x != nil {
		x.pump = pump{}
	}
	st := x.s.stock
	st.give(x.out)
	st.give(x.own)
	if x.up != nil {
		x.up.unfit()
		_ = x.up.Close()
	}
	x.toUpstream.reset()
	x.toClient.reset()
	x.s, x.up = nil, nil
	x.status = status{}
	st.giveExchange(x)
}

// beginBody takes down what of the body came with the head.
func (x *Exchange) beginBody() error {
	s, kind := x.s, noBody
	switch {
	case x.Req.chunked:
		kind = byChunks
	case x.Req.cl > 0:
		kind = byLength
	}
	x.body.begin(kind, x.Req.cl, s.buf, s.r, s.w)
	err := x.body.advance()
	if s.r = s.w; x.body.done {
		s.r = x.body.raw // a pipelined request may follow
	}
	return err
}

// Now is the time at which the request head was complete.
func (x *Exchange) Now() time.Time { return x.now }

// Sent is the number of bytes of the request body that were read from the client.
func (x *Exchange) Sent() int64 { return x.body.total }

// Received is the number of bytes of the response body that went to the client.
func (x *Exchange) Received() int64 { return x.received }

// Set replaces the request field name, whatever the client sent and whatever
// its Connection field names. Fields that frame the message or belong to one
// connection cannot be set, nor can bytes that would break the head: RoundTrip
// then fails with an *Error of SideLocal. The strings are used until the last
// RoundTrip returns.
func (x *Exchange) Set(name, value string) { x.toUpstream.change(name, value, editSet) }

// Add adds a request field beside those the client sent; see Set.
func (x *Exchange) Add(name, value string) { x.toUpstream.change(name, value, editAdd) }

// Del removes request fields, trailers of that name included. The framing of
// the message stays; without Upgrade the request does not ask for a switch.
func (x *Exchange) Del(names ...string) {
	for _, name := range names {
		x.toUpstream.change(name, "", editDel)
	}
}

// SetTarget replaces the request target that the upstream sees: "/…" or "*".
func (x *Exchange) SetTarget(target string) {
	if target == "" || !all(target, targetByte) || target[0] != '/' && target != "*" {
		if x.toUpstream.err == nil {
			x.toUpstream.err = errTarget
		}
		return
	}
	x.target = target
}

// SetStreamIdle takes the place of Config.StreamIdle in this exchange.
func (x *Exchange) SetStreamIdle(d time.Duration) { x.pause = d }

// streamIdle is how long the upstream may be silent inside the response body.
func (x *Exchange) streamIdle() time.Duration {
	if x.pause > 0 {
		return x.pause
	}
	return x.s.cfg.StreamIdle
}

// SetResponse replaces a field of the head (and trailer) that the client gets
// from Relay, Reply or Upgraded; see Set. The strings are used until then.
func (x *Exchange) SetResponse(name, value string) { x.toClient.change(name, value, editSet) }

// AddResponse adds a field to the head that the client gets; see SetResponse.
func (x *Exchange) AddResponse(name, value string) { x.toClient.change(name, value, editAdd) }

// DelResponse removes fields from the head that the client gets; see SetResponse.
func (x *Exchange) DelResponse(names ...string) {
	for _, name := range names {
		x.toClient.change(name, "", editDel)
	}
}

// CloseAfter ends the client connection after this exchange, announced by
// "Connection: close" if the response head has not gone yet.
func (x *Exchange) CloseAfter() { x.closing = true }

// CanRetry reports whether RoundTrip may be called, after Discard where a
// response is at hand: nothing of a final response went to the client, and all
// that was read of the request body is still kept (Config.ReplayBytes). With a
// response at hand it is false while the body is still being sent, as the rest
// may not be kept. Whether the upstream may see the request twice is for the
// caller to decide, see Error.Sent.
func (x *Exchange) CanRetry() bool {
	return !x.answered && !x.upgraded && !x.pump.running && x.err == nil && !x.given
}

// switches reports whether the request asks the upstream to switch protocols.
func (x *Exchange) switches() bool {
	return x.Req.Upgrade() != "" && !x.toUpstream.drops([]byte("Upgrade"))
}

// finish is what is left to do when the handler has returned.
func (x *Exchange) finish() (again bool, err error) {
	s := x.s
	if x.up != nil { // a response that nobody wanted
		x.up.unfit()
		x.up = nil
	}
	x.pump.stop()
	switch {
	case x.upgraded:
		return false, ErrUpgraded
	case x.err != nil:
		if x.err.Side == SideClient && !x.answered {
			x.refuse(x.err)
		}
		return false, x.err
	case !x.answered:
		return false, &Error{Side: SideLocal, Step: WriteResponse, Err: errUnanswered}
	case x.closing || !x.body.done:
		if !x.body.done || s.r != s.w {
			s.linger()
		}
		return false, nil
	}
	x.keepRest()
	return true, nil
}

var errUnanswered = errors.New("the handler gave no answer")

// keepRest leaves what was read beyond the body, a pipelined request, to the session.
func (x *Exchange) keepRest() {
	if x.own == nil || x.body.raw == x.body.end {
		return
	}
	s := x.s
	s.stock.give(s.buf)
	s.buf, s.r, s.w = x.own, x.body.raw, x.body.end
	x.own = nil
}

// refuse answers a request that could not be read, if there is anybody to answer.
func (x *Exchange) refuse(e *Error) {
	if errors.Is(e, ErrTruncated) || e.Err != nil && !e.Timeout && !isRefusal(e) {
		return
	}
	x.closing = true
	x.answered = false
	var body []byte
	var header []string
	if x.s.cfg.Refusal != nil {
		body, header = x.s.cfg.Refusal(e.Status)
	}
	_ = x.writeReply(e.Status, body, header) // the connection ends either way
	x.s.linger()
}

func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// appendRequest builds the request head. Received lines are copied in runs.
func (x *Exchange) appendRequest(out []byte) []byte {
	r := &x.Req
	target := r.Target
	if x.target != "" {
		target = x.target
	}
	out = append(out, r.Method...)
	out = append(out, ' ')
	out = append(out, target...)
	out = append(out, " HTTP/1.1\r\n"...)
	switching := x.switches()
	switch { // there must be one, if empty: RFC 9112 section 3.2
	case x.toUpstream.sets("Host"):
	case x.toUpstream.drops([]byte("Host")):
		out = appendField(out, "Host", "")
	case r.absolute || r.hosts == 0:
		out = appendField(out, "Host", r.Host)
	}
	run := -1
	for i := range r.fields {
		f := &r.fields[i]
		if x.passesUp(f, switching) {
			if run < 0 {
				run = int(f.start)
			}
		} else if run >= 0 {
			out = append(out, r.b[run:f.start]...)
			run = -1
		}
	}
	if run >= 0 {
		out = append(out, r.b[run:len(r.b)-2]...)
	}
	out = x.toUpstream.appendTo(out)
	if r.chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	if r.trailers {
		out = append(out, "TE: trailers\r\n"...)
	}
	switch {
	case switching && r.trailers:
		out = append(out, "Connection: Upgrade, TE\r\n"...)
	case switching:
		out = append(out, "Connection: Upgrade\r\n"...)
	case r.trailers:
		out = append(out, "Connection: TE\r\n"...)
	}
	return append(out, '\r', '\n')
}

// passesUp decides about one request field, RFC 9110 section 7.6.1.
func (x *Exchange) passesUp(f *field, switching bool) bool {
	r := &x.Req
	switch f.id {
	case idContentLength:
		return true
	case idConnection, idTransferEncoding, idKeepAlive, idProxyConnection, idTE, idHTTP2Settings:
		return false
	case idUpgrade:
		return switching
	case idHost:
		return !r.absolute && !x.toUpstream.drops(r.name(f))
	case idExpect:
		if r.Minor == 0 { // RFC 9110 section 10.1.1: not from HTTP/1.0
			return false
		}
	}
	return !(len(r.named) > 0 && r.isNamed(r.name(f))) && !x.toUpstream.drops(r.name(f))
}

// appendResponse builds a response head without its framing and end.
func (x *Exchange) appendResponse(out []byte, changed *edits) []byte {
	r := &x.resp
	out = append(out, "HTTP/1.1 "...)
	out = appendStatus(out, r.Status)
	out = append(out, ' ')
	out = append(out, r.Reason...)
	out = append(out, '\r', '\n')
	run := -1
	for i := range r.fields {
		f := &r.fields[i]
		if x.passesDown(f, changed) {
			if run < 0 {
				run = int(f.start)
			}
		} else if run >= 0 {
			out = append(out, r.b[run:f.start]...)
			run = -1
		}
	}
	if run >= 0 {
		out = append(out, r.b[run:len(r.b)-2]...)
	}
	return changed.appendTo(out)
}

// passesDown decides about one response field.
func (x *Exchange) passesDown(f *field, changed *edits) bool {
	r := &x.resp
	switch f.id {
	case idConnection, idTransferEncoding, idKeepAlive, idProxyConnection, idTE, idHTTP2Settings:
		return false
	case idContentLength:
		return r.Status >= 200 && r.Status != http.StatusNoContent
	case idUpgrade: // 426 has to name what it wants, RFC 9110 section 15.5.22
		return r.Status == http.StatusSwitchingProtocols || r.Status == http.StatusUpgradeRequired
	}
	return !(len(r.named) > 0 && r.isNamed(r.name(f))) && !changed.drops(r.name(f))
}

func appendStatus(out []byte, status int) []byte {
	return append(out, byte('0'+status/100%10), byte('0'+status/10%10), byte('0'+status%10))
}
