package h1

// maxExtensions bounds all chunk extensions of one message together: they are
// dropped here, and unbounded ones are a way to make a proxy work for nothing.
const maxExtensions = 4 << 10

// maxChunkDigits keeps a size below 2^60.
const maxChunkDigits = 15

// maxTrailer bounds the trailer section, which is held in memory until its end.
const maxTrailer = 16 << 10

type chunkState uint8

const (
	chunkSize      chunkState = iota // digits
	chunkExtension                   // after ";"
	chunkSizeLF                      // the LF of the size line
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer
	chunkDone
)

// chunks decodes the chunked coding, RFC 9112 section 7.1. It is a state
// machine over bytes, so the outcome does not depend on how they were split.
type chunks struct {
	state      chunkState
	digits     int
	left       int64
	extensions int
	trailer    []byte // the trailer lines as they came, empty line included; nil if there are none
}

// decode takes buf[raw:end] and moves the data in it to dec, which is at or
// before raw. It consumes everything unless the message ends.
func (c *chunks) decode(buf []byte, dec, raw, end int) (newDec, newRaw int, err error) {
	for raw < end && c.state != chunkDone {
		if c.state == chunkData {
			n := int(min(c.left, int64(end-raw)))
			if dec != raw {
				copy(buf[dec:], buf[raw:raw+n])
			}
			dec, raw = dec+n, raw+n
			if c.left -= int64(n); c.left == 0 {
				c.state = chunkDataCR
			}
			continue
		}
		b := buf[raw]
		raw++
		if c.state == chunkTrailer {
			err = c.trailerByte(b)
		} else {
			err = c.frameByte(b)
		}
		if err != nil {
			return dec, raw, err
		}
	}
	return dec, raw, nil
}

// frameByte takes one byte of a size line or of the CRLF after the data.
func (c *chunks) frameByte(b byte) error {
	switch c.state {
	case chunkSize:
		return c.sizeByte(b)
	case chunkExtension:
		if b == '\r' {
			c.state = chunkSizeLF
			return nil
		}
		if c.extensions++; c.extensions > maxExtensions || class[b]&valueByte == 0 {
			return errChunkExtension
		}
	case chunkSizeLF:
		if b != '\n' {
			return errChunkSize
		}
		if c.state = chunkData; c.left == 0 {
			c.state = chunkTrailer
		}
		c.digits = 0
	case chunkDataCR:
		if b != '\r' {
			return errChunkEnd
		}
		c.state = chunkDataLF
	case chunkDataLF:
		if b != '\n' {
			return errChunkEnd
		}
		c.state = chunkSize
	}
	return nil
}

func (c *chunks) sizeByte(b byte) error {
	if d := unhex(b); d >= 0 {
		if c.digits++; c.digits > maxChunkDigits {
			return errChunkSize
		}
		c.left = c.left<<4 | int64(d)
		return nil
	}
	switch {
	case c.digits == 0:
		return errChunkSize
	case b == '\r':
		c.state = chunkSizeLF
	case b == ';':
		c.state = chunkExtension
	default:
		return errChunkSize
	}
	return nil
}

func unhex(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b-'a') + 10
	case 'A' <= b && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// trailerByte collects the trailer section and checks each line at its end.
func (c *chunks) trailerByte(b byte) error {
	if len(c.trailer) == maxTrailer {
		return errTrailerTooLarge
	}
	c.trailer = append(c.trailer, b)
	if b != '\n' {
		return nil
	}
	n := len(c.trailer)
	if n < 2 || c.trailer[n-2] != '\r' {
		return errBareLF
	}
	start := n - 2
	for start > 0 && c.trailer[start-1] != '\n' {
		start--
	}
	if start == n-2 { // the empty line
		c.state = chunkDone
		if n == 2 {
			c.trailer = nil
		}
		return nil
	}
	_, err := parseField(c.trailer[start:n-2], start, n)
	return err
}

// appendTrailer copies the trailer fields that may be passed on. Fields that
// frame or route a message have no business there (RFC 9110 section 6.5.1), nor
// have those the caller of this package sets or removes itself: a peer could
// slip them past it.
func (c *chunks) appendTrailer(out []byte, changed *edits) []byte {
	for at := 0; at < len(c.trailer)-2; {
		end := at
		for c.trailer[end] != '\n' {
			end++
		}
		end++
		f, err := parseField(c.trailer[at:end-2], at, end)
		if err == nil && f.id == idOther && !changed.drops(c.trailer[f.start:f.nameEnd]) {
			out = append(out, c.trailer[at:end]...)
		}
		at = end
	}
	return out
}

// appendChunk frames data as one chunk; none for no data, which would be the end.
func appendChunk(out, data []byte) []byte {
	if len(data) == 0 {
		return out
	}
	out = appendHex(out, len(data))
	out = append(out, '\r', '\n')
	out = append(out, data...)
	return append(out, '\r', '\n')
}

func appendHex(out []byte, n int) []byte {
	const digits = "0123456789abcdef"
	var b [16]byte
	i := len(b)
	for {
		i--
		b[i] = digits[n&15]
		if n >>= 4; n == 0 {
			return append(out, b[i:]...)
		}
	}
}
