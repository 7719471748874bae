package relay

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

const (
	// Splicing begins after this many reads that were at least half full, in a
	// row. Below it a pipe costs more than the copy it saves.
	bulkReads = 4
	bulkRead  = bareBuffer / 2

	// The flow goes back to reading after so many small fills in a row.
	smallFills = 8
	smallFill  = 16 << 10
)

const spliceFlags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK

// bulkness is how a flow decides between copying and splicing.
type bulkness struct {
	refused  bool // by the kernel
	splicing bool
	inARow   uint8 // large reads while copying, small fills while splicing
	mark     mark
}

// sawRead decides whether to go on copying. Most flows never see a large read.
func (f *flowing) sawRead(n int) {
	if f.bulk == nil {
		if n < bulkRead {
			return
		}
		f.bulk = new(bulkness)
	}
	switch b := f.bulk; {
	case n < bulkRead || b.refused:
		b.inARow = 0
	case b.inARow+1 < bulkReads:
		b.inARow++
	default:
		b.splicing, b.inARow = true, 0
	}
}

// sawFill decides whether to go on splicing.
func (b *bulkness) sawFill(n int) {
	b.mark.filled(n)
	switch {
	case n >= smallFill:
		b.inARow = 0
	case b.inARow+1 < smallFills:
		b.inARow++
	default:
		b.splicing, b.inARow = false, 0
	}
}

// splice moves one pipeful from socket to socket inside the kernel. The pipe is
// taken once bytes are there and given back once they are handed on: one held by
// every connection is four descriptors for each that is idle.
func (f flow) splice() (int, error) {
	from, bulk := f.source().Socket(), f.state().bulk
	if from.Closed() {
		return 0, f.readError(net.ErrClosed)
	}
	p, err := pipes.get()
	if err != nil { // most often no descriptor is left: copying works without
		bulk.mark.lower(from)
		bulk.splicing = false
		return f.copy()
	}
	bulk.mark.woken(from)
	n, errno := spliceOnce(from.FD(), p.w, p.size)
	if errno == 0 && n > 0 {
		if bulk.sawFill(n); !bulk.splicing {
			bulk.mark.lower(from)
		}
		return n, f.drain(p, n)
	}
	pipes.put(p)
	switch errno {
	case 0:
		return 0, io.EOF
	case unix.EAGAIN: // the pipe is empty, so it is the source that has nothing
		from.Drained()
		bulk.mark.drained(from)
		return 0, loop.ErrWouldBlock
	case unix.EINVAL, unix.ENOSYS, unix.EPERM: // not this kernel, or a seccomp filter
		bulk.mark.lower(from)
		bulk.splicing, bulk.refused = false, true
		return f.copy()
	}
	return 0, f.readError(os.NewSyscallError("splice", errno))
}

// drain moves the n bytes in p to the other end and gives the pipe back. While
// that end does not take them the pipe is what bounds memory.
func (f flow) drain(p *pipe, n int) error {
	to := f.sink().Socket()
	for n > 0 {
		done, errno := spliceOnce(p.r, to.FD(), n)
		var err error
		switch {
		case errno == 0:
			f.count(done)
			n -= done
		case errno == unix.EAGAIN || to.Closed():
			err = to.WaitWrite() // which knows about closed
		default:
			err = os.NewSyscallError("splice", errno)
		}
		if err != nil {
			p.close() // bytes are left in it
			return f.writeError(err)
		}
	}
	pipes.put(p)
	return nil
}

// spliceOnce does not tell the scheduler, as it never blocks. Told, the runtime
// may take the processor from a thread that is in one call for 20 µs, which a
// large splice is: bulk then cost 0.23 s/GiB, not 0.20.
func spliceOnce(from, to, n int) (int, syscall.Errno) {
	for {
		done, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), spliceFlags)
		if errno != unix.EINTR {
			return int(done), errno
		}
	}
}
