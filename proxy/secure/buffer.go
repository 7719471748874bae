package secure

import "sync"

// Sizes of the buffers that are lent: for messages, for one record, and for
// maxChunk of them. A connection which has nothing to do holds none; one whose
// peer reads slowly holds the smallest that fits.
var sizes = [...]int{4 << 10, 18 << 10, largest}

const (
	// maxChunk is how much plaintext is encrypted before it is sent. Eight records
	// to a system call: with more the call's cost no longer shows, and the buffer
	// would leave the second-level cache.
	maxChunk = 8 * maxPlaintext
	largest  = maxChunk + 4<<10 // with what encryption adds
)

// buffer is lent by its pool for as long as it holds bytes.
type buffer struct {
	data  []byte // what it holds, somewhere in store
	store []byte
	class uint8
}

var pools [len(sizes)]sync.Pool // of *buffer

// classFor is the smallest class that holds n bytes, or the largest.
func classFor(n int) uint8 {
	for class, size := range sizes {
		if n <= size {
			return uint8(class)
		}
	}
	return uint8(len(sizes) - 1)
}

// lend gives an empty buffer.
func lend(class uint8) *buffer {
	if b, ok := pools[class].Get().(*buffer); ok {
		return b
	}
	b := &buffer{store: make([]byte, sizes[class]), class: class}
	b.data = b.store[:0]
	return b
}

// room is all of it.
func (b *buffer) room() []byte { return b.store }

// free gives it back. What it grew beyond its size goes to the collector.
func (b *buffer) free() {
	b.data = b.store[:0]
	pools[b.class].Put(b)
}
