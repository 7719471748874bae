package h1

import (
	"errors"
	"io"
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// pump sends a request whose body is still arriving, or that does not fit the
// socket at once, in a task of its own, so that the response may begin, and
// the upstream may refuse, before the request has ended.
//
// While it runs it alone reads the client, writes the upstream and touches the
// request body. The exchange's task reads the upstream and writes the client.
type pump struct {
	x        *Exchange
	up       *Upstream
	out      []byte // begins with what has to be written first
	deadline time.Time
	task     *loop.Join
	err      *Error // read it after the task's end

	whole   bool // out is all there is to send
	running bool // from start to stop
	copies  bool // splicing was found to be of no use
	broken  bool // the request did not go out whole: the connection cannot be used again

	quit    bool // set by stop
	lasting bool // the response began: the deadline does not count any more
	ending  bool // the last write has begun, so an answer is not early
	failed  *Error
}

var errStopped = errors.New("stopped")

// reset forgets the round trip before.
func (p *pump) reset() {
	p.err, p.broken = nil, false
}

// start takes over x.out. whole says that it holds the body too.
func (p *pump) start(x *Exchange, up *Upstream, deadline time.Time, whole bool) {
	p.x, p.up, p.deadline, p.whole = x, up, deadline, whole
	p.out, x.out = x.out, nil
	p.err, p.running, p.broken, p.copies = nil, true, false, false
	p.quit = false
	p.lasting = false
	p.ending = whole
	p.failed = nil
	p.task = x.s.conn.Socket().Loop().Spawn(p.run)
}

func (p *pump) run() {
	p.err = p.copy()
	p.x.s.stock.give(p.out)
	p.out = nil
	if p.err != nil && p.err.Side == SideClient && !p.quit {
		p.failed = p.err
		p.up.wakeReader()
	}
}

// failure is why the client's side of a running pump broke, if it did.
func (p *pump) failure() error {
	if !p.running {
		return nil
	}
	if e := p.failed; e != nil {
		return e
	}
	return nil
}

// headCame lifts the deadline: the response has begun and may last.
func (p *pump) headCame() {
	if p.running {
		p.lasting = true
		_ = p.up.conn.SetWriteDeadline(time.Time{})
	}
}

// early reports whether the answer came while the request was still being sent.
func (p *pump) early() bool { return p.running && !p.ending }

// stop ends the pump, if it runs, and waits for it. A last write that has begun
// gets a moment to end well.
func (p *pump) stop() {
	if !p.running {
		return
	}
	p.quit = true
	p.x.s.wakeReader()
	by := longAgo
	if p.ending {
		by = p.x.s.cfg.now(p.x.s).Add(time.Second)
	}
	_ = p.up.conn.SetWriteDeadline(by)
	p.task.Wait()
	p.running = false
	p.broken = p.err != nil
	_ = p.up.conn.SetWriteDeadline(time.Time{})
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
			x.own = x.s.stock.take(largeBuffer)
			b.moveTo(x.own)
		}
		if kept := b.dec - b.from; kept > x.s.cfg.ReplayBytes || len(b.room()) == 0 || x.given {
			x.given = x.given || kept != 0
			b.recycle()
		}
		if p.splices() {
			if e := p.splice(); e != nil || b.done {
				return e
			}
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
		p.ending = b.done
		data := b.data()
		b.sent = b.dec
		return p.write(step, data)
	}
	p.out = x.appendBody(p.out)
	b.sent = b.dec
	p.ending = b.done
	e := p.write(step, p.out)
	p.out = p.out[:0]
	return e
}

func (p *pump) write(step Step, data []byte) *Error {
	if len(data) == 0 {
		return nil
	}
	return p.hand(step, func() error { _, err := p.up.write(data); return err })
}

// hand has something given to the upstream, which may take its time for it.
func (p *pump) hand(step Step, give func() error) *Error {
	cfg := p.x.s.cfg
	by := p.deadline
	if p.lasting {
		by = cfg.now(p.x.s).Add(cfg.StallTimeout)
	}
	_ = p.up.conn.SetWriteDeadline(by) // fails on a closed connection only, as the write will
	if p.quit && !p.ending {
		return &Error{Side: SideUpstream, Step: step, Err: errStopped}
	}
	err := give()
	if err == nil {
		return nil
	}
	if p.quit {
		err = errStopped
	}
	timeout := isTimeout(err)
	return &Error{Side: SideUpstream, Step: step, Timeout: timeout, Status: statusFor(SideUpstream, timeout), Err: err}
}

// read takes the next bytes of the body from the client.
func (p *pump) read() *Error {
	b := &p.x.body
	return p.take(func() error {
		n, err := p.x.s.conn.Read(b.room())
		if err != nil {
			return err
		}
		b.took(n)
		return b.advance()
	})
}

// take has something read from the client, which may take its time for it.
func (p *pump) take(read func() error) *Error {
	s := p.x.s
	if p.quit {
		return clientError(ReadBody, errStopped)
	}
	_ = s.conn.SetReadDeadline(s.cfg.now(s).Add(s.cfg.StallTimeout)) // fails on a closed connection only, as the read will
	err := read()
	switch {
	case err == nil:
	case isTimeout(err) && p.quit:
		err = errStopped
	case isTimeout(err):
		err = errSlow
	default:
		err = truncatedIfEOF(err)
	}
	if err != nil {
		return clientError(ReadBody, err)
	}
	return nil
}

func truncatedIfEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return ErrTruncated
	}
	return err
}
