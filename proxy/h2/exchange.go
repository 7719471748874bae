package h2

import (
	"errors"
	"net/http"
	"time"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
	"github.com/weir-mesh/weir/proxy/loop"
)

// Exchange is one request and its answer. It belongs to the Handler it was given
// to, until that returns.
type Exchange struct {
	s          *session
	w          loop.Waiter // of the task that handles it
	client     stream
	req        request
	trailers   hpack.Head // of the request
	toUpstream edits
	toClient   edits
	tail       hpack.Head // the trailer section of the response
	up         *Upstream  // whose response waits to be relayed or dropped
	progressed
}

// progressed is what of an exchange begins with zero.
type progressed struct {
	now       time.Time
	target    string        // "" unless changed
	err       *Error        // why the client's stream must be reset
	pause     time.Duration // SetStreamIdle
	kept      bool          // KeepBody
	continued bool          // a 100 was relayed
	closing   bool          // the client connection ends with this exchange
	answered  bool          // a final response was begun
}

func (s *stock) takeExchange() *Exchange {
	if x, ok := s.exchanges.take(); ok {
		return x
	}
	s.trimLater()
	x := new(Exchange)
	x.w.Init(s.loop)
	x.toUpstream.names, x.toClient.names = &s.names, &s.names
	x.req.reset()
	return x
}

// begin lists the exchange once its head was read.
func (x *Exchange) begin(id uint32, end bool) {
	s := x.s
	x.client.begin(&s.mux, id, x)
	x.client.length, x.client.inEnded = x.req.length, end
	x.client.keep = s.cfg.ReplayBytes
	x.now = s.now()
	s.active++
}

// Run handles the request, as a task.
func (x *Exchange) Run() {
	defer x.end()
	if x.client.err != nil { // reset before anybody looked at it
		return
	}
	x.s.user.Handle(x)
}

// end gives everything back, also after a panic in the handler.
func (x *Exchange) end() {
	s, c := x.s, &x.client
	if x.up != nil { // a response that nobody wanted
		up := x.up
		x.up = nil
		_ = up.Close()
	}
	switch {
	case !c.listed:
	case !c.outEnded:
		s.sendReset(c, x.resetCode())
	case !c.inEnded: // the answer is whole: the rest of the request is not wanted, RFC 9113 section 8.1
		s.sendReset(c, NoError)
	}
	s.streams.remove(c)
	c.unlink()
	c.discard()
	if x.closing {
		s.drain()
	}
	s.active--
	s.idleSince = s.l.Age()
	x.free()
	s.finishIfDone()
	if s.active == 0 && !s.closed && s.alarmed.IsZero() {
		s.alarm(s.l.At(s.idleSince).Add(s.cfg.IdleTimeout))
	}
	s.ended()
	s.settle()
}

// resetCode tells the client why its stream ends without an answer, or in mid-answer.
func (x *Exchange) resetCode() ErrCode {
	var re *ResetError
	switch {
	case x.err == nil:
		return InternalError
	case x.err.Side == SideUpstream && errors.As(x.err.Err, &re):
		return re.Code
	case x.err.Side == SideClient:
		return Cancel
	}
	return InternalError
}

// free gives the exchange itself back.
func (x *Exchange) free() {
	st := x.s.stock
	x.req.reset()
	x.trailers.Reset()
	x.tail.Reset()
	x.toUpstream.reset()
	x.toClient.reset()
	x.w.Clear()
	x.s, x.client.m, x.client.x = nil, nil, nil
	x.progressed = progressed{}
	st.exchanges.give(x, maxObjects)
}

// Now is the time at which the request head was complete.
func (x *Exchange) Now() time.Time { return x.now }

// Sent is the number of bytes of the request body that were read from the client.
func (x *Exchange) Sent() int64 { return x.client.got }

// Received is the number of bytes of the response body that went to the client.
func (x *Exchange) Received() int64 { return x.client.sent }

// Set replaces the request field name, whatever the client sent. Names may be in any
// case. Fields that frame the message or belong to one connection cannot be set, nor
// can bytes that would break the head: RoundTrip then fails with an *Error of
// SideLocal. Host sets :authority. The strings are used until the last RoundTrip
// returns.
func (x *Exchange) Set(name, value string) { x.toUpstream.change(name, value, editSet) }

// Add adds a request field beside those the client sent; see Set.
func (x *Exchange) Add(name, value string) { x.toUpstream.change(name, value, editAdd) }

// Del removes request fields, trailers of that name included.
func (x *Exchange) Del(names ...string) {
	for _, name := range names {
		x.toUpstream.change(name, "", editDel)
	}
}

// SetTarget replaces the :path that the upstream sees: "/…" or "*".
func (x *Exchange) SetTarget(target string) {
	if target != "*" && !validPath(target, "") {
		if x.toUpstream.err == nil {
			x.toUpstream.err = errPath
		}
		return
	}
	x.target = target
}

// Retarget has another target stand for the one that came: Target gives it, and the
// upstream sees it unless SetTarget says otherwise.
func (x *Exchange) Retarget(target string) {
	if x.SetTarget(target); x.target == target {
		x.req.path = target
	}
}

// SetResponse replaces a field of the head (and trailer section) that the client
// gets from Relay, Reply or ReplyGRPC; see Set. The strings are used until then.
func (x *Exchange) SetResponse(name, value string) { x.toClient.change(name, value, editSet) }

// AddResponse adds a field to the head that the client gets; see SetResponse.
func (x *Exchange) AddResponse(name, value string) { x.toClient.change(name, value, editAdd) }

// DelResponse removes fields from the head that the client gets; see SetResponse.
func (x *Exchange) DelResponse(names ...string) {
	for _, name := range names {
		x.toClient.change(name, "", editDel)
	}
}

// CloseAfter ends the client connection once the requests at hand are answered.
func (x *Exchange) CloseAfter() { x.closing = true }

// CanRetry reports whether RoundTrip may be called, after Discard where a response
// is at hand: nothing of a final response went to the client, the client is there,
// and all that came of the request body is still kept (Config.ReplayBytes). Whether
// the upstream may see the request twice is for the caller to decide, see Error.Sent.
func (x *Exchange) CanRetry() bool {
	return !x.answered && x.err == nil && x.client.err == nil && x.client.whole
}

// Gone reports whether the client is known to have left, or to have cancelled the
// request. The exchange is over then.
func (x *Exchange) Gone() bool { return x.clientError(ReadBody) != nil }

// Trailer is a field of the response's trailer section after Relay, or of the head
// of a response that has nothing but a head (Response.EndStream): grpc-status, most
// often. That is known before Relay, too. It is valid until the Handler returns.
func (x *Exchange) Trailer(name string) (string, bool) {
	if x.up != nil && x.up.resp.EndStream {
		return x.up.resp.Get(name)
	}
	return get(x.tail.Fields, name)
}

// ResetStream ends the exchange by RST_STREAM to the client.
func (x *Exchange) ResetStream(code ErrCode) {
	if x.up != nil {
		up := x.up
		x.up = nil
		_ = up.Close()
	}
	x.answered = true
	x.s.sendReset(&x.client, code)
	x.client.over(&ResetError{code})
	x.s.settle()
}

// Abort ends the exchange from another task of the loop than the one that handles
// it: the client gets RST_STREAM with the code, and the handler finds its client gone.
func (x *Exchange) Abort(code ErrCode) {
	x.s.sendReset(&x.client, code)
	x.client.over(&ResetError{code})
	x.s.settle()
}

// clientError is the fault of a client whose stream is over, nil if it is not.
func (x *Exchange) clientError(step Step) *Error {
	if x.client.err == nil {
		return nil
	}
	e := &Error{Side: SideClient, Step: step, Err: x.client.err, Status: http.StatusBadRequest}
	x.err = e
	return e
}
