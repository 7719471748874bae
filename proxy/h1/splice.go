package h1

import (
	"io"
	"math"

	"github.com/weir-mesh/weir/proxy/loop"
)

const (
	// A body of which so much is still in the kernel is cheaper to splice than to
	// copy twice. Of copying it took 1.02 at 18 kB, 0.92 at 26 kB, 0.81 at 128 KiB
	// and half from 1 MiB on.
	spliceLeast = 24 << 10
	// Of an upstream that sends such bodies so much is read at first: the head as
	// a rule, so that the body stays in the kernel. With our own fields it has to
	// fit a segment of a network whose packets are 1500 bytes: the kernel keeps
	// back less than a segment only, and to send the head by itself costs as much
	// as splicing saves.
	firstPiece = 1 << 10
	// A fill smaller than this costs more than a copy of as much. After so many in
	// a row the rest of the body is copied.
	smallFill  = 16 << 10
	smallFills = 4
	// A body that never has to be waited for lets the others go first after so
	// much. A turn of the loop costs about 1 µs.
	turnBytes = 1 << 20
)

// splices reports whether the rest of the response goes from socket to socket,
// and notes whether the next one may. Bytes that do not pass through TCP are not
// found by a splice, and copied by one.
func (x *Exchange) splices(up *Upstream, how delivery) bool {
	c := &x.content
	if x.s.bare == nil || up.bare == nil || how == deliverNothing || up.bare.ShortCut() || x.s.bare.ShortCut() {
		return false
	}
	up.first = 0
	if c.kind == byLength && c.total+c.left >= spliceLeast {
		up.first = firstPiece
	}
	return !c.done && (how == deliverAsIs && c.left >= spliceLeast || how == deliverAndClose && c.kind == untilClose)
}

// relaySpliced passes on x.out, what is at hand of the body, and the rest through
// a pipe. No more is taken from the upstream than belongs to the body: what
// follows it stays in the socket. c.done is false, with nothing half sent, where
// copying does better.
func (x *Exchange) relaySpliced(up *Upstream, how delivery) *Error {
	p, err := up.bare.Loop().Pipe()
	if err != nil {
		return nil
	}
	c := &x.content
	c.pipe = p
	defer func() { c.pipe = nil; p.Free() }()
	e, err := x.writeBegin(up, how)
	for small, moved := 0, 0; e == nil; {
		if err == loop.ErrWouldBlock {
			err = x.waitUpstream(up, x.s.cfg.now(x.s).Add(x.streamIdle()), c)
		}
		switch {
		case err == loop.ErrNoSplice:
			return nil
		case err == io.EOF && c.kind == untilClose:
			c.done = true
			return nil
		case err != nil:
			return x.upstreamError(ReadContent, err)
		}
		if small++; p.Held() >= smallFill {
			small = 0
		}
		x.received += int64(p.Held())
		moved += p.Held()
		c.piped(p.Held())
		if e = x.pour(p); c.done {
			return e
		}
		if small == smallFills {
			up.first = 0 // the next is most likely like it
			return e
		}
		if err = loop.ErrWouldBlock; moved >= turnBytes {
			moved = 0
			up.bare.Loop().Yield()
		}
	}
	return e
}

// writeBegin writes the head and what is at hand of the body. A pipeful that is
// there already, err being nil then, is to go with it: the first write is held
// back for the second.
func (x *Exchange) writeBegin(up *Upstream, how delivery) (e *Error, err error) {
	c, data := &x.content, x.content.data()
	err = loop.ErrWouldBlock
	if len(data) <= firstPiece && up.bare.Readable() {
		_, err = c.pipe.Fill(up.bare, c.most())
	}
	if err != nil {
		return x.writeContent(how), err
	}
	x.received += int64(len(data))
	c.sent = c.dec
	x.out = append(x.out, data...)
	n, failed := x.s.bare.TryWriteMore(x.out)
	if failed != nil {
		return clientError(WriteResponse, failed), nil
	}
	e = x.writeClient(x.out[n:])
	x.out = x.out[:0]
	return e, nil
}

// pour hands a pipeful to the client, who may take StallTimeout for each piece.
func (x *Exchange) pour(p *loop.Pipe) *Error {
	for p.Held() > 0 {
		_ = x.s.conn.SetWriteDeadline(x.s.cfg.now(x.s).Add(x.s.cfg.StallTimeout)) // fails on a closed connection only, as pouring will
		if _, err := p.Pour(x.s.bare); err != nil {
			return clientError(WriteResponse, err)
		}
	}
	return nil
}

// most is how much may be taken from the socket without taking what follows the body.
func (b *body) most() int {
	if b.kind == byLength {
		return int(min(b.left, math.MaxInt))
	}
	return math.MaxInt
}

// piped says that n bytes of the body, which has none at hand, went through a pipe.
func (b *body) piped(n int) {
	b.total += int64(n)
	if b.kind == byLength {
		b.left -= int64(n)
		b.done = b.left == 0
	}
}

// fill takes the next bytes of a body into a pipe, waiting for them.
func (b *body) fill(p *loop.Pipe, from *loop.Conn) error {
	for {
		if from.Readable() {
			if _, err := p.Fill(from, b.most()); err != loop.ErrWouldBlock {
				return err
			}
		}
		if err := from.WaitRead(); err != nil {
			return err
		}
	}
}

// splices reports whether the rest of the request goes from socket to socket: it
// cannot be sent again, so only when that is no longer possible anyway.
func (p *pump) splices() bool {
	b := &p.x.body
	return !p.copies && p.x.given && b.kind == byLength && b.left >= spliceLeast && p.x.s.bare != nil && p.up.bare != nil &&
		!p.x.s.bare.ShortCut() && !p.up.bare.ShortCut()
}

// splice sends the request body on through a pipe, until it ends or copying does
// better. All that was read before has been sent.
func (p *pump) splice() *Error {
	b := &p.x.body
	pipe, err := p.up.bare.Loop().Pipe()
	if err != nil {
		p.copies = true
		return nil
	}
	defer pipe.Free()
	for small, moved := 0, 0; !b.done; {
		if small == smallFills {
			p.copies = true
			return nil
		}
		e := p.take(func() error { return b.fill(pipe, p.x.s.bare) })
		if e != nil && e.Err == loop.ErrNoSplice {
			p.copies = true
			return nil
		}
		if e != nil {
			return e
		}
		if small++; pipe.Held() >= smallFill {
			small = 0
		}
		moved += pipe.Held()
		b.piped(pipe.Held())
		p.ending = b.done
		if e := p.pour(pipe); e != nil {
			return e
		}
		if moved >= turnBytes {
			moved = 0
			p.up.bare.Loop().Yield()
		}
	}
	return nil
}

// pour hands a pipeful to the upstream.
func (p *pump) pour(pipe *loop.Pipe) *Error {
	for pipe.Held() > 0 {
		give := func() error {
			_, err := p.up.gave(pipe.Pour(p.up.bare))
			return err
		}
		if e := p.hand(WriteBody, give); e != nil {
			return e
		}
	}
	return nil
}
