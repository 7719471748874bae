package h1

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// pump sends a request whose body is still arriving, or that does not fit the
// socket at once, in a goroutine of its own, so that the response may begin, and
// the upstream may refuse, before the request has ended.
//
// While it runs it alone reads the client, writes the upstream and touches the
// request body. The exchange's goroutine reads the upstream and writes the client.
type pump struct {
	x        *Exchange
	up       *Upstream
	out      []byte // begins with what has to be written first
	deadline time.Time
	done     chan struct{}
	err      *Error // read it after done

	whole   bool // out is all there is to send
	running bool // from start to stop
	broken  bool // the request did not go out whole: the connection cannot be used again

	quit    atomic.Bool // set by stop
	lasting atomic.Bool // the response began: the deadline does not count any more
	ending  atomic.Bool // the last write has begun, so an answer is not early
	sent    atomic.Bool // something may have reached the upstream
	failed  atomic.Pointer[Error]
}

var errStopped = errors.New("stopped")

// reset forgets the round trip before.
func (p *pump) reset() {
	p.err, p.broken = nil, false
	p.sent.Store(false)
}

// start takes over x.out. whole says that it holds the body too.
func (p *pump) start(x *Exchange, up *Upstream, deadline time.Time, whole bool) {
	p.x, p.up, p.deadline, p.whole = x, up, deadline, whole
	p.out, x.out = x.out, nil
	p.err, p.running, p.broken = nil, true, false
	p.quit.Store(false)
	p.lasting.Store(false)
	p.ending.Store(whole)
	p.sent.Store(up.ask.sent)
	p.failed.Store(nil)
	p.done = make(chan struct{})
	go p.run()
}

func (p *pump) run() {
	defer close(p.done)
	p.err = p.copy()
	giveBuffer(p.out)
	p.out = nil
	if p.err != nil && p.err.Side == SideClient && !p.quit.Load() {
		p.failed.Store(p.err)
		p.up.wakeReader()
	}
}

// failure is why the client's side of a running pump broke, if it did.
func (p *pump) failure() error {
	if !p.running {
		return nil
	}
	if e := p.failed.Load(); e != nil {
		return e
	}
	return nil
}

// headCame lifts the deadline: the response has begun and may last.
func (p *pump) headCame() {
	if p.running {
		p.lasting.Store(true)
		_ = p.up.conn.SetWriteDeadline(time.Time{})
	}
}

// early reports whether the answer came while the request was still being sent.
func (p *pump) early() bool { return p.running && !p.ending.Load() }

// stop ends the pump, if it runs, and waits for it. A last write that has begun
// gets a moment to end well.
func (p *pump) stop() {
	if !p.running {
		return
	}
	p.quit.Store(true)
	p.x.s.wakeReader()
	by := longAgo
	if p.ending.Load() {
		by = p.x.s.cfg.Now().Add(time.Second)
	}
	_ = p.up.conn.SetWriteDeadline(by)
	<-p.done
	p.running = false
	p.broken = p.err != nil
	p.x.s.forget()
	p.up.forget()
	if p.err != nil && p.err.Err == errStopped {
		p.err = nil
	}
}

// copy sends what is at hand, then reads and sends until the body ends.
func (p *pump) copy() *Error {
	x, b := p.x, &p.x.body
	if p.whole {
		return p.write(WriteBody, p.out)
	}
	for {
		if e := p.flush(); e != nil {
			return e
		}
		if b.done {
			return nil
		}
		if x.own == nil {
			x.own = takeBuffer(largeBuffer)
			b.moveTo(x.own)
		}
		if kept := b.dec - b.from; kept > x.s.cfg.ReplayBytes || len(b.room()) == 0 || !x.kept {
			x.kept = x.kept && kept == 0
			b.recycle()
		}
		if e := p.read(); e != nil {
			return e
		}
	}
}

// flush writes what was built, and the data at hand in its framing.
func (p *pump) flush() *Error {
	x, b := p.x, &p.x.body
	step := WriteBody
	if len(p.out) > 0 {
		step = WriteHead
	}
	const frame = 32 // of a chunk, with its end
	if len(p.out)+len(b.data())+len(b.chunks.trailer)+frame > cap(p.out) && len(p.out) > 0 {
		if e := p.write(step, p.out); e != nil {
			return e
		}
		p.out, step = p.out[:0], WriteBody
	}
	if b.kind != byChunks && len(p.out) == 0 {
		p.ending.Store(b.done)
		data := b.data()
		b.sent = b.dec
		return p.write(step, data)
	}
	p.out = x.appendBody(p.out)
	b.sent = b.dec
	p.ending.Store(b.done)
	e := p.write(step, p.out)
	p.out = p.out[:0]
	return e
}

func (p *pump) write(step Step, data []byte) *Error {
	if len(data) == 0 {
		return nil
	}
	cfg := &p.x.s.cfg
	now := cfg.Now()
	if p.lasting.Load() {
		p.up.armWrite(now.Add(cfg.StallTimeout/2), now.Add(cfg.StallTimeout))
	} else {
		p.up.armWrite(p.deadline, p.deadline.Add(slack(now, p.deadline)))
		if p.lasting.Load() {
			p.up.writeBy = time.Time{}
			_ = p.up.conn.SetWriteDeadline(now.Add(cfg.StallTimeout))
		}
	}
	if p.quit.Load() && !p.ending.Load() {
		return &Error{Side: SideUpstream, Step: step, Err: errStopped}
	}
	p.sent.Store(true)
	_, err := p.up.write(data)
	if err == nil {
		return nil
	}
	if p.quit.Load() {
		err = errStopped
	}
	timeout := isTimeout(err)
	return &Error{Side: SideUpstream, Step: step, Timeout: timeout, Status: statusFor(SideUpstream, timeout), Err: err}
}

// read takes the next bytes of the body from the client.
func (p *pump) read() *Error {
	s, b := p.x.s, &p.x.body
	now := s.cfg.Now()
	until := now.Add(s.cfg.StallTimeout)
	for {
		s.armRead(now, until)
		if p.quit.Load() {
			return clientError(ReadBody, errStopped)
		}
		n, err := s.read(b.room())
		if err == nil {
			b.took(n)
			if err = b.advance(); err != nil {
				return clientError(ReadBody, err)
			}
			return nil
		}
		if !isTimeout(err) {
			return clientError(ReadBody, truncatedIfEOF(err))
		}
		s.readBy = time.Time{}
		if now = s.cfg.Now(); !now.Before(until) {
			return clientError(ReadBody, errSlow)
		}
	}
}

func truncatedIfEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return ErrTruncated
	}
	return err
}
