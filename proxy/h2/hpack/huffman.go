package hpack

import "encoding/binary"

// huffmanBits are the lengths of the codes, RFC 7541 appendix B. The code is
// canonical, so they determine it.
var huffmanBits = [256]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
}

const (
	huffmanLongest = 30
	huffmanRoot    = 9 // bits looked up at once: every code of a usual byte
)

// huffmanShort is by the next bits: the byte in the upper half, the length of its
// code in the lower; 0 for longer codes. Those are found by their length: codes of
// one length follow one another, from first on, in the order of symbols.
var (
	huffmanShort [1 << huffmanRoot]uint16
	huffmanFirst [huffmanLongest + 1]uint32
	huffmanCount [huffmanLongest + 1]uint32
	huffmanAt    [huffmanLongest + 1]uint32 // in huffmanSymbols
	huffmanOrder [256]uint8                 // symbols by length, then by number
)

func init() {
	code, at := uint32(0), uint32(0)
	for bits := uint8(1); bits <= huffmanLongest; bits++ {
		code <<= 1
		huffmanFirst[bits], huffmanAt[bits] = code, at
		for s := range 256 {
			if huffmanBits[s] != bits {
				continue
			}
			huffmanOrder[at] = uint8(s)
			if bits <= huffmanRoot {
				n := uint32(1) << (huffmanRoot - bits)
				for i := range n {
					huffmanShort[code<<(huffmanRoot-bits)+i] = uint16(s)<<8 | uint16(bits)
				}
			}
			code++
			at++
		}
		huffmanCount[bits] = at - huffmanAt[bits]
	}
}

// appendHuffman decodes b. False: b is no Huffman coding, RFC 7541 section 5.2.
func appendHuffman(out, b []byte) ([]byte, bool) {
	var acc uint64 // the next bits, from the top
	have := 0
	for {
		if len(b) >= 8 {
			acc |= binary.BigEndian.Uint64(b) >> have
			n := (64 - have) >> 3
			b, have = b[n:], have+n<<3
			acc &= ^uint64(0) << (64 - have) // the rest of the eight bytes comes again
		}
		for have <= 56 && len(b) > 0 {
			acc |= uint64(b[0]) << (56 - have)
			b = b[1:]
			have += 8
		}
		for have >= huffmanRoot {
			e := huffmanShort[acc>>(64-huffmanRoot)]
			if e == 0 {
				break
			}
			out = append(out, byte(e>>8))
			acc <<= e & 0xff
			have -= int(e & 0xff)
		}
		switch {
		case have >= huffmanLongest || have >= huffmanRoot && len(b) == 0: // a code that is not short
			symbol, bits := huffmanLong(acc, have)
			if bits == 0 {
				return out, false
			}
			out = append(out, symbol)
			acc <<= bits
			have -= bits
		case len(b) == 0:
			return huffmanEnd(out, acc, have)
		}
	}
}

// huffmanEnd decodes the last bits, after which only padding may be left: fewer than
// 8 bits, all ones.
func huffmanEnd(out []byte, acc uint64, have int) ([]byte, bool) {
	for have > 0 {
		e := huffmanShort[acc>>(64-huffmanRoot)]
		if e == 0 || int(e&0xff) > have {
			return out, have < 8 && acc>>(64-have) == 1<<have-1
		}
		out = append(out, byte(e>>8))
		acc <<= e & 0xff
		have -= int(e & 0xff)
	}
	return out, true
}

// huffmanLong finds a code that the root table does not hold; bits is 0 if there is none.
func huffmanLong(acc uint64, have int) (symbol byte, bits int) {
	for bits := huffmanRoot + 1; bits <= min(huffmanLongest, have); bits++ {
		if i := uint32(acc>>(64-bits)) - huffmanFirst[bits]; i < huffmanCount[bits] {
			return huffmanOrder[huffmanAt[bits]+i], bits
		}
	}
	return 0, 0
}
