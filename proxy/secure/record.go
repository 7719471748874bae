package secure

// Sizes of TLS records, RFC 8446 section 5 and RFC 5246 section 6.2.
const (
	headerBytes    = 5
	maxPlaintext   = 16 << 10
	maxRecord      = headerBytes + maxPlaintext + 256 + 1
	recordOverhead = 64 // AEAD: 22 to 29 bytes; CBC with SHA-384: up to 5+16+48+16
)

// cutter cuts a stream at the ends of its records, whatever pieces it comes in.
type cutter struct {
	header [headerBytes]byte
	have   uint8 // of header
	body   int   // bytes still to come after it
}

// take copies from src to dst, but no further than the end of the record that
// src goes on with or begins. It takes at least one byte if both have one.
func (c *cutter) take(dst, src []byte) int {
	src = src[:min(len(src), len(dst))]
	n := 0
	if c.body == 0 {
		n = copy(c.header[c.have:], src)
		if c.have += uint8(n); c.have < headerBytes {
			return copy(dst, src[:n])
		}
		c.have, c.body = 0, int(c.header[3])<<8|int(c.header[4])
	}
	rest := min(len(src)-n, c.body)
	c.body -= rest
	return copy(dst, src[:n+rest])
}
