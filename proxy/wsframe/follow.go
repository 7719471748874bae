package wsframe

import "encoding/binary"

// RFC 6455 section 5.2.
const (
	finBit     = 0x80 // of the first byte: the last frame of its message
	opcodeBits = 0x0f
	controlBit = 0x08 // of the opcode
	opClose    = 0x8
	maskBit    = 0x80 // of the second byte
	lengthBits = 0x7f
	length16   = 126
	length64   = 127
	maxHeader  = 2 + 8 + 4
)

// follower knows where in its frames one direction stands. It reads headers only.
type follower struct {
	left    uint64 // bytes of the payload that are to come
	head    [maxHeader]byte
	got     uint8 // so much of a header that is not whole yet
	opcode  byte  // of the frame at hand
	within  bool  // a message has begun whose last frame has not ended
	pending bool  // the frame at hand is not its message's last
	closed  bool  // a whole Close has passed
	lost    bool  // these are no frames: nothing is known any more
}

// between tells whether a control frame may be inserted here.
func (f *follower) between() bool { return !f.lost && f.left == 0 && f.got == 0 }

// next takes down the bytes up to the end of the frame at hand, or all of b, and
// says how many that were: more than none, unless b is empty.
func (f *follower) next(b []byte) (n int) {
	if f.lost {
		return len(b)
	}
	if f.left == 0 {
		if n = f.header(b); f.lost {
			return len(b)
		}
		if f.got > 0 {
			return n
		}
	}
	rest := min(uint64(len(b)-n), f.left)
	if f.left -= rest; f.left == 0 {
		f.ended()
	}
	return n + int(rest)
}

// header takes a header off the front of b, or what there is of one.
func (f *follower) header(b []byte) (n int) {
	h := b
	if f.got > 0 || len(b) < maxHeader {
		n = copy(f.head[f.got:], b)
		h = f.head[:int(f.got)+n]
	}
	size, length, ok := measure(h)
	if !ok {
		f.got = uint8(len(h))
		return n
	}
	f.left, f.opcode, f.pending = length, h[0]&opcodeBits, h[0]&finBit == 0
	f.lost = length>>63 != 0 // which no frame has
	size, f.got = size-int(f.got), 0
	return size
}

// measure reads a header's own size and the length of the payload.
func measure(h []byte) (size int, length uint64, ok bool) {
	if len(h) < 2 {
		return 0, 0, false
	}
	size, length = 2, uint64(h[1]&lengthBits)
	switch length {
	case length16:
		size += 2
	case length64:
		size += 8
	}
	extended := size
	if h[1]&maskBit != 0 {
		size += 4
	}
	if len(h) < size {
		return 0, 0, false
	}
	switch extended {
	case 4:
		length = uint64(binary.BigEndian.Uint16(h[2:]))
	case 10:
		length = binary.BigEndian.Uint64(h[2:])
	}
	return size, length, true
}

// ended takes down that the frame at hand has ended.
func (f *follower) ended() {
	switch {
	case f.opcode == opClose:
		f.closed = true
	case f.opcode&controlBit == 0: // control frames may come between those of a message
		f.within = f.pending
	}
}

// closeFrame is a Close with a status code and a reason of at most 123 bytes,
// masked with key if that is not nil (RFC 6455 section 5.5.1 and 5.3).
func closeFrame(code uint16, reason string, key *[4]byte) []byte {
	payload := append(binary.BigEndian.AppendUint16(nil, code), reason...)
	frame := []byte{finBit | opClose, byte(len(payload))}
	if key != nil {
		frame[1] |= maskBit
		frame = append(frame, key[:]...)
		for i := range payload {
			payload[i] ^= key[i%4]
		}
	}
	return append(frame, payload...)
}
