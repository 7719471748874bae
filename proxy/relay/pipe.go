package relay

import (
	"fmt"
	"sync"

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
	// descriptors. Flows that move bytes at the same instant are about as many
	// as there are loops and slow readers, so a longer list would only be held.
	idlePipes = 32
)

// pipe is a kernel pipe; empty whenever it is in the list.
type pipe struct{ r, w, size int }

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	p := &pipe{r: fds[0], w: fds[1]}
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

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// pipes is shared by all loops of the process: a pipe belongs to no connection.
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
