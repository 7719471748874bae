package h2

import "time"

// RoundTripHedged is RoundTrip, but where no head of an answer has come after a time,
// the request is sent to a second upstream, too. The one whose head comes first is
// used, and returned; the other's stream is reset (CANCEL). Nobody waits for its end.
//
// other is asked for the second, in the caller's task; nil is none. What it returns is
// called in a task of its own, where it may wait for a connection, but must not touch
// the exchange: that may have ended. A request whose body is not whole by then, or not
// kept, is not sent twice.
func (x *Exchange) RoundTripHedged(
	up *Upstream, deadline time.Time, after time.Duration, other func() (dial func() (*Upstream, error)),
) (*Response, *Upstream, error) {
	if e := x.mayAsk(); e != nil {
		_ = up.Close()
		return nil, up, e
	}
	if deadline.IsZero() {
		deadline = x.s.now().Add(forever)
	}
	hedgeAt := x.s.now().Add(after)
	e := x.ask(up, deadline)
	x.s.settle()
	if e == nil {
		if e = x.awaitHead(up, earlier(hedgeAt, deadline)); x.late(e, deadline) {
			up, e = x.awaitEither(up, deadline, other)
		}
	}
	if e != nil {
		return nil, up, x.failAsk(up, e)
	}
	x.up = up
	return &up.resp, up, nil
}

// late reports whether an error is only that the time for a hedge has come.
func (x *Exchange) late(e *Error, deadline time.Time) bool {
	return e != nil && e.Side == SideUpstream && e.Timeout && x.s.now().Before(deadline)
}

// rival is the second try. Until it is over its task may touch the exchange.
type rival struct {
	x    *Exchange
	dial func() (*Upstream, error)

	up     *Upstream // once there is a place, until the request is over there
	body   []byte    // what is left of it to be sent
	begun  bool
	failed bool
	over   bool // nobody wants to know any more
}

// run takes a place.
func (r *rival) run() {
	up, err := r.dial()
	switch {
	case r.over && err == nil:
		_ = up.Close()
	case r.over:
	default:
		r.up, r.failed = up, err != nil
		r.x.w.Wake()
	}
}

// awaitEither waits until the head of an answer has come from one upstream; up is the
// one to go on with.
func (x *Exchange) awaitEither(up *Upstream, deadline time.Time, other func() func() (*Upstream, error)) (*Upstream, *Error) {
	c := &x.client
	if !c.inEnded || !c.whole {
		return up, x.awaitHead(up, deadline)
	}
	dial := other()
	if dial == nil {
		return up, x.awaitHead(up, deadline)
	}
	r := &rival{x: x, dial: dial, body: c.in.appendAll(nil)}
	x.s.l.Go(r.run)
	var broke *Error // how the first did
	for {
		if e := x.clientError(ReadBody); e != nil {
			r.end()
			return up, e
		}
		full := r.push()
		x.s.settle()
		if up.err != nil && !up.headDone && broke == nil {
			broke = x.upstreamError(ReadResponse, up.err)
		}
		switch {
		case up.headDone, broke != nil && r.failed:
			r.end()
			return up, broke
		case r.answered():
			r.over = true
			_ = up.Close()
			return r.up, nil
		case !x.s.now().Before(deadline):
			r.end()
			return up, x.upstreamError(ReadResponse, errSlow)
		}
		if full != nil {
			full.heads.add(x)
		}
		_ = x.w.Wait(deadline) // why it ended is seen above
		if full != nil {
			full.heads.remove(x)
		}
	}
}

// push sends what may be sent of the request. It returns the connection that has no
// room for more, if that is why there is more.
func (r *rival) push() (full *mux) {
	up := r.up
	switch {
	case up == nil:
		return nil
	case !r.begun && (up.link == nil || !up.link.fit() || up.link.free() <= 0), r.begun && up.err != nil && !up.headDone:
		r.fail()
		return nil
	case !r.begun:
		r.begun = true
		r.x.open(up, len(r.body) == 0 && r.x.client.trailers == nil)
	}
	s := &up.stream
	for n := 1; n > 0 && len(r.body) > 0 && s.err == nil; {
		if n = s.most(len(r.body)); n > 0 {
			s.sendData(r.body[:n], n == len(r.body) && r.x.client.trailers == nil)
			r.body = r.body[n:]
		}
	}
	switch {
	case s.err != nil:
	case len(r.body) == 0 && !s.outEnded:
		s.sendEnd(r.x.client.trailers)
	case len(r.body) > 0 && s.window > 0:
		return s.m
	}
	return nil
}

func (r *rival) answered() bool { return r.up != nil && r.up.headDone }

// fail gives up: it depends on the first.
func (r *rival) fail() {
	up := r.up
	r.up, r.failed = nil, true
	_ = up.Close()
}

// end has the second try, if it is still under way, end by itself.
func (r *rival) end() {
	if r.over = true; r.up != nil {
		r.fail()
	}
}
