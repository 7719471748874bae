package loop

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// A fill is one look at the socket, one window update to the sender and one
	// push to the receiver: the larger, the fewer.
	// What a slow receiver leaves in it adds a tenth to what the kernel's two
	// socket buffers hold already.
	pipeBytes = 1 << 20
	// Beyond fs.pipe-user-pages-soft (64 MiB as a rule) an unprivileged user's
	// pipes are one or two pages and stay so, pipe(7). Copying is better then.
	leastPipe = 64 << 10
	// So many pipes wait for the next flow, and no more: a pipe is two
	// descriptors. Flows that move bytes at the same instant are those whose
	// receivers are slow, so a longer list would only be held.
	idlePipes = 16
	// So many are lent at a time. Who gets none copies, which bounds what slow
	// receivers hold on a loop to 64 MiB and 128 descriptors.
	lentPipes = 64
)

// Why there is no pipe, or no use in one. Who meets them copies instead.
var (
	ErrNoPipe   = errors.New("loop: as many pipes are lent as may be")
	ErrNoSplice = errors.New("loop: the kernel does not splice here")
)

// Pipe carries bytes from socket to socket inside the kernel: nothing is copied.
// It belongs to a flow only while there are bytes in it, or about to be.
type Pipe struct {
	l          *Loop
	r, w, size int
	held       int
}

// pipes are those of a loop. The one used last is lent first.
type pipes struct {
	free []*Pipe
	lent int
}

// Pipe lends an empty pipe, until Free. An error means that there is none now:
// ErrNoPipe, or most often no descriptor is left.
func (l *Loop) Pipe() (*Pipe, error) {
	if l.pipes.lent >= lentPipes {
		return nil, ErrNoPipe
	}
	if last := len(l.pipes.free) - 1; last >= 0 {
		p := l.pipes.free[last]
		l.pipes.free = l.pipes.free[:last]
		l.pipes.lent++
		return p, nil
	}
	p, err := newPipe(l)
	if err == nil {
		l.pipes.lent++
	}
	return p, err
}

// Pipes are how many pipes of the loop are lent, and how many wait to be.
func (l *Loop) Pipes() (lent, free int) { return l.pipes.lent, len(l.pipes.free) }

func newPipe(l *Loop) (*Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	p := &Pipe{l: l, r: fds[0], w: fds[1]}
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeBytes)
	if err != nil { // refused: it has the size it was made with
		size, err = unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	}
	if err == nil && size < leastPipe {
		err = fmt.Errorf("only %d bytes are to be had", size)
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("size a pipe: %w", err)
	}
	p.size = size
	return p, nil
}

func (p *Pipe) close() {
	_ = rawClose(p.r)
	_ = rawClose(p.w)
}

// Free gives the pipe back. What it still holds is dropped.
func (p *Pipe) Free() {
	l := p.l
	l.pipes.lent--
	if p.held > 0 || len(l.pipes.free) >= idlePipes {
		p.close()
		return
	}
	l.pipes.free = append(l.pipes.free, p)
}

func (l *Loop) closePipes() {
	for _, p := range l.pipes.free {
		p.close()
	}
	l.pipes.free = nil
}

// Held is the number of bytes in the pipe.
func (p *Pipe) Held() int { return p.held }

// Fill takes at most so many bytes from a socket into an empty pipe, and never
// waits: ErrWouldBlock when there are none, io.EOF at their end (or before urgent
// data that came with the end: a read tells), ErrNoSplice where they have to be
// copied.
func (p *Pipe) Fill(from *Conn, most int) (int, error) {
	if from.is(closed) {
		return 0, net.ErrClosed
	}
	if from.is(urgent) || from.ShortCut() { // a splice stops before urgent data and says EAGAIN, whatever is behind
		return 0, ErrNoSplice
	}
	n, errno := splice(int(from.fd), p.w, min(most, p.size))
	switch errno {
	case 0:
		if n == 0 {
			return 0, io.EOF
		}
		p.held += n
		return n, nil
	case unix.EAGAIN: // the pipe is empty, so it is the socket that has nothing
		from.unset(readable)
		return 0, ErrWouldBlock
	case unix.EINVAL, unix.ENOSYS, unix.EPERM: // not this kernel, or a seccomp filter
		return 0, ErrNoSplice
	}
	return 0, from.failed("splice", errno)
}

// Pour moves what the pipe holds into a socket, as far as there is room, waiting
// until there is some. The receiver's pace is what bounds the sender's: fill the
// pipe only once nothing is held.
func (p *Pipe) Pour(to *Conn) (int, error) {
	for {
		if to.is(closed) {
			return 0, net.ErrClosed
		}
		n, errno := 0, unix.EAGAIN
		if to.HasRoom() {
			n, errno = splice(p.r, int(to.fd), p.held)
		}
		if errno == 0 && n > 0 {
			p.held -= n
			to.Wrote(n)
			return n, nil
		}
		if errno != 0 && errno != unix.EAGAIN {
			return 0, to.failedTo("write", "splice", errno)
		}
		if err := to.WaitWrite(); err != nil {
			return 0, err
		}
	}
}

// TryWriteMore is TryWrite of what more follows at once: the kernel keeps what
// does not fill a segment, for a fifth of a second at most, to send both together.
func (c *Conn) TryWriteMore(b []byte) (n int, err error) {
	if c.is(closed) {
		return 0, net.ErrClosed
	}
	n, errno := ignoringEINTR(int(c.fd), b, rawSendMore)
	if errno != 0 && errno != unix.EAGAIN {
		return 0, c.failed("write", errno)
	}
	return max(n, 0), nil
}

// splice does not tell the scheduler, as it never blocks. Told, the runtime may
// take the processor from a thread that is in one call for 20 µs, which a large
// splice is: bulk then cost 0.23 s/GiB, not 0.20.
func splice(from, to, n int) (int, syscall.Errno) {
	const flags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	for {
		done, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), flags)
		if errno != unix.EINTR {
			return int(done), errno
		}
	}
}
