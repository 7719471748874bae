package relay

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// A bigger buffer saves calls: bulk copy cost 0.51 s/GiB at 32 KiB, 0.41 at
	// 128 KiB. 64 KiB is where splice takes over, so more is of little use.
	largeBuffer = 64 << 10
	// What a quiet connection holds where bytes cannot be awaited without a
	// buffer (TLS). A read that fills it is followed by a large one.
	smallBuffer = 4 << 10

	// Splicing begins after this many large reads that were at least half full,
	// in a row. Below it a pipe costs more than the copy it saves.
	bulkReads = 4
	bulkRead  = largeBuffer / 2
)

// flow is one direction. Only its own goroutine touches it, but for moved.
type flow struct {
	s        *session
	side     Side // where the bytes come from
	from, to *end
	moved    atomic.Int64 // bytes handed on; also read by the watch

	splice bool // both ends are bare and the kernel has not refused

	// Results of the callbacks below. They are bound once, because a method
	// value made at each read is an allocation at each read.
	readable, fillable, drainable func(fd uintptr) bool
	buf                           *[]byte
	pipe                          *pipe
	n                             int
	err                           error
}

func (f *flow) init(s *session, side Side) {
	f.s, f.side = s, side
	f.from, f.to = &s.ends[side], &s.ends[side.other()]
	f.splice = f.from.raw != nil && f.to.raw != nil
	f.readable, f.fillable, f.drainable = f.onReadable, f.onFillable, f.onDrainable
}

// run copies until the source ends (nil) or one of the ends fails.
func (f *flow) run(first [][]byte) *Error {
	for _, b := range first {
		if len(b) == 0 {
			continue
		}
		if err := f.write(b); err != nil {
			return err
		}
	}
	if f.from.raw == nil {
		return f.copyWrapped()
	}
	return f.copyBare()
}

// copyBare copies from a TCP socket. No buffer is held while it is silent.
func (f *flow) copyBare() *Error {
	for large := 0; ; {
		n, err := f.readBare()
		if err != nil || n == 0 {
			return err
		}
		if n < bulkRead {
			large = 0
			continue
		}
		if large++; large < bulkReads || !f.splice {
			continue
		}
		large = 0
		if ended, err := f.spliceWhileBulky(); ended || err != nil {
			return err
		}
	}
}

// readBare waits for bytes, then copies one bufferful. n is 0 at the end.
func (f *flow) readBare() (n int, failed *Error) {
	err := f.from.raw.Read(f.readable)
	if err == nil {
		err = f.err
	}
	if f.buf != nil {
		defer func() {
			large.Put(f.buf)
			f.buf = nil
		}()
	}
	if err != nil {
		return 0, f.readError(err)
	}
	if f.n == 0 {
		return 0, nil
	}
	return f.n, f.write((*f.buf)[:f.n])
}

// onReadable is called by the runtime's poller when there may be bytes. The
// buffer is taken only here, so that ten thousand silent connections hold none.
func (f *flow) onReadable(fd uintptr) bool {
	buf := large.Get().(*[]byte)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), *buf) })
	if err == unix.EAGAIN {
		large.Put(buf)
		return false
	}
	f.buf, f.n, f.err = buf, max(n, 0), os.NewSyscallError("read", err)
	return true
}

// copyWrapped copies from a connection that must be given a buffer to wait.
func (f *flow) copyWrapped() *Error {
	pool := &small
	for {
		buf := pool.Get().(*[]byte)
		n, err := f.from.conn.Read(*buf)
		var failed *Error
		if n > 0 {
			failed = f.write((*buf)[:n])
		}
		filled := n == len(*buf)
		pool.Put(buf)
		switch {
		case failed != nil:
			return failed
		case errors.Is(err, io.EOF) && f.from.wasCut():
			return f.readError(io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return f.readError(err)
		}
		switch {
		case filled:
			pool = &large
		case n <= smallBuffer:
			pool = &small
		}
	}
}

// write hands b on.
func (f *flow) write(b []byte) *Error {
	n, err := f.to.conn.Write(b)
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
	f.moved.Add(int64(n))
	if f.s.progress != nil {
		f.s.progress(f.side, n)
	}
}

func (f *flow) readError(err error) *Error {
	return &Error{Side: f.side, Op: "read", Err: err}
}

func (f *flow) writeError(err error) *Error {
	return &Error{Side: f.side.other(), Op: "write", Err: err}
}

var (
	small = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	large = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
)

// ignoringEINTR repeats a system call that a signal interrupted.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
