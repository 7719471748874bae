package h1

// Byte classes, one bit each, so that a single table serves all.
const (
	tokenByte  uint8 = 1 << iota // RFC 9110 section 5.6.2
	valueByte                    // field values: RFC 9110 section 5.5, obs-text included
	targetByte                   // request targets: visible ASCII without "#"
	hostByte                     // RFC 3986 host and port, without userinfo
)

var class = func() (t [256]uint8) {
	for c := range t {
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[c] |= valueByte
		}
		if c > ' ' && c < 0x7f && c != '#' {
			t[c] |= targetByte
		}
		alnum := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if alnum {
			t[c] |= tokenByte | hostByte
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] |= tokenByte
	}
	for _, c := range "-._~%!$&'()*+,;=:[]" {
		t[c] |= hostByte
	}
	return t
}()

// all reports whether every byte of s is of the class.
func all[T string | []byte](s T, want uint8) bool {
	for i := 0; i < len(s); i++ {
		if class[s[i]]&want == 0 {
			return false
		}
	}
	return true
}

// validValue reports whether every byte of s may stand in a field value. Eight
// bytes at a time are looked at for one below 0x20 or equal to 0x7f, as the usual
// trick has it (it may err towards suspicion); a tab, or worse, is looked at singly.
func validValue[T string | []byte](s T) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		del := w ^ 0x7f*ones
		if ((w-0x20*ones)&^w|(del-ones)&^del)&highs != 0 {
			return all(s[i:], valueByte)
		}
	}
	return all(s[i:], valueByte)
}

func isToken[T string | []byte](s T) bool { return len(s) > 0 && all(s, tokenByte) }

// equalFold compares in ASCII only: header names are tokens. (Unicode folding
// would let the Kelvin sign pass for a k.)
func equalFold[A, B string | []byte](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// trimOWS cuts optional white space, RFC 9110 section 5.6.3.
func trimOWS[T string | []byte](s T) T {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// nextElement cuts the first element off a comma-separated list.
func nextElement(list string) (element, rest string) {
	for i := 0; i < len(list); i++ {
		if list[i] == ',' {
			return trimOWS(list[:i]), list[i+1:]
		}
	}
	return trimOWS(list), ""
}
