package h2

import (
	"errors"
	"net/http"
	"time"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

// maxInterim bounds the interim responses to one request.
const maxInterim = 64

// RoundTrip sends the request to up and returns with the head of the final response;
// the body goes on being sent as it comes, now and while Relay runs. Interim
// responses (100, 103) are relayed to the client meanwhile. The deadline covers all
// until the response head is there; zero means none. On error, which is an *Error,
// up is closed. Otherwise one of Relay, Discard, Reply, ReplyGRPC or ResetStream must
// follow.
func (x *Exchange) RoundTrip(up *Upstream, deadline time.Time) (*Response, error) {
	if e := x.mayAsk(); e != nil {
		_ = up.Close()
		return nil, e
	}
	if deadline.IsZero() {
		deadline = x.s.now().Add(forever)
	}
	e := x.ask(up, deadline)
	x.s.settle()
	if e == nil {
		e = x.awaitHead(up, deadline)
	}
	if e != nil {
		return nil, x.failAsk(up, e)
	}
	x.up = up
	return &up.resp, nil
}

// mayAsk refuses what only a mistake of the caller can ask for.
func (x *Exchange) mayAsk() *Error {
	if e := x.clientError(ReadBody); e != nil {
		return e
	}
	err := x.toUpstream.err
	if err == nil && (x.up != nil || !x.CanRetry()) {
		err = ErrNoReplay
	}
	if err == nil {
		return nil
	}
	return &Error{Side: SideLocal, Step: WriteHead, Status: http.StatusInternalServerError, Err: err}
}

// ask begins a stream of the upstream and sends the head, and what there is of the body.
func (x *Exchange) ask(up *Upstream, deadline time.Time) *Error {
	k := up.link
	if k == nil || !k.fit() {
		return x.upstreamError(WriteHead, ErrStale)
	}
	for k.free() <= 0 {
		if e := x.clientError(ReadBody); e != nil {
			return e
		}
		k.heads.add(x)
		err := x.w.Wait(deadline)
		k.heads.remove(x)
		if err != nil {
			return x.upstreamError(WriteHead, errSlow)
		}
		if !k.fit() {
			return x.upstreamError(WriteHead, ErrStale)
		}
	}
	if x.req.protocol != "" {
		if e := x.awaitOffer(k, deadline); e != nil {
			return e
		}
	}
	c := &x.client
	c.in.rewind()
	bare := c.inEnded && c.in.left == 0 && c.trailers == nil
	x.open(up, bare)
	if !bare {
		c.link(&up.stream)
		c.pump(maxWindow)
	}
	return nil
}

// awaitOffer waits for the upstream's SETTINGS and whether they offer extended CONNECT:
// it must not be sent without (RFC 8441 section 3).
func (x *Exchange) awaitOffer(k *link, deadline time.Time) *Error {
	deadline = earlier(deadline, x.s.now().Add(offerTime))
	k.touch() // our greeting, which goes with the first request else
	x.s.settle()
	for !k.greeted {
		if e := x.clientError(ReadBody); e != nil {
			return e
		}
		if !x.s.now().Before(deadline) {
			return x.upstreamError(WriteHead, errSlow)
		}
		_ = x.w.Wait(x.s.now().Add(offerPoll)) // nobody wakes who has no stream yet
		if !k.fit() {
			return x.upstreamError(WriteHead, ErrStale)
		}
	}
	if !k.connects {
		return &Error{Side: SideLocal, Step: WriteHead, Status: http.StatusNotImplemented, Err: ErrNoConnect}
	}
	return nil
}

const (
	offerTime = 5 * time.Second
	offerPoll = 2 * time.Millisecond
)

// open begins a stream of the upstream with the request's head, which is all of it if
// it is bare.
func (x *Exchange) open(up *Upstream, bare bool) {
	k := up.link
	up.reused = k.used
	k.used = true
	id := k.nextID
	k.nextID += 2
	k.maxID = id
	up.begin(&k.mux, id, x)
	up.edits = &x.toUpstream
	up.outBegun, up.outEnded = true, bare
	x.appendRequest(up, bare)
}

// appendRequest encodes the request head.
func (x *Exchange) appendRequest(up *Upstream, end bool) {
	r, k := &x.req, &up.link.mux
	out, from := k.beginHeaders(up.id, end)
	host, set := x.toUpstream.value("host")
	authority := false
	for i := range r.head.Fields[:len(r.head.Fields)-len(r.fields)] {
		f := &r.head.Fields[i]
		switch {
		case f.Class == pseudoPath && x.target != "":
			changed := hpack.Field{Name: ":path", Value: x.target}
			out = k.enc.Field(out, &changed)
			continue
		case f.Class == pseudoAuthority:
			if authority = true; set {
				continue
			}
		}
		out = k.enc.Field(out, f)
	}
	if set || !authority {
		if !set {
			host = r.authority
		}
		f := hpack.Field{Name: ":authority", Value: host}
		out = k.enc.Field(out, &f)
	}
	for i := range r.fields {
		f := &r.fields[i]
		if f.Class == fieldHost || x.toUpstream.drops(f.Name) {
			continue
		}
		out = k.enc.Field(out, f)
	}
	out = x.toUpstream.appendTo(out, &k.enc, fieldHost)
	k.endHeaders(out, from)
}

// awaitHead waits for the final response head.
func (x *Exchange) awaitHead(up *Upstream, deadline time.Time) *Error {
	var p progress
	for {
		if e := x.clientError(ReadBody); e != nil {
			return e
		}
		if up.headDone {
			return nil
		}
		if up.err != nil {
			return x.upstreamError(ReadResponse, up.err)
		}
		now := x.s.now()
		until := earlier(deadline, now.Add(x.s.cfg.StallTimeout)) // the client may stall meanwhile, which wakes nobody
		c := &x.client
		if !c.inEnded && c.in.left == 0 && !x.GRPC() {
			by := p.until(now, c.got, x.s.cfg.StallTimeout)
			if !now.Before(by) {
				return x.clientSlow(ReadBody)
			}
			until = earlier(until, by)
		}
		if !now.Before(deadline) {
			return x.upstreamError(ReadResponse, errSlow)
		}
		_ = x.w.Wait(until) // why it ended is seen above
	}
}

// progress tells how long nothing has moved.
type progress struct {
	mark  int64
	since time.Time
}

// until is when it has lasted for the limit.
func (p *progress) until(now time.Time, mark int64, limit time.Duration) time.Time {
	if p.since.IsZero() || p.mark != mark {
		p.mark, p.since = mark, now
	}
	return p.since.Add(limit)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (x *Exchange) clientSlow(step Step) *Error {
	e := &Error{Side: SideClient, Step: step, Timeout: true, Status: http.StatusRequestTimeout, Err: errSlow}
	if step == WriteResponse {
		x.err = e
	}
	return e
}

func (x *Exchange) upstreamError(step Step, err error) *Error {
	timeout := isTimeout(err)
	return &Error{Side: SideUpstream, Step: step, Timeout: timeout, Status: statusFor(SideUpstream, timeout), Err: err}
}

// failAsk ends a round trip: up is of no use any more.
func (x *Exchange) failAsk(up *Upstream, e *Error) *Error {
	e.Sent = up.outBegun && !up.safe
	e.Got, e.Reused = up.headDone || up.interim, up.reused
	up.cancel = Cancel
	var re *ResetError
	if e.Side == SideClient && errors.As(e.Err, &re) && re.Code <= EnhanceYourCalm {
		up.cancel = passedOn(re.Code)
	}
	_ = up.Close()
	return e
}

// passedOn is the code that an upstream gets for one of the client: complaints about
// us are none about it.
func passedOn(c ErrCode) ErrCode {
	switch c {
	case NoError, InternalError, Cancel, EnhanceYourCalm:
		return c
	}
	return Cancel
}
