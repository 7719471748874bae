package h2

import (
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Sizes of memory that is lent: buffers to read into and to gather what is to be
// written, and pieces of bodies that cannot go on at once.
const (
	bufferSize = 64 << 10
	largePiece = 16 << 10
	smallPiece = 2 << 10 // the message of most calls
)

// Bounds of what is kept on a loop that nobody uses: 4 MiB of each size.
const (
	maxBuffers     = 64
	maxLargePieces = 256
	maxSmallPieces = 2048
	maxObjects     = 1024
)

// stock is what connections of one loop lend each other: the one used last is lent
// first, for it is still in the processor's caches.
type stock struct {
	loop      *loop.Loop
	buffers   shelf[[]byte]
	large     shelf[[]byte]
	small     shelf[[]byte]
	exchanges shelf[*Exchange]
	upstreams shelf[*Upstream]
	names     names
	texts     text
	trimming  bool
	dirty     []*mux // with something to write that nobody has looked after
}

// shelf is a stack of what nobody uses now.
type shelf[T any] struct {
	free  []T
	least int // of free since the last trim: so many were not needed
}

// trimEvery is after what time that which was not needed meanwhile is let go.
const trimEvery = 2 * time.Second

type stockKey struct{}

// stockOf is the stock of a loop.
func stockOf(l *loop.Loop) *stock {
	return l.Local(stockKey{}, func() any { return &stock{loop: l} }).(*stock)
}

func (s *shelf[T]) take() (v T, ok bool) {
	n := len(s.free) - 1
	if n < 0 {
		return v, false
	}
	v, s.free[n] = s.free[n], v
	s.free = s.free[:n]
	s.least = min(s.least, n)
	return v, true
}

func (s *shelf[T]) give(v T, most int) {
	if len(s.free) < most {
		s.free = append(s.free, v)
	}
}

// trim lets go of those at the bottom, which were not taken since the last trim,
// and says how many are left.
func (s *shelf[T]) trim() int {
	left := copy(s.free, s.free[s.least:])
	clear(s.free[left:])
	s.free, s.least = s.free[:left], left
	return left
}

func (s *stock) take(size int) []byte {
	shelf := &s.buffers
	switch size {
	case largePiece:
		shelf = &s.large
	case smallPiece:
		shelf = &s.small
	}
	if b, ok := shelf.take(); ok {
		return b
	}
	s.trimLater()
	return make([]byte, size)
}

func (s *stock) trimLater() {
	if !s.trimming {
		s.trimming = true
		s.loop.AfterFunc(trimEvery, s.trim)
	}
}

// give returns memory of take; other memory, and nil, is left to the collector.
func (s *stock) give(b []byte) {
	switch cap(b) {
	case bufferSize:
		s.buffers.give(b[:bufferSize], maxBuffers)
	case largePiece:
		s.large.give(b[:largePiece], maxLargePieces)
	case smallPiece:
		s.small.give(b[:smallPiece], maxSmallPieces)
	}
}

func (s *stock) trim() {
	left := s.buffers.trim() + s.large.trim() + s.small.trim() + s.exchanges.trim() + s.upstreams.trim()
	if s.trimming = left > 0 && !s.loop.Closing(); s.trimming {
		s.loop.AfterFunc(trimEvery, s.trim)
	}
}
