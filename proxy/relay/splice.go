package relay

import (
	"io"
	"math"

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
	p, err := f.s.loop().Pipe()
	if err != nil { // most often no descriptor is left: copying works without
		bulk.mark.lower(from)
		bulk.splicing = false
		return f.copy()
	}
	defer p.Free()
	bulk.mark.woken(from)
	n, err := p.Fill(from, math.MaxInt)
	switch err {
	case nil:
		if bulk.sawFill(n); !bulk.splicing {
			bulk.mark.lower(from)
		}
		return n, f.drain(p)
	case io.EOF: // or urgent data, before which splice(2) stops in the same way: a read tells
		bulk.mark.lower(from)
		bulk.splicing = false
		return f.copy()
	case loop.ErrWouldBlock:
		bulk.mark.drained(from)
		return 0, loop.ErrWouldBlock
	case loop.ErrNoSplice:
		bulk.mark.lower(from)
		bulk.splicing, bulk.refused = false, true
		return f.copy()
	}
	return 0, f.readError(err)
}

// drain moves what is in p to the other end. While that end does not take it the
// pipe is what bounds memory.
func (f flow) drain(p *loop.Pipe) error {
	for to := f.sink().Socket(); p.Held() > 0; {
		n, err := p.Pour(to)
		if err != nil {
			return f.writeError(err)
		}
		f.count(n)
	}
	return nil
}
