package h1

import "github.com/weir-mesh/weir/proxy/loop"

type framing uint8

const (
	noBody     framing = iota
	byLength           // Content-Length
	byChunks           // Transfer-Encoding: chunked
	untilClose         // a response that ends with its connection
)

// body is an incoming message body inside a buffer: decoded data at
// buf[from:dec], of which buf[from:sent] has been passed on, then bytes not
// looked at yet at buf[raw:end]. Unless the body is done, raw equals end.
type body struct {
	buf       []byte
	from      int
	sent, dec int
	raw, end  int
	kind      framing
	left      int64 // by length: bytes to come
	total     int64 // data bytes decoded so far
	chunks    chunks
	done      bool
	pipe      *loop.Pipe // the next bytes go through it, not to buf
}

// begin sets the body up over buf, where the bytes after the head are at [at:end).
func (b *body) begin(kind framing, length int64, buf []byte, at, end int) {
	*b = body{buf: buf, from: at, sent: at, dec: at, raw: at, end: end, kind: kind, left: length}
	b.done = kind == noBody || kind == byLength && length == 0
}

// advance decodes what is at hand.
func (b *body) advance() error {
	if b.done {
		return nil
	}
	before := b.dec
	switch b.kind {
	case byLength:
		n := int(min(b.left, int64(b.end-b.raw)))
		if b.dec != b.raw {
			copy(b.buf[b.dec:], b.buf[b.raw:b.raw+n])
		}
		b.dec, b.raw = b.dec+n, b.raw+n
		b.left -= int64(n)
		b.done = b.left == 0
	case untilClose:
		b.raw, b.dec = b.end, b.end // nothing is ever removed, so dec was raw
	case byChunks:
		var err error
		if b.dec, b.raw, err = b.chunks.decode(b.buf, b.dec, b.raw, b.end); err != nil {
			return err
		}
		b.done = b.chunks.state == chunkDone
	}
	b.total += int64(b.dec - before)
	if !b.done {
		b.raw, b.end = b.dec, b.dec
	}
	return nil
}

// data is what has been decoded and not passed on.
func (b *body) data() []byte { return b.buf[b.sent:b.dec] }

// room is where the next bytes may be read to; empty when the buffer is full.
func (b *body) room() []byte { return b.buf[b.end:] }

// took says that n bytes were read into room.
func (b *body) took(n int) { b.end += n }

// recycle forgets the data, all of which has been passed on, to make room.
func (b *body) recycle() {
	b.from, b.sent, b.dec = 0, 0, 0
	if !b.done {
		b.raw, b.end = 0, 0
	}
}

// moveTo continues in another buffer, with the data kept. Only for a body that
// is not done, whose data fits.
func (b *body) moveTo(buf []byte) {
	n := copy(buf, b.buf[b.from:b.dec])
	b.buf, b.sent = buf, b.sent-b.from
	b.from, b.dec, b.raw, b.end = 0, n, n, n
}
