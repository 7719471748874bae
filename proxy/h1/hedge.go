package h1

import (
	"errors"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// RoundTripHedged is RoundTrip, but where nothing of an answer has come after a
// time, the request is sent to a second upstream, too. The one that answers first
// is used, and returned; the other is closed. Nobody waits for its end.
//
// other is asked for the second, in the caller's task; nil is none. What it
// returns is called in a task of its own, where it may wait for a connection, but
// must not touch the exchange: that may have ended. A request whose body is not
// whole, or not kept, and one to switch protocols, is not sent twice.
func (x *Exchange) RoundTripHedged(
	up *Upstream, deadline time.Time, after time.Duration, other func() (dial func() (*Upstream, error)),
) (*Response, *Upstream, error) {
	if e := x.mayAsk(); e != nil {
		return nil, up, e
	}
	now := x.s.cfg.now(x.s)
	if deadline.IsZero() {
		deadline = now.Add(forever)
	}
	x.got = false
	e := x.ask(up, now, deadline)
	if hedgeAt := now.Add(after); e == nil && x.whole() && hedgeAt.Before(deadline) {
		up, e = x.awaitEither(up, hedgeAt, deadline, other)
	}
	resp, err := x.take(up, deadline, e)
	return resp, up, err
}

// whole reports whether the request can be sent a second time while it is out.
func (x *Exchange) whole() bool {
	return x.body.done && !x.given && !x.pump.running && !x.switches() && x.toUpstream.err == nil
}

// appendWhole appends the request with its body.
func (x *Exchange) appendWhole(out []byte) []byte {
	out = x.appendRequest(out)
	sent := x.body.sent
	x.body.sent = x.body.from
	out = x.appendBody(out)
	x.body.sent = sent
	return out
}

// rival is the second try. Its task outlives the exchange if need be, so it holds
// nothing of it.
type rival struct {
	dial     func() (*Upstream, error)
	text     []byte
	deadline time.Time
	first    *Upstream
	task     *loop.Join

	up       *Upstream
	answered bool // up has bytes of an answer, and first was not done yet
	over     bool // nobody wants to know any more
}

// errRival is what a wait for the first upstream ends with when the second has
// answered.
var errRival = errors.New("the other upstream answered first")

// awaitEither waits until one upstream has said something; up is the one to go on
// with.
func (x *Exchange) awaitEither(up *Upstream, hedgeAt, deadline time.Time, other func() func() (*Upstream, error)) (*Upstream, *Error) {
	if up.r != up.w {
		return up, nil // it spoke before it was asked
	}
	err := x.waitUpstream(up, hedgeAt, nil)
	if err == nil {
		x.got = true
		return up, nil
	}
	if err != errSlow {
		return up, x.upstreamError(ReadResponse, err)
	}
	dial := other()
	if dial == nil {
		return up, nil
	}
	r := &rival{dial: dial, text: x.appendWhole(nil), deadline: deadline, first: up}
	x.rival = r
	r.task = x.s.conn.Socket().Loop().Spawn(r.run)
	err = x.waitUpstream(up, deadline, nil)
	x.rival = nil
	if err != nil && err != errRival && !isTimeout(err) && x.upstreamError(ReadResponse, err).Side == SideUpstream {
		r.task.Wait() // the first broke: all depends on the second
	}
	switch {
	case err == nil:
		r.end()
		x.got = true
		return up, nil
	case r.answered:
		_ = up.Close()
		x.got = true
		return r.up, nil
	}
	r.end()
	return up, x.upstreamError(ReadResponse, err)
}

// run sends the request and waits for the first bytes of the answer.
func (r *rival) run() {
	up, err := r.dial()
	if err != nil {
		return
	}
	r.up = up
	if !r.over {
		err = r.ask()
	}
	if r.over || err != nil {
		_ = up.Close()
		return
	}
	r.answered = true
	r.first.wakeReader()
}

func (r *rival) ask() error {
	up := r.up
	up.ok, up.before = false, up.written()
	_ = up.conn.SetDeadline(r.deadline) // fails on a closed connection only, as what follows will
	if _, err := up.write(r.text); err != nil {
		return err
	}
	if err := up.fill(); err != nil {
		return err
	}
	return up.conn.SetDeadline(time.Time{})
}

// end has the second try, if it is still under way, end by itself. One that had
// answered in the same turn of the loop is closed here.
func (r *rival) end() {
	r.over = true
	switch {
	case r.answered:
		_ = r.up.Close()
	case r.up != nil:
		_ = r.up.conn.SetDeadline(longAgo)
	}
}
