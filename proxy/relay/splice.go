package relay

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// Pipes of 256 KiB measured as good as 1 MiB. Beyond fs.pipe-user-pages-soft
	// (64 MiB as a rule) an unprivileged user's pipes shrink: this gives 256.
	pipeBytes = 256 << 10
	// So many pipes wait for the next flow, and no more: a pipe is two
	// descriptors. Flows that move bytes at the same instant are about as many
	// as there are processors, so a longer list would only be held.
	idlePipes = 32

	// The flow goes back to reading after so many small fills in a row, and
	// gives up its claim to pipes.
	smallFills = 8
	smallFill  = 16 << 10
)

const spliceFlags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK

// spliceWhileBulky moves bytes from socket to socket inside the kernel until the
// flow is no longer large. ended means that the source has ended.
//
// io.Copy would do the same with a pipe held for as long as the connection
// lives, which is four descriptors for each idle one. Here a pipe is taken once
// bytes are there and given back once they are handed on.
func (f *flow) spliceWhileBulky() (ended bool, failed *Error) {
	for few := 0; few < smallFills; {
		n, err := f.fill()
		if err != nil {
			return false, f.readError(err)
		}
		if f.pipe == nil { // no pipe was to be had: copying works without
			return false, nil
		}
		if n == 0 {
			pipes.put(f.takePipe())
			return true, nil
		}
		if err := f.drain(n); err != nil {
			return false, f.writeError(err)
		}
		few++
		if n >= smallFill {
			few = 0
		}
	}
	return false, nil
}

// fill waits for bytes and moves them into a pipe, which it leaves in f.pipe. No
// pipe and no error means that splicing is not possible now.
func (f *flow) fill() (int, error) {
	err := f.from.raw.Read(f.fillable)
	if err == nil {
		err = f.err
	}
	return f.n, err
}

func (f *flow) onFillable(fd uintptr) bool {
	f.n, f.err = 0, nil
	p, err := pipes.get()
	if err != nil {
		return true // not even tried; most often no descriptor is left
	}
	n, err := ignoringEINTR(func() (int, error) {
		n, err := unix.Splice(int(fd), nil, p.w, nil, p.size, spliceFlags)
		return int(n), err
	})
	switch err {
	case nil:
		f.pipe, f.n = p, n
		return true
	case unix.EAGAIN: // the pipe is empty, so it is the source that has nothing
		pipes.put(p)
		return false
	case unix.EINVAL, unix.ENOSYS, unix.EPERM: // not this kernel, or a seccomp filter
		pipes.put(p)
		f.splice = false
		return true
	}
	pipes.put(p)
	f.err = os.NewSyscallError("splice", err)
	return true
}

// drain moves the n bytes in f.pipe to the other end and gives the pipe back.
// While that end does not take them the pipe is what bounds memory.
func (f *flow) drain(n int) error {
	f.n, f.err = n, nil
	err := f.to.raw.Write(f.drainable)
	if err == nil {
		err = f.err
	}
	p := f.takePipe()
	if err != nil {
		p.close() // bytes are left in it
		return err
	}
	pipes.put(p)
	return nil
}

func (f *flow) onDrainable(fd uintptr) bool {
	for f.n > 0 {
		n, err := ignoringEINTR(func() (int, error) {
			n, err := unix.Splice(f.pipe.r, nil, int(fd), nil, f.n, spliceFlags)
			return int(n), err
		})
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			f.err = os.NewSyscallError("splice", err)
			return true
		}
		f.count(n)
		f.n -= n
	}
	return true
}

func (f *flow) takePipe() *pipe {
	p := f.pipe
	f.pipe = nil
	return p
}

// pipe is a kernel pipe; empty whenever it is in the list.
type pipe struct{ r, w, size int }

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	p := &pipe{r: fds[0], w: fds[1], size: pipeBytes}
	// A refusal leaves the size it has, and splice moves less at once.
	_, _ = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeBytes)
	return p, nil
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// pipes is shared by all relays of the process: a pipe belongs to no connection.
var pipes pipeList

type pipeList struct {
	mu   sync.Mutex // guards free
	free []*pipe
}

func (l *pipeList) get() (*pipe, error) {
	l.mu.Lock()
	if last := len(l.free) - 1; last >= 0 {
		p := l.free[last]
		l.free = l.free[:last]
		l.mu.Unlock()
		return p, nil
	}
	l.mu.Unlock()
	return newPipe()
}

func (l *pipeList) put(p *pipe) {
	l.mu.Lock()
	if len(l.free) < idlePipes {
		l.free = append(l.free, p)
		p = nil
	}
	l.mu.Unlock()
	if p != nil {
		p.close()
	}
}
