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

// flow is one direction.
type flow struct {
	s     *Session
	again func()   // run, bound once: a method value at each Park is an allocation at each
	first []byte   // to be written before anything is read
	moved int64    // bytes handed on
	side  Side     // where the bytes come from
	bare  bool     // both ends are sockets with nothing around them
	bulk  bulkness // whether to splice
}

func (f *flow) init(s *Session, side Side, first []byte) {
	f.s, f.side, f.first = s, side, first
	f.again = f.run
	_, bareClient := s.ends[Client].(*loop.Conn)
	_, bareUpstream := s.ends[Upstream].(*loop.Conn)
	f.bare = bareClient && bareUpstream
	f.bulk.refused = !f.bare
}

func (f *flow) source() loop.Stream { return f.s.ends[f.side&1] }
func (f *flow) sink() loop.Stream   { return f.s.ends[f.side&1^1] }

// start begins the task, now or when there is something to move.
func (f *flow) start() {
	if len(f.first) > 0 {
		f.s.l.Go(f.again)
	} else {
		f.source().Park(f.again)
	}
}

// run is the task: it moves what there is, and is gone.
func (f *flow) run() {
	switch err := f.move().(type) {
	case nil:
		f.source().Park(f.again)
	case *Error:
		f.s.ended(f.side, err)
	default: // io.EOF
		f.s.ended(f.side, nil)
	}
}

// move hands on until the source has nothing (nil), has ended (io.EOF), or
// something fails (*Error).
func (f *flow) move() error {
	if err := f.write(f.first); err != nil {
		return err
	}
	f.first = nil
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
			f.s.l.Yield()
		}
	}
}

func (f *flow) step() (int, error) {
	if f.bulk.splicing {
		return f.splice()
	}
	return f.copy()
}

// copy hands on one bufferful.
func (f *flow) copy() (int, error) {
	pool := &wrappedBuffers
	if f.bare {
		pool = &bareBuffers
	}
	buf := pool.Get().(*[]byte)
	n, err := f.read(*buf)
	if failed := f.write((*buf)[:n]); failed != nil {
		err = failed
	}
	pool.Put(buf)
	f.bulk.sawRead(n)
	return n, err
}

// read reads what is there: io.EOF, loop.ErrWouldBlock or an *Error come with
// the bytes before them.
func (f *flow) read(b []byte) (n int, err error) {
	for {
		var more int
		more, err = f.source().TryRead(b[n:])
		n += more
		// A TLS layer gives a record at a time; a socket all it has.
		if err != nil || f.bare || len(b)-n < recordRoom || !f.source().Readable() {
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
func (f *flow) write(b []byte) error {
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

func (f *flow) count(n int) {
	if n <= 0 {
		return
	}
	f.moved += int64(n)
	f.s.watch.last = f.s.l.Now()
	if f.s.progress != nil {
		f.s.progress(f.side, n)
	}
}

func (f *flow) readError(err error) error {
	return &Error{Side: f.side, Op: "read", Err: err}
}

func (f *flow) writeError(err error) error {
	return &Error{Side: f.side.other(), Op: "write", Err: err}
}

var (
	bareBuffers    = sync.Pool{New: func() any { b := make([]byte, bareBuffer); return &b }}
	wrappedBuffers = sync.Pool{New: func() any { b := make([]byte, wrappedBuffer); return &b }}
)
