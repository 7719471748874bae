// Package hpack is the header compression of HTTP/2 (RFC 7541), without I/O and without allocation in the steady state.
// What the fields mean, and which of them may be sent, it leaves to its callers.
//
// Two choices that cost bytes and save time. Strings are sent as they are: Huffman
// coding would save a quarter of them for a nanosecond or two per byte, on links on
// which a header is not what takes long. And a field enters the encoder's table only
// when it was seen before, so that what is new in every request (ids, times, paths)
// displaces nothing.
package hpack

import (
	"errors"
	"hash/maphash"
	"unsafe"
)

// DefaultTableSize is that of both tables until an end says otherwise, and here
// the most that an encoder uses whatever its peer allows.
const DefaultTableSize = 4096

// entryOverhead is what an entry counts besides its strings, RFC 7541 section 4.1.
const entryOverhead = 32

// ErrMalformed is a block that cannot be decoded. The state of the decoder is lost
// with it: the connection has to end (RFC 9113 section 4.3).
var ErrMalformed = errors.New("header block cannot be decoded")

// Field is one field of a head.
type Field struct {
	Name, Value string
	// Sensitive fields are sent as literals that no table ever holds, RFC 7541
	// section 7.1.3, and received ones are sent on so.
	Sensitive bool
	// Class is what Decoder.Classify said of the field.
	Class uint8

	static, staticName uint8  // places in the static table; 0: none, or not looked for
	name, value        uint32 // hashes; 0: not computed
}

// Size is how the field counts in tables and limits.
func (f *Field) Size() int { return len(f.Name) + len(f.Value) + entryOverhead }

func (f *Field) pair() uint32 { return f.name*0x9e3779b1 ^ f.value }

func (f *Field) computeHashes() {
	if f.name == 0 {
		f.name = hashOf(f.Name)
	}
	if f.value == 0 {
		f.value = hashOf(f.Value)
	}
}

// seed is another in each process, so that nobody can choose fields that collide.
var seed = maphash.MakeSeed()

func hashOf(s string) uint32 { return uint32(maphash.String(seed, s)) | 1 }

// Head is what was decoded of one head, to be used again for the next. Its strings
// are views of memory of its own: valid until Reset.
type Head struct {
	Fields []Field
	Size   int  // of all fields, those not kept too, as RFC 9113 section 6.5.2 counts
	Over   bool // limits were exceeded: not all fields are here
	text   []byte
}

// Reset forgets the fields. Memory of an unusually large head is let go.
func (h *Head) Reset() {
	const keep = 16 << 10
	if cap(h.text) > keep {
		h.text = nil
	}
	h.Fields, h.Size, h.Over, h.text = h.Fields[:0], 0, false, h.text[:0]
}

// keep copies b into the head's memory. When that grows, views of the old stay
// valid: it is not written to again.
func (h *Head) keep(b []byte) string {
	at := len(h.text)
	if h.text == nil {
		h.text = make([]byte, 0, max(1024, 2*len(b)))
	}
	h.text = append(h.text, b...)
	return view(h.text[at:])
}

// Append adds a field whose strings are copied.
func (h *Head) Append(f Field) {
	f.Name, f.Value = h.keep(bytesOf(f.Name)), h.keep(bytesOf(f.Value))
	h.Size += f.Size()
	h.Fields = append(h.Fields, f)
}

// view is b as a string without a copy.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// appendInt appends n with a prefix of so many bits, RFC 7541 section 5.1. first is
// what the bits before the prefix are.
func appendInt(out []byte, first byte, bits uint, n int) []byte {
	most := 1<<bits - 1
	if n < most {
		return append(out, first|byte(n))
	}
	out = append(out, first|byte(most))
	for n -= most; n >= 128; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

// maxInt bounds what an integer may say: more than any block holds.
const maxInt = 1 << 28

// readInt reads an integer with a prefix of so many bits and returns what follows.
func readInt(b []byte, bits uint) (n int, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	most := 1<<bits - 1
	if n = int(b[0]) & most; n < most {
		return n, b[1:], true
	}
	shift := uint(0)
	for i := 1; i < len(b) && shift <= 28; i++ {
		n += int(b[i]&0x7f) << shift
		if n > maxInt {
			return 0, nil, false
		}
		if b[i]&0x80 == 0 {
			return n, b[i+1:], true
		}
		shift += 7
	}
	return 0, nil, false
}
