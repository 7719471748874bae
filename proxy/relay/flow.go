package relay

import (
	"errors"
	"io"
	"sync"

	"github.com/weir-mesh/weir/proxy/loop"
)

const (
	// A bigger buffer saves calls: bulk copy cost 0.51 s/GiB at 32 KiB, 0.41 at
	// 128 KiB. 64 KiB is where splice takes over, so more is of little use.
	bareBuffer = 64 << 10
	// Where TLS is on one side nothing is spliced, and many records read or
	// written at once save calls.
	wrappedBuffer = 128 << 10
	// A read into less room than a TLS record's 16 KiB (RFC 8446 section 5.1)
	// leaves half of one behind.
	recordRoom = 16 << 10

	// A flow that finds ever more lets the others go first after this much. A
	// turn of the loop costs about 1 µs, so a MiB hides it.
	turnBytes = 1 << 20
	turnMoves = 16
)

// flow is one direction of a session.
type flow struct {
	s    *Session
	side Side // where the bytes come from
}

// flowing is what is kept of a flow.
type flowing struct {
	moved int64     // bytes handed on
	bulk  *bulkness // nil while no read was large
}

// A session is parked with as the task of either flow: a method value, or a flow
// with a pointer to its session, would be memory for each.
type (
	fromClient   Session
	fromUpstream Session
)

func (s *fromClient) Run()   { (*Session)(s).from(Client).run() }
func (s *fromUpstream) Run() { (*Session)(s).from(Upstream).run() }

func (f flow) task() loop.Task {
	if f.side == Client {
		return (*fromClient)(f.s)
	}
	return (*fromUpstream)(f.s)
}

func (f flow) source() loop.Stream { return f.s.ends[f.side&1] }
func (f flow) sink() loop.Stream   { return f.s.ends[f.side&1^1] }
func (f flow) state() *flowing     { return &f.s.flows[f.side&1] }

// bare tells whether both ends are sockets with nothing around them.
func (f flow) bare() bool {
	_, client := f.s.ends[Client].(*loop.Conn)
	_, upstream := f.s.ends[Upstream].(*loop.Conn)
	return client && upstream
}

// start begins the task, now or when there is something to move.
func (f flow) start() {
	if x := f.s.extra; x != nil && len(x.first[f.side]) > 0 {
		f.source().Socket().Begin(f.task())
	} else {
		f.source().Park(f.task())
	}
}

// run is the task: it moves what there is, and is gone.
func (f flow) run() {
	switch err := f.move().(type) {
	case nil:
		f.source().Park(f.task())
	case *Error:
		f.s.ended(f.side, err)
	default: // io.EOF
		f.s.ended(f.side, nil)
	}
}

// move hands on until the source has nothing (nil), has ended (io.EOF), or
// something fails (*Error).
func (f flow) move() error {
	if err := f.writeFirst(); err != nil {
		return err
	}
	for moves, bytes := 0, 0; ; {
		n, err := f.step()
		if err == loop.ErrWouldBlock {
			return nil
		}
		if err != nil {
			return err
		}
		if !f.source().Readable() {
			return nil
		}
		moves++
		if bytes += n; moves >= turnMoves || bytes >= turnBytes {
			moves, bytes = 0, 0
			f.s.loop().Yield()
		}
	}
}

// writeFirst hands on what was read before the relay began.
func (f flow) writeFirst() error {
	x := f.s.extra
	if x == nil {
		return nil
	}
	err := f.write(x.first[f.side])
	if x.first[f.side] = nil; x.progress == nil && x.first[f.side.other()] == nil {
		f.s.extra = nil
	}
	return err
}

func (f flow) step() (int, error) {
	if b := f.state().bulk; b != nil && b.splicing {
		return f.splice()
	}
	return f.copy()
}

// copy hands on one bufferful.
func (f flow) copy() (int, error) {
	pool, bare := &wrappedBuffers, f.bare()
	if bare {
		pool = &bareBuffers
	}
	buf := pool.Get().(*[]byte)
	n, err := f.read(*buf, bare)
	if failed := f.write((*buf)[:n]); failed != nil {
		err = failed
	}
	pool.Put(buf)
	if bare {
		f.state().sawRead(n)
	}
	return n, err
}

// read reads what is there: io.EOF, loop.ErrWouldBlock or an *Error come with
// the bytes before them.
func (f flow) read(b []byte, bare bool) (n int, err error) {
	for {
		var more int
		more, err = f.source().TryRead(b[n:])
		n += more
		// A TLS layer gives a record at a time; a socket all it has.
		if err != nil || bare || len(b)-n < recordRoom || !f.source().Readable() {
			break
		}
	}
	switch {
	case err == nil:
		return n, nil
	case loop.IsWouldBlock(err):
		if n > 0 {
			return n, nil // the next read asks again, if there is reason to
		}
		return 0, loop.ErrWouldBlock
	case errors.Is(err, io.EOF):
		return n, io.EOF
	}
	return n, f.readError(err)
}

// write hands b on, waiting for room: a flow holds one buffer and no more. The
// error is nil or an *Error.
func (f flow) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := f.sink().Write(b)
	f.count(n)
	if err != nil {
		return f.writeError(err)
	}
	return nil
}

func (f flow) count(n int) {
	if n <= 0 {
		return
	}
	f.state().moved += int64(n)
	if w := f.s.watch; w != nil {
		w.last = f.s.loop().Now()
	}
	if x := f.s.extra; x != nil && x.progress != nil {
		x.progress(f.side, n)
	}
}

func (f flow) readError(err error) error {
	return &Error{Side: f.side, Op: "read", Err: err}
}

func (f flow) writeError(err error) error {
	return &Error{Side: f.side.other(), Op: "write", Err: err}
}

var (
	bareBuffers    = sync.Pool{New: func() any { b := make([]byte, bareBuffer); return &b }}
	wrappedBuffers = sync.Pool{New: func() any { b := make([]byte, wrappedBuffer); return &b }}
)
