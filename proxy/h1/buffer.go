package h1

import (
	"time"

	"github.com/weir-mesh/weir/proxy/loop"
)

// Two sizes of buffer. A client's head starts in a small one, for it is held
// while the upstream thinks; everything that moves bulk uses a large one: 64 KiB
// per read and write is where a copying relay stops gaining much.
const (
	smallBuffer = 8 << 10
	largeBuffer = 64 << 10
)

// stock is what connections of one loop lend each other: the one used last is
// lent first, for it is still in the processor's caches. A pool shared by loops
// would cost an atomic operation each way.
type stock struct {
	loop         *loop.Loop
	small, large shelf[[]byte]
	exchanges    shelf[*Exchange]
	sessions     shelf[*session]
	names        names
	trimming     bool
}

// shelf is a stack of what nobody uses now.
type shelf[T any] struct {
	free  []T
	least int // of free since the last trim: so many were not needed
}

// Bounds of what is kept on a loop: 4 MiB of small buffers, and of large ones.
// What a burst needs beyond it is left to the collector.
const (
	maxSmall = 512
	maxLarge = 64
)

// trimEvery is after what time that which was not needed meanwhile is let go.
const trimEvery = 2 * time.Second

// stockOf is the stock of a loop.
func stockOf(l *loop.Loop) *stock {
	return l.Local(stockKey{}, func() any { return &stock{loop: l} }).(*stock)
}

type stockKey struct{}

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
	shelf := &s.large
	if size == smallBuffer {
		shelf = &s.small
	}
	if b, ok := shelf.take(); ok {
		return b
	}
	if !s.trimming {
		s.trimming = true
		s.loop.AfterFunc(trimEvery, s.trim)
	}
	return make([]byte, size)
}

// give returns a buffer of take; others, and nil, are left to the collector.
func (s *stock) give(b []byte) {
	switch cap(b) {
	case smallBuffer:
		s.small.give(b[:smallBuffer], maxSmall)
	case largeBuffer:
		s.large.give(b[:largeBuffer], maxLarge)
	}
}

func (s *stock) trim() {
	left := s.small.trim() + s.large.trim() + s.exchanges.trim() + s.sessions.trim()
	if s.trimming = left > 0 && !s.loop.Closing(); s.trimming {
		s.loop.AfterFunc(trimEvery, s.trim)
	}
}

func (s *stock) takeExchange() *Exchange {
	if x, ok := s.exchanges.take(); ok {
		return x
	}
	return new(Exchange)
}

func (s *stock) giveExchange(x *Exchange) { s.exchanges.give(x, maxSmall) }
